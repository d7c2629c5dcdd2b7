"""`stylex attfind`: find the attributes of a trained run."""

from __future__ import annotations

from typing import Annotated

import typer

from stylex.attfind import Findings
from stylex.cli.output import (
    AsJson,
    Device,
    OtherImages,
    PrecisionName,
    RunPath,
    Threads,
    choose_hardware,
    progress,
    result,
)
from stylex.config import AttFindSettings, override, validate
from stylex.run import Run


def attfind(
    path: RunPath,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Discovery images of each class.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="subset, independent or removal.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Search setting, key=value.")] = None,
    one_vs_one: Annotated[
        bool, typer.Option("--one-vs-one", help="Also attributes from every class to every other.")
    ] = False,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Changed images synthesised at once.")] = None,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure the effect of every style coordinate and rank the attributes for every class."""
    from stylex.attfind import search
    from stylex.explainer import load_images
    from stylex.model import load_model

    run = Run.open(path)
    given = {"images_per_class": images, "method": method, "batch_size": batch_size}
    settings = run.config.attfind.model_dump() | {
        key: value for key, value in given.items() if value is not None
    }
    chosen_settings = validate(AttFindSettings, override(settings, set_ or []), "settings of attfind")
    model = load_model(run, choose_hardware(device, precision, threads))
    discovery = None
    if model.encoder is not None:
        discovery = load_images(run, data).discovery
    with run.locked(), progress() as display:
        task = display.add_task("measuring effects, image", total=None)
        findings = search(
            run,
            model,
            discovery,
            chosen_settings,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
            one_vs_one=one_vs_one,
        )
    result(as_json, {"run": str(path), **findings.to_json()}, describe(findings))


def describe(findings: Findings, most: int = 10) -> str:
    """Attributes as lines of text."""
    lines = []
    for target, found in findings.attributes.items():
        lines.append(f"towards '{target}' ({findings.images} images searched)")
        lines += [
            f"  {entry.rank:2d}. {entry.title}: effect {entry.effect:+.2f}, flips {entry.flipped:.0%} alone"
            for entry in found[:most]
        ]
    return "\n".join(lines)
