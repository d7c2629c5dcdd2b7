"""Evaluation as a stage of a run: reads its model, styles and attributes, writes evaluation.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stylex import classifiers
from stylex.classifiers import Classifier
from stylex.errors import ClassifierError, RunError
from stylex.evaluation.measure import Evaluation, TestImages, evaluate
from stylex.explainer import Explainer
from stylex.hardware import place
from stylex.run import Run, read_json, write_json


def evaluate_run(
    explainer: Explainer,
    test: TestImages,
    *,
    judge: str | Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Measure flip curves, controls and reconstruction on test images and keep them in the run.

    Args:
        test: what `prepare` made of the test images.
        judge: an independently trained classifier; by default the run's judge.safetensors where there is one.

    Raises:
        ClassifierError: the judge has other classes, or is the classifier explained.
    """
    run, model = explainer.run, explainer.model
    source = judge or (run.judge_file if run.judge_file.exists() else None)
    found = evaluate(
        model,
        explainer.discovery.space,
        explainer.findings,
        explainer.discovery.styles,
        explainer.discovery.logits,
        test,
        judge=None if source is None else _load_judge(source, explainer),
        seed=run.config.seed,
        on_progress=on_progress,
    )
    write_json(_file(run), {"attributes": explainer.fingerprint, **found.to_json()})
    return found


def is_evaluated(explainer: Explainer) -> bool:
    """Whether the run holds an evaluation of the very attributes that it has now."""
    file = _file(explainer.run)
    if not file.exists():
        return False
    content = read_json(file)
    return isinstance(content, dict) and content.get("attributes") == explainer.fingerprint


def load_evaluation(explainer: Explainer) -> dict[str, Any]:
    """evaluation.json as plain values.

    Raises:
        RunError: the run has not been evaluated since its attributes were found.
    """
    run = explainer.run
    if not is_evaluated(explainer):
        raise RunError(
            f"{run.path}: these attributes are not evaluated yet; 'stylex evaluate {run.path}' does it"
        )
    content: dict[str, Any] = read_json(_file(run))
    return content


def _file(run: Run) -> Path:
    return run.path / "evaluation.json"


def _load_judge(source: str | Path, explainer: Explainer) -> Classifier:
    model = explainer.model
    judge = classifiers.load(source)
    if judge.class_names != model.class_names:
        raise ClassifierError(
            f"{source}: its classes are {', '.join(judge.class_names)}, "
            f"those explained are {', '.join(model.class_names)}"
        )
    if judge.fingerprint == model.classifier.fingerprint:
        raise ClassifierError(f"{source}: is the very classifier that is explained; it cannot judge itself")
    place(judge.freeze(), model.hardware)
    return judge
