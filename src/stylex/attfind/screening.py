"""A search that measures most changes on a few images only, and those that could be selected on all.

Of thousands of coordinates a selection takes a few. All changes are measured on a first part of the images;
which of them could be selected from all images is asked of resampled images (the bootstrap, Efron 1979), and
only those are measured on a larger part, and so on: successive rejects (Audibert et al. 2010), with the
selection itself in place of a mean, since it takes a coordinate that is weak on all images if it explains
those that are left. First-order effects of all images, which cost one backward pass, bring back what moves
images that the first part has none of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import in_class, select
from stylex.attfind.effects import Activation
from stylex.attfind.selection import unstable_images
from stylex.config import AttFindSettings
from stylex.model import Model
from stylex.stylespace import StyleSpace

FIRST_IMAGES = 8
"""Of each class, on which everything is measured."""

GROWTH = 4
"""How many times as many images the next stage has; the last has all."""

REPLICATES = 200
"""Selections from resampled images whose choices stay, and as many fresh ones that show what they miss."""

CONFIDENCE = 0.99
"""Share of the fresh replicates whose whole selection must be among what stays; else theirs stays too."""

ROUNDS = 5
"""How often fresh replicates are drawn at most: where hundreds of coordinates do as little, none is sure."""

SPARE = 1.5
"""Times the number of attributes wanted, taken of each replicate: weak ones change places."""

STRONGEST = 3
"""First-order effects of each image that count."""

FEWEST_IMAGES = 100
"""With no more than that, everything is measured on all where nobody asked for anything."""

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Stages:
    """Which images are measured in which stage: positions in `order` up to each of `ends`."""

    order: tuple[int, ...]
    ends: tuple[int, ...]

    def images(self, stage: int) -> tuple[int, ...]:
        """The images that a stage adds."""
        return self.order[self.ends[stage - 1] if stage else 0 : self.ends[stage]]


def stages(before: npt.NDArray[np.float32], activation: Activation, seed: int) -> Stages:
    """The images in a random order, of every class in turn, and the sizes of the stages.

    Args:
        before: logits [N, K] of the unchanged images.
    """
    random = np.random.default_rng(seed)
    number, classes = before.shape
    members = [random.permutation(np.flatnonzero(in_class(before, k, activation))) for k in range(classes)]
    none = np.ones(number, bool)
    for each in members:
        none[each] = False
    members.append(random.permutation(np.flatnonzero(none)))  # labels: images that have none
    place = np.full(number, np.inf)
    for each in members:
        place[each] = np.minimum(place[each], np.arange(len(each)) + 0.5 * random.random(len(each)))
    order = np.argsort(place, kind="stable")
    ends, size = [], FIRST_IMAGES * classes
    while size < number:
        ends.append(size)
        size *= GROWTH
    return Stages(tuple(order.tolist()), (*ends, number))


def survivors(
    effects: npt.NDArray[np.floating],
    before: npt.NDArray[np.float32],
    open_: BoolArray,
    settings: AttFindSettings,
    activation: Activation,
    seed: int,
) -> tuple[BoolArray, float]:
    """Changes [2, S] that could be selected from all images, judged by these; and how sure that is.

    Both ends of a coordinate stay if one does: rankings ask of both.

    Args:
        effects: [n, 2, S, K] of the images measured so far, 0 where a change is closed.
        before: logits [n, K] of these images, unchanged.
        open_: [2, S], the changes that are still in question.

    Returns:
        The mask, and the share of replicates that were not used for it whose selection lies within it.
    """
    random = np.random.default_rng(seed)
    wanted = settings.model_copy(update={"count": int(settings.count * SPARE)})
    coordinates = np.flatnonzero(open_.any(axis=0))
    narrow = np.ascontiguousarray(effects[:, :, coordinates])
    stable = np.ones(len(before), bool)
    if settings.unstable_threshold is not None:
        stable = ~unstable_images(effects, settings.unstable_threshold, settings.unstable_max_share)
    kept = np.zeros(len(coordinates), bool)
    sure = 1.0
    for target in range(before.shape[1]):
        images = np.flatnonzero(~in_class(before, target, activation) & stable)
        if not len(images):
            continue  # nothing is selected for it here; with all images it may be
        drawn = [_chosen(narrow, target, wanted, images)]
        drawn += [
            _chosen(narrow, target, wanted, random.choice(images, len(images))) for _ in range(REPLICATES)
        ]
        for choice in drawn:
            kept[choice] = True
        for _ in range(ROUNDS):
            fresh = [
                _chosen(narrow, target, settings, random.choice(images, len(images)))
                for _ in range(REPLICATES)
            ]
            within = float(np.mean([kept[choice].all() for choice in fresh]))
            if within >= CONFIDENCE:
                break
            for choice in fresh:
                kept[choice] = True
        sure = min(sure, within)
    mask = np.zeros(open_.shape, bool)
    mask[:, coordinates[kept]] = True
    return mask & open_, sure


def _chosen(
    effects: npt.NDArray[np.floating],
    target: int,
    settings: AttFindSettings,
    images: npt.NDArray[np.intp],
) -> list[int]:
    """Coordinates that are selected for a target from some images, which may occur more than once."""
    part = effects[images]
    found = select(part, target, settings, np.ones(len(part), bool), None)
    return [coordinate for _, coordinate in found]


def first_order_effects(
    model: Model, space: StyleSpace, styles: Tensor, activation: Activation, shift: float
) -> npt.NDArray[np.float32] | None:
    """Effects [N, 2, S, K] as they would be if log-odds were linear in styles; None without gradients.

    One backward pass for each class and batch of images: the gradient of the log-odds times the way to each
    end of the range.
    """
    found = []
    size = min(model.batch_size, 16)
    for first in range(0, len(styles), size):
        part = styles[first : first + size].to(model.hardware.device).clone().requires_grad_(True)
        with torch.enable_grad():
            images = model.generator.synthesis(part, model.noise)
            try:
                odds = _log_odds(model.classifier(images.clamp(-1, 1)), activation)
                slopes = [
                    torch.autograd.grad(odds[:, k].sum(), part, retain_graph=True)[0]
                    for k in range(odds.shape[1])
                ]
            except RuntimeError:
                return None
        values = space.searchable(part.detach())
        ends = torch.stack([space.low, space.high])
        ways = shift * (ends[None] - values[:, None])  # [n, 2, S]
        each = [ways * space.searchable(slope)[:, None] for slope in slopes]
        found.append(torch.stack(each, dim=-1).float().cpu())
    return torch.cat(found).numpy()


def _log_odds(logits: Tensor, activation: Activation) -> Tensor:
    if activation == "sigmoid":
        return logits
    others = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    rest = logits[:, None, :].masked_fill(others, -torch.inf).logsumexp(dim=2)
    return logits - rest


def strongest(
    effects: npt.NDArray[np.floating], before: npt.NDArray[np.float32], activation: Activation
) -> BoolArray:
    """Coordinates, both ends [2, S], among the largest first-order effects of two images or more.

    Of an image of every hundred where there are more than two hundred; towards each class that it is not of.
    """
    number, _, coordinates, classes = effects.shape
    counts = np.zeros((classes, coordinates), np.int64)
    for target in range(classes):
        images = np.flatnonzero(~in_class(before, target, activation))
        best = effects[images, :, :, target].max(axis=1)  # [n, S]
        top = np.argpartition(-best, min(STRONGEST, coordinates) - 1, axis=1)[:, :STRONGEST]
        positive = np.take_along_axis(best, top, axis=1) > 0
        np.add.at(counts[target], top[positive], 1)
    kept = (counts >= max(2, number // 100)).any(axis=0)
    return np.broadcast_to(kept, (2, coordinates)).copy()
