"""A screened sweep on a run: stage after stage measured, what is left judged and kept between them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stylex.attfind.attributes import in_class, select, sought
from stylex.attfind.class_effects import class_effects, effects_of
from stylex.attfind.discovery import Discovery
from stylex.attfind.screening import Left, Stages, first_order, stages, survivors
from stylex.attfind.selection import unstable_images
from stylex.attfind.shards import ScreenedShards
from stylex.config import AttFindSettings
from stylex.errors import RunError
from stylex.model import Model
from stylex.parallel import World
from stylex.run import Run, read_json, write_json

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
        The shards, complete, with the images that are unstable.
    """
    plan = stages(found.logits.numpy(), model.classifier.activation, seed)
    shards = ScreenedShards(folder, key, found.logits, found.space.size, settings.stored, plan)
    earlier: Left | None = None
    if world.first:
        shards.begin()  # before anything is judged and kept beside them
    for stage in range(len(plan.ends)):
        left = world.from_first(partial(_left, shards, stage, earlier, found, model, settings, seed))
        earlier, shards.unstable = left, left.unstable
        shards.open_changes(stage, left.changes)
        wanted = torch.from_numpy(shards.open_changes(stage))
        measured(shards, numbers=shards.numbers(stage), wanted=wanted)
    if len(model.class_names) == 2 and model.classifier.activation == "softmax":
        opposite = world.from_first(partial(_opposite, shards, found, model, settings))
        if opposite.any():
            number = len(found.logits)
            whole = Stages(tuple(range(number)), (number,))
            more = ScreenedShards(
                folder, key, found.logits, found.space.size, settings.stored, whole, "opposite"
            )
            more.open_changes(0, opposite)
            measured(more, wanted=torch.from_numpy(opposite), on_progress=None, on_changes=None)
            shards.more = more
    return shards


def _opposite(
    shards: ScreenedShards, found: Discovery, model: Model, settings: AttFindSettings
) -> npt.NDArray[np.bool_]:
    """Changes [2, S] that merging the lists of two classes asks for and no stage has measured.

    It orders coordinates by what their ends do towards one class and the other.
    """
    before, activation = found.logits.numpy(), model.classifier.activation
    last = shards.open_changes(len(shards.plan.ends) - 1)
    wanted = np.zeros_like(last)
    stable = np.ones(len(before), bool) if shards.unstable is None else ~shards.unstable
    with class_effects(before, shards, settings, activation, shards.folder.parent) as effects:
        for target in sought(before, activation):
            images = ~in_class(before, target, activation) & stable
            if images.any():
                for direction, coordinate in select(effects, target, settings, images, None):
                    wanted[1 - direction, coordinate] = True
    return np.asarray(wanted & ~last)


def _left(
    shards: ScreenedShards,
    stage: int,
    earlier: Left | None,
    found: Discovery,
    model: Model,
    settings: AttFindSettings,
    seed: int,
) -> Left:
    """The changes that a stage measures: as recorded, or judged by what the stages before it measured.

    The first stage: by first-order effects, or everything where there are none.
    """
    record = shards.folder / f"left-{stage}.json"
    known = _recorded_left(record, shards)
    if known is not None and not (stage and (known.changes & ~shards.open_changes(stage - 1)).any()):
        return known  # else what came before it was judged anew, and came out otherwise
    if earlier is None:
        result = _likely(found, model, settings)
    else:
        result = _judged(shards, stage, earlier, found, model, settings, seed)
    write_json(record, {"key": shards.key, **result.to_json()})
    sure = "" if result.sure is None else f", {result.sure:.1%} sure"
    logger.info(
        "%d of %d changes are left after %d images%s",
        result.changes.sum(),
        result.changes.size,
        result.images,
        sure,
    )
    return result


def _likely(found: Discovery, model: Model, settings: AttFindSettings) -> Left:
    """What the first stage measures."""
    before, activation = found.logits.numpy(), model.classifier.activation
    slopes = first_order(model, found.space, found.styles, before, settings, activation)
    nobody = np.zeros(len(before), bool)
    if slopes is None:
        nothing = np.zeros((2, found.space.size), bool)
        return Left(0, ~nothing, None, nothing, nobody)
    unstable = nobody if slopes.unstable is None else slopes.unstable
    return Left(len(before), slopes.likely, None, slopes.strongest, unstable)


def _judged(
    shards: ScreenedShards,
    stage: int,
    earlier: Left,
    found: Discovery,
    model: Model,
    settings: AttFindSettings,
    seed: int,
) -> Left:
    """What a later stage measures, by the effects that the stages before it found."""
    before, activation = found.logits.numpy(), model.classifier.activation
    open_ = shards.open_changes(stage - 1)
    images, after = shards.measured(stage - 1)
    effects = effects_of(before[images], after, settings, activation)
    unstable = earlier.unstable
    if open_.all() and settings.unstable_threshold is not None:  # else no share of all can be told
        whole = effects.reshape(len(images), *open_.shape, -1)
        exact = unstable_images(whole, settings.unstable_threshold, settings.unstable_max_share)
        unstable = unstable.copy()
        unstable[images] = exact
    changes = np.flatnonzero(open_.ravel())
    kept, sure = survivors(
        effects,
        changes % open_.shape[1],
        before[images],
        ~unstable[images],
        settings,
        activation,
        seed + stage,
    )
    left = np.zeros(open_.size, bool)
    left[changes[kept]] = True
    left = left.reshape(open_.shape) | (earlier.protected & open_)
    return Left(len(images), left, sure, earlier.protected, unstable)


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
    """How the run's screened search went, stage by stage where something was left out.

    Images judged by, whether by first-order effects, changes left, and how sure that is (see `survivors`).
    """
    files = sorted((run.path / "effects").glob("left-*.json"))
    notes = [read_json(file) for file in files]
    return tuple(
        {
            "images": each["images"],
            "first_order": each["sure"] is None,
            "changes_left": len(each["changes"]),
            "sure": each["sure"],
        }
        for each in notes
        if each["images"]
    )
