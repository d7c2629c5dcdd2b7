"""`stylex demo`: an explanation of the shipped classifier, computed afresh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.attfind import describe as describe_attributes
from stylex.cli.attfind import describe_screening
from stylex.cli.evaluate import describe as describe_evaluation
from stylex.cli.output import AsJson, Device, PrecisionName, Threads, choose_hardware, note, result


def demo(
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for the run; a demo there is replaced, but names given stay."),
    ] = Path("stylex-demo"),
    images: Annotated[int, typer.Option("--images", min=15, help="Discovery images of each class.")] = 125,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Find out what the shipped classifier ("does this face look old?") looks at, and report it."""
    from stylex.attfind import search
    from stylex.cli.sweeping import sweep_view
    from stylex.demo import held_demo
    from stylex.evaluation.measure import FEW_COUNTS, prepare
    from stylex.evaluation.stage import evaluate_run
    from stylex.explainer import load_images, open_explainer
    from stylex.model import load_model
    from stylex.report.compose import write_report
    from stylex.stylespace import searchable_positions

    with held_demo(out) as run:
        chosen = choose_hardware(device, precision, threads)
        model = load_model(run, chosen)
        note("reading the shipped faces")
        dataset = load_images(run)
        settings = run.config.attfind.model_copy(update={"images_per_class": images, "sweep": "auto"})
        with sweep_view(len(searchable_positions(model.generator.synthesis.layout))) as view:
            findings = search(
                run, model, dataset.discovery, settings, view.on_progress, on_changes=view.on_changes
            )
        explainer = open_explainer(run, chosen)
        test = prepare(explainer.model, dataset.test, run.config.seed)
        evaluation = evaluate_run(
            explainer, test, counts=FEW_COUNTS, on_progress=lambda stage: note(f"measuring {stage}")
        )
        note("writing the report")
        file = write_report(explainer, dataset, test, f"stylex demo --images {images}")
    content = {"report": str(file), "attributes": findings.to_json(), "evaluation": evaluation.to_json()}
    text = "\n".join(
        [
            describe_attributes(findings, most=5),
            *describe_screening(findings),
            describe_evaluation(evaluation),
            "",
            f"report: {file.resolve()}",
        ]
    )
    result(as_json, content, text)
