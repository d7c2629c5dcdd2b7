"""`stylex report`: one HTML file about a run."""

from __future__ import annotations

from dataclasses import replace
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


def report(
    path: RunPath,
    data: OtherImages = None,
    attributes: Annotated[
        int | None, typer.Option(min=1, help="Attributes shown for each class; by default 10, fewer of many.")
    ] = None,
    pairs: Annotated[
        int | None,
        typer.Option(min=1, help="Image pairs shown for each attribute; by default 6, fewer of many."),
    ] = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write the run's report.html; evaluates first where that has not been done."""
    from stylex.evaluation.measure import prepare
    from stylex.evaluation.stage import evaluate_run, is_evaluated
    from stylex.explainer import load_images, open_explainer
    from stylex.report.compose import amounts_for, write_report

    run = Run.open(path)
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    dataset = None
    if explainer.model.encoder is not None:
        dataset = load_images(run, data)
    with run.locked():
        test = prepare(explainer.model, None if dataset is None else dataset.test, run.config.seed)
        if data is not None or not is_evaluated(explainer):  # figures and pictures of the same images
            evaluate_run(explainer, test, on_progress=lambda stage: note(f"measuring {stage}"))
        note("writing the report")
        shown = amounts_for(len(explainer.class_names))
        said = {"attributes": attributes, "pairs": pairs}
        shown = replace(shown, **{key: value for key, value in said.items() if value is not None})
        file = write_report(
            explainer, dataset, test, commands(run, explainer.findings.settings, shown), shown
        )
    result(as_json, {"run": str(path), "report": str(file)}, f"{file}")
