"""`stylex view`: pages on which a run's attributes are moved by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import (
    AsJson,
    Device,
    OtherImages,
    PrecisionName,
    Threads,
    choose_hardware,
    note,
    result,
)
from stylex.run import Run

IMAGES = 160
"""Test images to choose from: those are encoded before the pages open."""


def view(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or 'demo'.")],
    data: OtherImages = None,
    images: Annotated[int, typer.Option(min=1, help="Test images to choose from.")] = IMAGES,
    attributes: Annotated[int, typer.Option(min=1, help="Sliders for each class.")] = 8,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than this machine's let all in.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 8010,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Open pages on which a run's attributes are moved by hand; runs until it is stopped (Ctrl-C)."""
    from stylex.web import check_installed

    check_installed()
    import torch

    from stylex.evaluation.measure import prepare
    from stylex.explainer import DEMO, demo_folder, load_images, open_explainer
    from stylex.viewer.app import create_app
    from stylex.viewer.workbench import Workbench
    from stylex.web.serving import address, allowed_hosts, is_loopback, listen, serve

    demo = str(path) == DEMO
    run = Run.open(demo_folder() if demo else path)
    listening = listen(host, port)  # before any work: the port may be taken
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    test = None
    if explainer.model.encoder is not None:
        test = load_images(run, data).test.select(slice(images))
    note("reading the images")
    bench = Workbench(
        explainer, prepare(explainer.model, test, run.config.seed, count=images), shown=attributes
    )
    if threads is None:
        torch.set_num_threads(bench.quickest_threads(torch.get_num_threads()))
    title = "the shipped model" if demo else path.resolve().name
    app = create_app(bench, title, hosts=allowed_hosts(host))
    if not is_loopback(host):
        note(f"warning: whoever reaches {host} sees the images of this run")
    url = address(listening)
    result(as_json, {"run": str(path), "url": url}, f"{url}  (Ctrl-C ends it)")
    serve(app, listening)
