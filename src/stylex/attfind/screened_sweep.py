"""A screened sweep on a run: stage after stage measured, what is left judged and kept between them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from stylex.attfind.attributes import ScreenedStage, in_class, select, sought
from stylex.attfind.class_effects import class_effects, effects_of
from stylex.attfind.discovery import Discovery
from stylex.attfind.first_order import (
    first_order,
    has_gradients,
    images_at_once,
    large_effects,
    too_many,
)
from stylex.attfind.screening import Left, Stages, stages, survivors
from stylex.attfind.shards import Record, ScreenedShards
from stylex.config import AttFindSettings
from stylex.errors import CheckpointError, RunError
from stylex.model import Model
from stylex.parallel import World
from stylex.run import read_json, read_tensors, write_json, write_tensors

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
    memory: int | None = None,
) -> ScreenedShards:
    """Measure stage after stage, each what the one before left open; see `screening`.

    Args:
        folder, key: of the shards.
        measured: `measure` with everything said but the shards, `numbers` and `wanted`.
        memory: bytes that first-order effects may take, see `images_at_once`.

    Returns:
        The shards, complete, with the images that are unstable.

    Raises:
        ConfigError: the memory is too small for one image.
    """
    plan = stages(found.logits.numpy(), model.classifier.activation, seed)
    shards = ScreenedShards(folder, key, found.logits, found.space.size, settings.stored, plan)
    earlier: Left | None = None
    if world.first:
        shards.begin()  # before anything is judged and kept beside them
    for stage in range(len(plan.ends)):
        left = world.from_first(partial(_left, shards, stage, earlier, found, model, settings, seed, memory))
        earlier = left
        shards.open_changes(stage, left.changes)
        wanted = torch.from_numpy(shards.open_changes(stage))
        measured(shards, numbers=shards.numbers(stage), wanted=wanted)
    last = len(plan.ends) - 1
    shards.unstable = world.from_first(partial(_unstable, shards, last, found, model, settings))
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
    memory: int | None,
) -> Left:
    """The changes that a stage measures: as recorded, or judged by what the stages before it measured.

    The first stage: by first-order effects, or everything where there are none.
    """
    record = _record(shards, stage)
    known = _recorded_left(record, shards)
    if stage == 0 and has_gradients(model) and settings.unstable_threshold is not None:
        known = known if _large(shards) is not None else None  # later stages ask for it
    if known is not None and not (stage and (known.changes & ~shards.open_changes(stage - 1)).any()):
        return known  # else what came before it was judged anew, and came out otherwise
    if earlier is None:
        result = _likely(shards, found, model, settings, memory)
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


def _record(shards: ScreenedShards, stage: int) -> Path:
    return shards.folder / f"left-{stage}.json"


def _likely(
    shards: ScreenedShards, found: Discovery, model: Model, settings: AttFindSettings, memory: int | None
) -> Left:
    """What the first stage measures; keeps which first-order effects are large."""
    before, activation = found.logits.numpy(), model.classifier.activation
    nobody = np.zeros(len(before), bool)
    at_once = _recorded_at_once(shards, found, model, settings, memory) if has_gradients(model) else 1
    slopes = first_order(model, found.space, found.styles, before, settings, activation, at_once)
    if slopes is None:
        nothing = np.zeros((2, found.space.size), bool)
        return Left(0, ~nothing, None, nothing, nobody)
    unstable = nobody
    if slopes.large is not None:
        write_tensors(_large_file(shards), {"large": torch.from_numpy(slopes.large)}, {"key": shards.key})
        unstable = too_many(slopes.large.sum(axis=1), slopes.large[0].size * before.shape[1], settings)
    return Left(len(before), slopes.likely, None, slopes.strongest, unstable)


def _recorded_at_once(
    shards: ScreenedShards, found: Discovery, model: Model, settings: AttFindSettings, memory: int | None
) -> int:
    """Images whose first-order effects are computed at once; recorded, since their last bits hang on it."""
    record = Record(shards.folder)
    known = record.read()
    if known.get("key") == shards.key and isinstance(known.get("first_order_images"), int):
        return int(known["first_order_images"])
    at_once = images_at_once(model, found.space, found.styles, settings, model.classifier.activation, memory)
    record.write({"key": shards.key, "first_order_images": at_once})
    return at_once


def _large_file(shards: ScreenedShards) -> Path:
    return shards.folder / "first-order.safetensors"


def _large(shards: ScreenedShards) -> npt.NDArray[np.integer] | None:
    """For how many classes first-order effects are large, [N, 2·S]; None: not kept, or damaged."""
    try:
        tensors, header = read_tensors(_large_file(shards))
    except CheckpointError:
        return None
    found = tensors.get("large")
    number, ends, coordinates, _ = shards.shape
    if header.get("key") != shards.key or found is None or found.shape != (number, ends * coordinates):
        return None
    large: npt.NDArray[np.integer] = found.numpy()
    return large


def _unstable(
    shards: ScreenedShards, stage: int, found: Discovery, model: Model, settings: AttFindSettings
) -> npt.NDArray[np.bool_]:
    """Images [N] of which more than the allowed share of all effects is large.

    An effect that a stage up to this one has measured counts as measured, any other as it is to first order;
    without gradients as not large, so that who is left out then would be left out in any case.
    """
    before, activation = found.logits.numpy(), model.classifier.activation
    counts = np.zeros(len(before), np.int64)
    if settings.unstable_threshold is None:
        return np.zeros(len(before), bool)
    large = _large(shards)
    if large is not None:
        counts += large.sum(axis=1, dtype=np.int64)
    for number in (number for each in range(stage + 1) for number in shards.numbers(each)):
        images = list(shards.images(number))
        changes, after = shards.held(number)
        exact = large_effects(effects_of(before[images], after, settings, activation), settings)
        counts[images] += exact.sum(axis=1)
        if large is not None:
            counts[images] -= large[images][:, changes].sum(axis=1, dtype=np.int64)
    return too_many(counts, int(np.prod(shards.shape[1:])), settings)


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
    after = shards.measured(stage - 1)
    images = after.images
    unstable = _unstable(shards, stage - 1, found, model, settings)
    changes = np.flatnonzero(open_.ravel())
    with class_effects(before[images], after, settings, activation, shards.folder.parent) as effects:
        kept, sure = survivors(
            effects[:, 0],
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


def screened_stages(shards: ScreenedShards) -> tuple[ScreenedStage, ...]:
    """How a screened search went, stage by stage where something was judged; from what is recorded."""
    found = []
    for stage in range(len(shards.plan.ends)):
        left = _recorded_left(_record(shards, stage), shards)
        if left is not None and left.images:
            found.append(ScreenedStage(left.images, stage == 0, int(left.changes.sum()), left.sure))
    return tuple(found)
