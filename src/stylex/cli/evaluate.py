"""`stylex evaluate`: flip rates on images that neither training nor discovery saw."""

from __future__ import annotations

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
from stylex.evaluation.measure import Evaluation
from stylex.run import Run


def evaluate(
    path: RunPath,
    judge: Annotated[
        str | None, typer.Option(help="Independently trained classifier that confirms flips.")
    ] = None,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Measure how often the attributes flip the classifier, with controls, on the test images."""
    from stylex.evaluation.measure import prepare
    from stylex.evaluation.stage import evaluate_run
    from stylex.explainer import load_images, open_explainer

    run = Run.open(path)
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    test = None
    if explainer.model.encoder is not None:
        test = load_images(run, data).test
    with run.locked():
        images = prepare(explainer.model, test, run.config.seed)
        found = evaluate_run(
            explainer, images, judge=judge, on_progress=lambda stage: note(f"measuring {stage}")
        )
    result(as_json, {"run": str(path), **found.to_json()}, describe(found))


def describe(found: Evaluation) -> str:
    """The figures as a table."""
    agreement = found.agreement
    lines = [
        f"class kept by {agreement.estimate:.1%} of {found.images} reconstructions "
        f"({agreement.low:.1%} to {agreement.high:.1%}), L1 {found.l1:.3f}, {found.coordinates} coordinates",
    ]
    for method in found.methods:
        curve = method.curve
        points = ", ".join(f"{k}: {rate:.2f}" for k, rate in zip(curve.k, curve.rate, strict=True))
        lines.append(
            f"{method.method} → '{method.target}' ({curve.n} images), flip rate by coordinates: {points}"
        )
        if method.confirmed is not None:
            shares = ", ".join(
                f"{k}: {'–' if entry.share is None else format(entry.share, '.2f')}"
                for k, entry in zip(curve.k, method.confirmed, strict=True)
            )
            lines.append(f"    confirmed by the independent classifier: {shares}")
    return "\n".join(lines)
