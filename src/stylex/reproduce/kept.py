"""Whether what a home keeps is what is asked for now, and whether its training has reached its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylex.classifiers import Classifier
from stylex.config import RunConfig, differences
from stylex.errors import ConfigError
from stylex.run import Run, read_tensors
from stylex.training.checkpoint import model_step
from stylex.training.schedule import total_images

SHOWN = 3
"""Differences that one line names."""


def finished(run: Run) -> bool:
    """Whether training has reached the recipe's total; there is a model from the first checkpoint on.

    Without checkpoints (a copy may leave them out) the model says of itself how far it came.

    Raises:
        CheckpointError: there are checkpoints and none of them can be read, or the model alone is damaged.
    """
    if not run.model_file.exists():
        return False
    newest = run.newest_checkpoint()
    header = read_tensors(run.model_file)[1] if newest is None else newest[1]
    reached = int(header["images"]) >= total_images(run.config.recipe)
    return reached and int(header["step"]) == model_step(run)


def check_run(run: Run, wanted: RunConfig, *, data: str, classifier: str) -> None:
    """Refuse a run that was made with other settings, images or classifier than are asked for.

    How attributes are searched is not compared: a search that differs is made again, without a training.

    Args:
        wanted: its settings if it were made now. Paths are not compared, what lies there is.
        data, classifier: fingerprints of the images and of the classifier that are asked for.

    Raises:
        ConfigError: what differs, and both values.
    """
    other = {
        key: values
        for key, values in differences(run.config, wanted).items()
        if key not in ("experiment", "data", "classifier") and not key.startswith("attfind.")
    }
    hashes = run.hashes
    for what, now, places in (
        ("images", data, (run.config.data, wanted.data)),
        ("classifier", classifier, (run.config.classifier, wanted.classifier)),
    ):
        before = hashes.get("data" if what == "images" else what, now)
        if before != now:
            other[what] = (content_of(places[0], before), content_of(places[1], now))
    refuse(run.config_file, other, run.path)


def check_classifier(
    file: Path, classifier: Classifier, *, architecture: str, epochs: int, size: int, seed: int, data: str
) -> None:
    """Refuse a classifier that was trained otherwise than is asked for.

    What its file does not say (it may come from elsewhere) is not compared.

    Args:
        size: pixels along a side. data: fingerprint of the images to train it on.

    Raises:
        ConfigError: what differs, and both values.
    """
    report = classifier.report
    settings = report.get("settings") or {}
    said = {
        "architecture": (report.get("architecture"), architecture),
        "epochs": (report.get("epochs"), epochs),
        "size": (settings.get("input_size"), size),
        "seed": (settings.get("seed"), seed),
    }
    other = {key: values for key, values in said.items() if values[0] not in (None, values[1])}
    before = report.get("data_fingerprint")
    if before not in (None, data):
        other["images"] = (content_of("", before), content_of("", data))
    refuse(file, other, file)


def content_of(place: str, fingerprint: str) -> str:
    """How a line tells contents apart."""
    return f"{place} (sha256 {fingerprint[:12]}…)".strip()


def refuse(file: Path, other: Mapping[str, tuple[Any, Any]], made: Path) -> None:
    """Raise ConfigError if anything is other: what → (value that `file` says, value asked for)."""
    if not other:
        return
    listed = [f"{key} {before}, asked for is {now}" for key, (before, now) in list(other.items())[:SHOWN]]
    more = f"; and {len(other) - SHOWN} more" if len(other) > SHOWN else ""
    raise ConfigError(
        f"{file}: was made with {'; '.join(listed)}{more}; give another --home, or delete {made}"
    )
