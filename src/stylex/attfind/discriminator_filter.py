"""AttFind's optional filter: a coordinate that makes images unreal to the discriminator is no attribute."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from stylex.attfind.selection import EffectsArray
from stylex.model import Model
from stylex.stylespace import StyleSpace

IMAGES = 10
"""Images looked at in each direction: the first whose effect exceeds EFFECT."""
EFFECT = 0.2
SHIFT = 2.0
"""How far the coordinate is moved, as a multiple of the way to the end of its range."""


class DiscriminatorFilter:
    """accept(target, coordinate): whether the discriminator lets a coordinate pass (notebook; facts, item 6).

    In each direction, the first 10 images on which the effect exceeds 0.2 are taken, the coordinate is moved
    by twice the way to its end, and the score, conditioned on the classifier's view of the edited image,
    compared with the score before. A change by more than `limit` on any of these images refuses the
    coordinate.

    Args:
        styles: [N, T], of the images that effects were measured on.
        effects: [N, 2, S, K].
        limit: the notebook has 0.2.

    Raises:
        RunError: the model came without a discriminator.
    """

    def __init__(
        self, model: Model, space: StyleSpace, styles: Tensor, effects: EffectsArray, limit: float
    ) -> None:
        self._model, self._space, self._styles, self._effects, self._limit = (
            model,
            space,
            styles,
            effects,
            limit,
        )
        self._before = self._score(styles)
        self._accepts = cache(self._judge)

    def __call__(self, target: int, coordinate: int) -> bool:
        return self._accepts(target, coordinate)

    def _score(self, styles: Tensor) -> Tensor:
        """Scores [N] of styles [N, T]; no more than a batch of the model's is held as images."""
        found = []
        for part in torch.split(styles, self._model.batch_size):
            images = self._model.synthesise(part)
            found.append(self._model.scores(images, self._model.classify(images)).cpu())
        return torch.cat(found)

    def _judge(self, target: int, coordinate: int) -> bool:
        for direction in (0, 1):
            moved = np.flatnonzero(self._effects[:, direction, coordinate, target] > EFFECT)[:IMAGES]
            if not len(moved):
                continue
            chosen = torch.from_numpy(moved)
            after = self._score(self._space.shift(self._styles[chosen], [(direction, coordinate)], by=SHIFT))
            if bool(((after - self._before[chosen]).abs() > self._limit).any()):
                return False
        return True
