"""Evaluation as a stage of a run: reads its model, styles and attributes, writes evaluation.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stylex import classifiers
from stylex.classifiers import Classifier
from stylex.data import ImageSet
from stylex.errors import ClassifierError, RunError
from stylex.evaluation.measure import Evaluation, evaluate, prepare
from stylex.explainer import Explainer
from stylex.hardware import place
from stylex.run import Run, read_json, write_json


def evaluate_run(
    explainer: Explainer,
    test: ImageSet | None,
    *,
    judge: str | Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure flip curves, controls and reconstruction on test images and keep them in the run.

    Args:
        judge: an independently trained classifier; by default the run's judge.safetensors where there is one.

    Raises:
        ClassifierError: the judge has other classes.
    """
    run, model = explainer.run, explainer.model
    chosen: Classifier | None = None
    source = judge or (run.judge_file if run.judge_file.exists() else None)
    if source is not None:
        chosen = classifiers.load(source)
        if chosen.class_names != model.class_names:
            raise ClassifierError(
                f"{source}: its classes are {', '.join(chosen.class_names)}, "
                f"those explained are {', '.join(model.class_names)}"
            )
        if chosen.fingerprint == model.classifier.fingerprint:
            raise ClassifierError(
                f"{source}: is the very classifier that is explained; it cannot judge itself"
            )
        place(chosen.freeze(), model.hardware)
    found = evaluate(
        model,
        explainer.discovery.space,
        explainer.findings,
        explainer.discovery.styles,
        explainer.discovery.logits,
        prepare(model, test, run.config.seed),
        judge=chosen,
        seed=run.config.seed,
        on_progress=on_progress,
    )
    write_json(run.path / "evaluation.json", found.to_json())
    return found


def load_evaluation(run: Run) -> dict[str, object]:
    """evaluation.json as plain values.

    Raises:
        RunError: the run has not been evaluated yet.
    """
    file = run.path / "evaluation.json"
    if not file.exists():
        raise RunError(f"{run.path}: not evaluated yet; 'stylex evaluate {run.path}' does that")
    content: dict[str, object] = read_json(file)
    return content
