"""What a search asks of its sweep: exact or screened, and the key by which what it measures is kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import Tensor

from stylex.attfind.discovery import Discovery
from stylex.attfind.effects import Activation
from stylex.attfind.screening import FEWEST_IMAGES, stages
from stylex.attfind.shards import Record, Shards
from stylex.config import AttFindSettings
from stylex.errors import DataError
from stylex.model import Model
from stylex.run import checksum

SELECTION = {
    "count",
    "method",
    "effect",
    "max_image_effect",
    "independent_threshold",
    "independent_min_share",
    "unstable_threshold",
    "unstable_max_share",
}
"""Settings of which attributes are selected, not of how effects are measured."""


def settle(
    folder: Path, model: Model, found: Discovery, settings: AttFindSettings, one_vs_one: bool
) -> AttFindSettings:
    """Settings with the sweep to be done: an exact one where it is there and nobody asked for another.

    Args:
        folder: effects/ of the run.

    Raises:
        DataError: as for `resolve`.
    """
    asked, *others = _choices(model, found, settings, one_vs_one)
    for other in others:
        if kept_shards(folder, sweep_key(model, found, other), found, other) is not None:
            return other
    return asked


def resolve(
    settings: AttFindSettings, logits: Tensor, one_vs_one: bool, activation: Activation
) -> AttFindSettings:
    """Settings that say how the sweep is done: exact, or screened where that was asked for or is worth it.

    Exact also where there are so few images that the first stage has them all.

    Args:
        logits: [N, K] of the discovery images, unchanged.

    Raises:
        DataError: screening was asked for together with what needs every effect.
    """
    everything = "attributes from every class to every other" if one_vs_one else None
    if settings.discriminator_filter is not None:
        everything = "the discriminator's filter"
    if settings.sweep == "screened" and everything is not None:
        raise DataError(f"{everything} needs the effects of all coordinates: search with --exact")
    few = len(stages(logits.numpy(), activation, 0).ends) == 1
    if settings.sweep == "auto":
        few = few or everything is not None or len(logits) <= FEWEST_IMAGES
    screened = settings.sweep != "exact" and not few
    return settings.model_copy(update={"sweep": "screened" if screened else "exact"})


def _choices(
    model: Model, found: Discovery, settings: AttFindSettings, one_vs_one: bool
) -> list[AttFindSettings]:
    """As resolved; then, for a screened sweep that nobody asked for, the exact one: done, it spares more."""
    asked = resolve(settings, found.logits, one_vs_one, model.classifier.activation)
    if (settings.sweep, asked.sweep) != ("auto", "screened"):
        return [asked]
    return [asked, asked.model_copy(update={"sweep": "exact"})]


def sweep_keys(model: Model, found: Discovery, settings: AttFindSettings, one_vs_one: bool) -> set[str]:
    """Of the sweeps that a search with these settings goes on with."""
    return {sweep_key(model, found, each) for each in _choices(model, found, settings, one_vs_one)}


def sweep_key(model: Model, found: Discovery, settings: AttFindSettings, precision: str | None = None) -> str:
    """What the logits after changes depend on; two searches of one key measure the same.

    Args:
        settings: as settled.
        precision: of the sweep; by default the model's.
    """
    parts = {
        "styles": checksum({"styles": found.styles, **found.space.tensors()}),
        "logits": checksum({"logits": found.logits}),  # shows what the classifier's weights do not
        "synthesis": checksum(model.generator.synthesis.state_dict()),
        "noise": model.noise,
        "classifier": model.classifier.fingerprint,
        "precision": precision or model.hardware.precision,
        "shift": settings.shift,
        "batch_size": settings.batch_size,
        "stored": settings.stored,
    }
    if settings.sweep == "screened":  # what is measured where hangs on what selection asks for
        parts["screened"] = settings.model_dump(include=SELECTION)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def kept_shards(folder: Path, key: str, found: Discovery, settings: AttFindSettings) -> Shards | None:
    """The shards of an exact sweep, where it has been done."""
    if Record(folder).read().get("key") != key:
        return None
    shards = Shards(folder, key, found.logits, found.space.size, settings.stored)
    return shards if all(shards.file(number).exists() for number in range(len(shards))) else None
