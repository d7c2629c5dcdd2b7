"""Effects by gradients, cheap and rough: which changes are likely to be selected, which images unstable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import in_class, sought
from stylex.attfind.batches import SAFE_SHARE
from stylex.attfind.effects import Activation
from stylex.config import AttFindSettings
from stylex.errors import ConfigError
from stylex.hardware import (
    available_memory,
    peak_memory,
    release_freed_memory,
    start_peak_memory,
    used_memory,
)
from stylex.model import Model
from stylex.networks import Synthesis
from stylex.stylespace import StyleSpace

LIKELY_SHARE = 0.125
LIKELY_LEAST = 240
LIKELY_EACH = 12
"""Changes towards a class that the first stage measures, the largest by first-order effect on the mean: the
most of a share of the coordinates, a number, and so many for each attribute wanted."""

FIRST_ORDER_IMAGES = 8
"""Images whose first-order effects are computed at once, where memory allows."""

STRONGEST = 3
"""First-order effects of each image that count."""

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class FirstOrder:
    """What first-order effects of all images say.

    Attributes:
        likely: changes [2, S] among the largest on the mean, or of several images; all of them where for some
            target no effect is positive, so that gradients tell nothing (a classifier that is saturated).
        strongest: of these, the changes among the largest of several images.
        large: of every image and change, for how many classes the effect is large, [N, 2·S], see
            `large_effects`; None: not asked for.
    """

    likely: BoolArray
    strongest: BoolArray
    large: npt.NDArray[np.integer] | None


def first_order(
    model: Model,
    space: StyleSpace,
    styles: Tensor,
    before: npt.NDArray[np.float32],
    settings: AttFindSettings,
    activation: Activation,
    at_once: int = FIRST_ORDER_IMAGES,
) -> FirstOrder | None:
    """Effects as they would be if log-odds were linear in styles, of all images; None without gradients.

    A change is likely to be selected for a target where its positive effect is among the largest on the mean
    over the stable images of other classes, or among the three strongest of two of them or one in a hundred.
    One backward pass for each class and batch of images; of an image, no more is held than `large`.

    Args:
        styles: [N, T].
        before: logits [N, K] of these images.
        at_once: images in a batch, see `images_at_once`.
    """
    if not has_gradients(model):
        return None
    targets = sought(before, activation)
    changes = 2 * space.size
    sums = np.zeros((before.shape[1], changes))
    counts = np.zeros((before.shape[1], changes), np.int64)
    large = None
    if settings.unstable_threshold is not None:
        large = np.zeros((len(before), changes), np.uint8 if before.shape[1] < 256 else np.int32)
    for first in range(0, len(styles), at_once):
        rows = slice(first, first + at_once)
        effects = first_order_effects(model, space, styles[rows], activation, settings.shift, settings.effect)
        steady = np.ones(len(effects), bool)
        if large is not None:
            large[rows] = large_effects(effects, settings).reshape(len(effects), changes)
            steady = ~too_many(large[rows].sum(axis=1), changes * before.shape[1], settings)
        for target in targets:
            others = ~in_class(before[rows], target, activation) & steady
            gains = np.maximum(effects[others, :, :, target], 0).reshape(-1, changes)
            sums[target] += gains.sum(axis=0)
            top = np.argpartition(-gains, min(STRONGEST, changes) - 1, axis=1)[:, :STRONGEST]
            np.add.at(counts[target], top[np.take_along_axis(gains, top, axis=1) > 0], 1)
    strongest: BoolArray = np.asarray((counts >= _needed(len(before))).any(axis=0))
    likely = strongest.copy()
    for target in targets:
        most = max(LIKELY_LEAST, LIKELY_EACH * settings.count, int(LIKELY_SHARE * space.size))
        largest = np.argsort(-sums[target], kind="stable")[:most]
        likely[largest[sums[target][largest] > 0]] = True
        if not sums[target].any():
            likely[:] = True
    return FirstOrder(likely.reshape(2, -1), strongest.reshape(2, -1), large)


def has_gradients(model: Model) -> bool:
    """Whether first-order effects can be had."""
    return model.classifier.differentiable and isinstance(model.generator.synthesis, Synthesis)


def images_at_once(
    model: Model,
    space: StyleSpace,
    styles: Tensor,
    settings: AttFindSettings,
    activation: Activation,
    memory: int | None = None,
) -> int:
    """How many images' first-order effects fit into `memory` bytes, a power of 2: tried with one of them.

    Args:
        styles: [N, T]; the first one is used.
        memory: what they may take above what the process holds; by default half of what is free.

    Raises:
        ConfigError: not even one image fits.
    """
    device = model.hardware.device
    free = available_memory(device)
    limit = memory if memory is not None else None if free is None else int(free * SAFE_SHARE)
    each = 0
    for _ in range(2):  # the first one builds the kernels
        release_freed_memory()
        held = used_memory(device)
        start_peak_memory(device)
        first_order_effects(model, space, styles[:1], activation, settings.shift, settings.effect)
        each = max(1, peak_memory(device) - held)
    if limit is None:
        return FIRST_ORDER_IMAGES
    if each > limit:
        raise ConfigError(
            f"memory is {limit >> 20} MiB, but the gradients of one image take {each >> 20} MiB; give more "
            "with --memory, or do without them: --exact"
        )
    return min(FIRST_ORDER_IMAGES, 1 << ((limit // each).bit_length() - 1))


def large_effects(effects: FloatArray, settings: AttFindSettings) -> npt.NDArray[np.intp]:
    """For how many classes an effect is so large that it speaks for an unstable image, [..., K] → [...].

    Zeros where no images are to be left out.
    """
    if settings.unstable_threshold is None:
        return np.zeros(effects.shape[:-1], np.intp)
    return np.asarray((np.abs(effects) > settings.unstable_threshold).sum(axis=-1))


def too_many(
    large: npt.NDArray[np.integer], entries: int, settings: AttFindSettings
) -> npt.NDArray[np.bool_]:
    """Whether so many of an image's entries are large that it is unstable; as `unstable_images` has it."""
    return np.asarray(large / entries > settings.unstable_max_share)


def _needed(images: int) -> int:
    """Images of which a change must be among the strongest: two, or one of a hundred."""
    return max(2, images // 100)


def first_order_effects(
    model: Model,
    space: StyleSpace,
    styles: Tensor,
    activation: Activation,
    shift: float,
    effect: Literal["log_odds", "logits"] = "log_odds",
) -> npt.NDArray[np.float32]:
    """[n, 2, S, K]: the gradient of the log-odds (or logits) times the way to each end of the range."""
    part = styles.to(model.hardware.device).clone().requires_grad_(True)
    with torch.enable_grad():
        images = model.generator.synthesis(part, model.noise)
        odds = model.classifier(images.clamp(-1, 1))
        if effect == "log_odds":
            odds = _log_odds(odds, activation)
        slopes = [
            torch.autograd.grad(odds[:, k].sum(), part, retain_graph=True)[0] for k in range(odds.shape[1])
        ]
    values = space.searchable(part.detach())
    ends = torch.stack([space.low, space.high])
    ways = shift * (ends[None] - values[:, None])  # [n, 2, S]
    each = [ways * space.searchable(slope)[:, None] for slope in slopes]
    found: npt.NDArray[np.float32] = torch.stack(each, dim=-1).float().cpu().numpy()
    return found


def _log_odds(logits: Tensor, activation: Activation) -> Tensor:
    if activation == "sigmoid":
        return logits
    others = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    rest = logits[:, None, :].masked_fill(others, -torch.inf).logsumexp(dim=2)
    return logits - rest
