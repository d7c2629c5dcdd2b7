"""What an attribute does, in pictures: pairs of images before and after, and where the pixels change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind import Attribute
from stylex.attfind.attributes import in_class
from stylex.counterfactuals import to_picture
from stylex.evaluation.measure import TestImages
from stylex.explainer import Explainer
from stylex.report.content import Pair

CANDIDATES = 64
"""Images tried for the pairs of an attribute: those farthest in style from its end."""

MOVED = 0.02
"""Rise of the target's probability from which on an image shows what an attribute does."""


@dataclass(frozen=True)
class Gallery:
    """Images on which an attribute has most to do.

    `rows` are their places among the test images, pair by pair; `where` is the mean absolute change of each
    pixel [H, W] over all images tried, largest 1; `moved` says which pairs rise by MOVED or more.
    """

    pairs: tuple[Pair, ...]
    rows: tuple[int, ...]
    moved: tuple[bool, ...]
    where: npt.NDArray[np.float32]


def outside(explainer: Explainer, test: TestImages, target: str) -> npt.NDArray[np.intp]:
    """Places of test images of other classes whose class survives reconstruction, for pictures."""
    index = explainer.class_names.index(target)
    activation = explainer.model.classifier.activation
    away = ~in_class(test.logits, index, activation) & ~in_class(test.logits_original, index, activation)
    return np.flatnonzero(away)


def gallery(explainer: Explainer, test: TestImages, entry: Attribute, count: int) -> Gallery:
    """Up to `count` pairs: images farthest from the attribute's end, those that it moves first."""
    model, space = explainer.model, explainer.discovery.space
    index = explainer.class_names.index(entry.target)
    rows = outside(explainer, test, entry.target)
    place = int(space.positions[entry.coordinate])
    way = (test.styles[:, place] - space.end(entry.direction)[entry.coordinate]).abs().cpu().numpy()
    rows = rows[np.argsort(-way[rows], kind="stable")[: max(CANDIDATES, count)]]
    before = test.reconstructions[torch.from_numpy(rows)]
    after = model.synthesise(space.shift(test.styles[torch.from_numpy(rows)], [entry.change]))
    logits = model.classify(after).cpu()
    probabilities = model.classifier.probabilities
    before_p = probabilities(torch.from_numpy(test.logits[rows]))[:, index].numpy()
    after_p = probabilities(logits)[:, index].numpy()
    flipped = in_class(logits.numpy(), index, model.classifier.activation)
    still = after_p - before_p <= MOVED
    order = np.argsort(still, kind="stable")[:count].tolist()
    pairs = tuple(
        Pair(
            name=test.names[rows[i]],
            before=to_picture(before[i]),
            after=to_picture(after[i]),
            probability_before=float(before_p[i]),
            probability_after=float(after_p[i]),
            flipped=bool(flipped[i]),
        )
        for i in order
    )
    shown = tuple(int(rows[i]) for i in order)
    return Gallery(pairs, shown, tuple(not bool(still[i]) for i in order), _where(before, after))


def _where(before: Tensor, after: Tensor) -> npt.NDArray[np.float32]:
    """Mean absolute change of each pixel [H, W], largest 1; 0 where there are no images."""
    if not len(before):
        return np.zeros(tuple(before.shape[2:]), np.float32)
    difference = (after - before).abs().mean(dim=(0, 1)).cpu().numpy()
    return np.asarray(difference / max(float(difference.max()), 1e-8), np.float32)
