"""A screened sweep on a run: stage after stage measured, what is left judged and kept between them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stylex.attfind.class_effects import effects_of
from stylex.attfind.screening import Left, first_order, stages, survivors
from stylex.attfind.selection import unstable_images
from stylex.attfind.shards import ScreenedShards
from stylex.config import AttFindSettings
from stylex.errors import RunError
from stylex.model import Model
from stylex.parallel import World
from stylex.run import Run, read_json, write_json

if TYPE_CHECKING:
    from stylex.attfind.search import Discovery

logger = logging.getLogger("stylex")


def screened_sweep(
    folder: Path,
    key: str,
    found: Discovery,
    model: Model,
    settings: AttFindSettings,
    seed: int,
    world: World,
    measured: Callable[..., None],
) -> ScreenedShards:
    """Measure stage after stage, each what the one before left open; see `screening`.

    Args:
        folder, key: of the shards.
        measured: `measure` with everything said but the shards, `numbers` and `wanted`.

    Returns:
        The shards, complete; in the first process with the images that are unstable.
    """
    plan = stages(found.logits.numpy(), model.classifier.activation, seed)
    shards = ScreenedShards(folder, key, found.logits, found.space.size, settings.stored, plan)
    earlier: Left | None = None
    for stage in range(len(plan.ends)):
        if stage:
            if world.first:
                earlier = _left(shards, stage, earlier, found, model, settings, seed)
                shards.unstable = earlier.unstable
            changes = world.share(earlier.changes if earlier is not None else None)[0]
            assert changes is not None
            shards.open_changes(stage, changes)
        wanted = torch.from_numpy(shards.open_changes(stage))
        measured(shards, numbers=shards.numbers(stage), wanted=wanted)
    return shards


def _left(
    shards: ScreenedShards,
    stage: int,
    earlier: Left | None,
    found: Discovery,
    model: Model,
    settings: AttFindSettings,
    seed: int,
) -> Left:
    """The changes that a stage measures: as recorded, or judged by what the stages before it measured."""
    record = shards.folder / f"left-{stage}.json"
    known = _recorded_left(record, shards)
    if known is not None:
        return known
    before, activation = found.logits.numpy(), model.classifier.activation
    open_: npt.NDArray[np.bool_] = np.asarray(shards.open_changes(stage - 1).any(axis=0))
    images, after = shards.measured(stage - 1)
    effects = effects_of(before[images], after, settings, activation)
    if earlier is None:
        slopes = first_order(model, found.space, found.styles, before, settings, activation)
        protected = np.zeros_like(open_) if slopes is None else slopes.strongest
        unstable = np.zeros(len(before), bool)
        if slopes is not None and slopes.unstable is not None:
            unstable = slopes.unstable
        if settings.unstable_threshold is not None:  # of these everything has been measured
            exact = unstable_images(effects, settings.unstable_threshold, settings.unstable_max_share)
            unstable = unstable.copy()
            unstable[images] = exact
    else:
        protected, unstable = earlier.protected, earlier.unstable
    kept, sure = survivors(effects, before[images], ~unstable[images], settings, activation, seed + stage)
    left = np.zeros_like(open_)
    left[np.flatnonzero(open_)[kept]] = True
    left |= protected & open_
    changes = np.broadcast_to(left, (2, len(left))).copy()
    result = Left(len(images), changes, sure, protected, unstable)
    write_json(record, {"key": shards.key, **result.to_json()})
    logger.info(
        "%d of %d changes are left after %d images, %.1f %% sure",
        changes.sum(),
        changes.size,
        len(images),
        100 * sure,
    )
    return result


def _recorded_left(record: Path, shards: ScreenedShards) -> Left | None:
    """What an earlier search of the same key judged; None where there is nothing, or it is damaged."""
    try:
        content = read_json(record)
        if content["key"] != shards.key:
            return None
        return Left.from_json(content, shards.shape[2], shards.shape[0])
    except (RunError, KeyError, TypeError, IndexError):
        return None


def screening_notes(run: Run) -> tuple[dict[str, Any], ...]:
    """How the run's screened search went, by stage: images judged by, changes left, how sure that is."""
    files = sorted((run.path / "effects").glob("left-*.json"))
    notes = [read_json(file) for file in files]
    return tuple(
        {"images": each["images"], "changes_left": len(each["changes"]), "sure": each["sure"]}
        for each in notes
    )
