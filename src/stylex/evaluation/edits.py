"""What a factor detector reads in edited images: the raw material of ground truth, before any statistic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from stylex.attfind.attributes import in_class
from stylex.attfind.effects import log_odds
from stylex.evaluation.factors import FactorDetector
from stylex.evaluation.measure import TestImages
from stylex.model import Model
from stylex.stylespace import DirectedCoordinate, StyleSpace

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Edits:
    """Test images outside a target class, each attribute applied alone, and the first k of them at once.

    Attributes:
        rows: [n], which of the test images these are.
        changes: A attributes, best first.
        changed: [A, n, J], how far the detector's probabilities of a factor's values move from those in the
            reconstruction (total variation): 0 not at all, 1 where it is certain of another value. A factor
            that is drawn blurred and tips over at a touch so counts little, where "another value" would not.
        gains: [A, n], change of the target's log-odds.
        counts: C numbers of attributes applied at once.
        together: [C, n, J], whether the likeliest value is another with the first counts[c] at once.
        flipped: [C, n], whether that sent the image to the target class.
        before: [n, J], index of the value read in the reconstruction.
    """

    rows: IntArray
    changes: tuple[DirectedCoordinate, ...]
    changed: FloatArray
    gains: FloatArray
    counts: tuple[int, ...]
    together: BoolArray
    flipped: BoolArray
    before: IntArray


def read_edits(
    model: Model,
    space: StyleSpace,
    test: TestImages,
    target: int,
    changes: Sequence[DirectedCoordinate],
    counts: Sequence[int],
    detector: FactorDetector,
) -> Edits:
    """Apply attributes to the test images whose reconstruction is outside the target, read the factors."""
    activation = model.classifier.activation
    rows = np.flatnonzero(~in_class(test.logits, target, activation)).astype(np.int64)
    sure = detector.probabilities(test.reconstructions[torch.from_numpy(rows)])
    before = _likeliest(sure)
    odds = log_odds(test.logits[rows].astype(np.float64), activation)[:, target]
    styles = test.styles[torch.from_numpy(rows)]
    shape = (len(rows), len(detector.factors))
    fitting = tuple(k for k in counts if k <= len(changes))
    changed = np.zeros((len(changes), *shape))
    gains = np.zeros((len(changes), len(rows)))
    together = np.zeros((len(fitting), *shape), np.bool_)
    flipped = np.zeros((len(fitting), len(rows)), np.bool_)
    for first in range(0, len(rows), model.batch_size):
        part = slice(first, first + model.batch_size)
        for number, change in enumerate(changes):
            images = model.synthesise(space.shift(styles[part], [change]))
            after = log_odds(model.classify(images).double().cpu().numpy(), activation)[:, target]
            gains[number, part] = after - odds[part]
            now = detector.probabilities(images)
            apart = [np.abs(now[name] - sure[name][part]).sum(axis=1) / 2 for name in detector.factors]
            changed[number, part] = np.stack(apart, axis=1)
        for number, count in enumerate(fitting):
            images = model.synthesise(space.shift(styles[part], list(changes[:count])))
            flipped[number, part] = in_class(model.classify(images).cpu().numpy(), target, activation)
            together[number, part] = _likeliest(detector.probabilities(images)) != before[part]
    return Edits(rows, tuple(changes), changed, gains, fitting, together, flipped, before)


def _likeliest(probabilities: Mapping[str, FloatArray]) -> IntArray:
    """Index of the likeliest value of every factor, [n, J]."""
    return np.stack([each.argmax(axis=1) for each in probabilities.values()], axis=1).astype(np.int64)
