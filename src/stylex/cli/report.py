"""`stylex report`: one HTML file about a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import (
    AsJson,
    Device,
    OtherImages,
    PrecisionName,
    RunPath,
    Threads,
    choose_hardware,
    note,
    result,
)
from stylex.cli.repeat import commands
from stylex.run import Run

SITE_PAIRS = 12
"""Image pairs on the page of an attribute in a site."""


def report(
    path: RunPath,
    data: OtherImages = None,
    attributes: Annotated[
        int | None, typer.Option(min=1, help="Attributes of each class; by default 10, fewer of many.")
    ] = None,
    pairs: Annotated[
        int | None, typer.Option(min=1, help="Image pairs of each attribute; by default 6, fewer of many.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option("--site", help="Folder for a static site, to be served by any web host.")
    ] = None,
    without_images: Annotated[
        bool, typer.Option("--without-images", help="Show no image and name no file of the data.")
    ] = False,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write the run's report.html, or a site; evaluates first where that has not been done."""
    from stylex.evaluation.measure import prepare
    from stylex.evaluation.stage import evaluate_run, is_evaluated
    from stylex.explainer import load_images, open_explainer
    from stylex.report import site as sites
    from stylex.report.compose import amounts_for, compose, write_page

    run = Run.open(path)
    if site is not None:
        sites.check_site_folder(site)  # before any work
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    dataset = None
    if explainer.model.encoder is not None:
        dataset = load_images(run, data)
    with run.locked():
        test = prepare(explainer.model, None if dataset is None else dataset.test, run.config.seed)
        if not is_evaluated(explainer, test):  # figures and pictures of the same images
            evaluate_run(explainer, test, source=data, on_progress=lambda stage: note(f"measuring {stage}"))
        note("writing the report")
        said = {"attributes": attributes, "pairs": pairs}
        shown = replace(
            amounts_for(len(explainer.class_names)),
            **{key: value for key, value in said.items() if value is not None},
        )
        more = replace(shown, pairs=max(shown.pairs, SITE_PAIRS)) if site is not None else shown
        source = "IMAGES" if without_images else None
        settings, one_vs_one = explainer.findings.settings, bool(explainer.pairs)
        command = commands(run, settings, shown, data=source, one_vs_one=one_vs_one)
        content = compose(explainer, dataset, test, command, more)
        if without_images:
            content = sites.without_images(content)
        file = write_page(run, content) if site is None else sites.write_site(content, site)[0]
    result(as_json, {"run": str(path), "report": str(file)}, f"{file}")
