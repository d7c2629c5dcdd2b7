"""`stylex report`: one HTML file about a run."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, Device, PrecisionName, Threads, choose_hardware, note, result
from stylex.run import Run


def report(
    path: Annotated[Path, typer.Argument(metavar="RUN")],
    data: Annotated[str | None, typer.Option(help="Images in place of the run's.")] = None,
    attributes: Annotated[int, typer.Option(min=1, help="Attributes shown for each class.")] = 10,
    pairs: Annotated[int, typer.Option(min=1, help="Image pairs shown for each attribute.")] = 6,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Write the run's report.html; evaluates first where that has not been done."""
    from stylex.evaluation.measure import prepare
    from stylex.evaluation.stage import evaluate_run, is_evaluated
    from stylex.explainer import load_images, open_explainer
    from stylex.report.compose import write_report

    run = Run.open(path)
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    dataset = None
    if explainer.model.encoder is not None:
        dataset = load_images(run, data)
    with run.locked():
        test = prepare(explainer.model, None if dataset is None else dataset.test, run.config.seed)
        if not is_evaluated(explainer):
            evaluate_run(explainer, test, on_progress=lambda stage: note(f"measuring {stage}"))
        note("writing the report")
        file = write_report(explainer, dataset, test, commands(run), attributes=attributes, pairs=pairs)
    result(as_json, {"run": str(path), "report": str(file)}, f"{file}")


def commands(run: Run) -> str:
    """The commands that repeat a run, one a line."""
    config, name = run.config, shlex.quote(run.path.name)
    return "\n".join(
        [
            f"stylex train --data {shlex.quote(config.data)} --classifier {shlex.quote(config.classifier)} "
            f"--recipe {shlex.quote(config.recipe.name)} --size {config.resolution} --seed {config.seed} "
            f"--out {name}",
            f"stylex attfind {name}",
            f"stylex evaluate {name}",
            f"stylex report {name}",
        ]
    )
