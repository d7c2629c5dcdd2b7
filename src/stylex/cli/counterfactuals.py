"""`stylex counterfactuals`: the field's figures over many images, and an export for its scripts."""

from __future__ import annotations

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
    progress,
    result,
)
from stylex.errors import DataError
from stylex.run import Run


def counterfactuals(
    path: RunPath,
    export: Annotated[
        Path | None, typer.Option(help="New folder for the images, in the layout of DiME and ACE.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the experiment in that layout.")] = "stylex",
    target: Annotated[
        str | None, typer.Option(help="Class; by default the likeliest other one of each image.")
    ] = None,
    count: Annotated[int, typer.Option(min=2, help="Test images, evenly spaced.")] = 100,
    judge: Annotated[str | None, typer.Option(help="Independently trained classifier.")] = None,
    perceptual: Annotated[
        str, typer.Option(help="Network of the perceptual distance.")
    ] = "efficientnet-lite0",
    extractor: Annotated[
        str, typer.Option(help="Features for FID: inception-v3, efficientnet-lite0, or what can be had.")
    ] = "auto",
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Validity, proximity, sparsity and realism of counterfactuals of test images."""
    from stylex.evaluation.counterfactual_metrics import answers, measure_counterfactuals
    from stylex.evaluation.dime_layout import check_export, export_dime
    from stylex.evaluation.stage import load_judge, load_measures
    from stylex.explainer import load_images, open_explainer
    from stylex.run import write_json

    run = Run.open(path)
    if export is not None:
        check_export(export, name)  # before any work
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    images = load_images(run, data, labelled=True).test
    if not len(images):
        raise DataError(
            "there are no test images to explain that the run has not seen; give others with --data"
        )
    reals = images.batch(slice(None))
    measures = load_measures(explainer, reals, perceptual=perceptual, extractor=extractor)
    judging = load_judge(run, explainer.model, judge)
    with run.locked(), progress() as display:
        task = display.add_task("explaining image", total=None)
        found = []
        for each in answers(explainer, images, target, count):
            found.append(each)
            display.update(task, completed=len(found))
        figures = measure_counterfactuals(
            explainer,
            images,
            found,
            perceptual=measures.perceptual,
            extractor=measures.extractor,
            judge=judging,
            seed=run.config.seed,
            on_progress=lambda stage: note(f"measuring {stage}"),
        )
        if export is not None:
            export_dime(found, export, name)
        write_json(run.path / "counterfactuals.json", figures.to_json())
    valid = figures.validity
    lines = [
        f"valid: {valid.estimate:.1%} of {figures.images} images ({valid.low:.1%} to {valid.high:.1%}), "
        f"{figures.by_reconstruction} of them by the reconstruction alone"
    ]
    if figures.by_reconstruction and figures.edit_validity is not None:
        edited = figures.edit_validity
        lines.append(
            f"    of the other {edited.n}, which the figures below are about: {edited.estimate:.1%} "
            f"({edited.low:.1%} to {edited.high:.1%})"
        )
    if figures.judge_validity is not None:
        lines.append(
            f"    valid ones confirmed by the independent classifier: {figures.judge_validity.estimate:.1%}"
        )
    if figures.l1 is not None and figures.perceptual is not None and figures.sparsity is not None:
        lines.append(
            f"from the original: L1 {figures.l1.estimate:.4f}, {figures.perceptual_network} "
            f"{figures.perceptual.estimate:.4f}; attributes changed {figures.sparsity.estimate:.1f}"
        )
    if figures.edit_l1 is not None and figures.edit_perceptual is not None:
        lines.append(
            f"from the reconstruction: L1 {figures.edit_l1.estimate:.4f}, {figures.perceptual_network} "
            f"{figures.edit_perceptual.estimate:.4f}"
        )
    for label, each_class in figures.realism.items():
        lines.append(
            f"towards '{label}': FID {each_class.fid:.2f}, KID {each_class.kid.mean:.5f} against "
            f"{each_class.reals} real images of the class ({each_class.generated} counterfactuals; "
            f"{each_class.extractor})"
        )
    content = {
        "run": str(path),
        "export": None if export is None else str(export),
        **figures.to_json(),
    }
    result(as_json, content, "\n".join(lines))
