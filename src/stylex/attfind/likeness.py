"""Attributes that do the same: coordinates whose changes to the same images point the same way.

Subset selection picks coordinates that explain other images than those before (Lang et al. 2021, "subset"),
so that a cause with several coordinates, such as a hair colour of many shades, comes back rank after rank,
and what helps the few images that a strong coordinate leaves comes before the next strong one. Neither the
paper nor the study says which attributes are one, or puts them into another order; both are ours, and
`order: selection` keeps the order of the picks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import Attribute, Findings, in_class
from stylex.model import Model
from stylex.stylespace import DirectedCoordinate, StyleSpace

LIKENESS_IMAGES = 32
"""Images outside a class on which its attributes are compared."""

VISIBLE = 1e-3
"""Root mean square of a change below which an attribute leaves an image as it is (pixels from -1 to 1)."""

STANDS_FOR = 0.7
"""Share of the strongest effect from which a coordinate can stand for the others that do the same."""

MINOR = 0.05
"""Share of the strongest effect below which an attribute comes after all others."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Looks:
    """What A changes do to pictures.

    Attributes:
        alike: [A, A], see `looks`.
        sizes: [A], root mean square of the change, mean over images (pixels from -1 to 1).
    """

    alike: FloatArray
    sizes: FloatArray


def mark_repeats(
    model: Model, space: StyleSpace, styles: Tensor, logits: Tensor, findings: Findings
) -> Findings:
    """Findings whose attributes say which one they repeat, if `settings.alike` says from when, in order.

    Args:
        styles, logits: of the images searched, [N, T] and [N, K]; for a class, LIKENESS_IMAGES of those
            outside it are looked at, spread evenly.
    """
    settings = findings.settings
    marked = dict(findings.attributes)
    for target, name in enumerate(model.class_names):
        found = findings.attributes[name]
        outside = np.flatnonzero(~in_class(logits.cpu().numpy(), target, model.classifier.activation))
        if len(found) < 2 or not len(outside):
            continue
        seen = None
        if settings.alike is not None:
            some = np.unique(np.linspace(0, len(outside) - 1, min(LIKENESS_IMAGES, len(outside))).astype(int))
            shown = styles[torch.from_numpy(outside[some]).to(styles.device)]
            seen = looks(model, space, shown, [entry.change for entry in found], settings.shift)
        order = list(range(len(found)))
        same: list[int | None] = [None] * len(found)
        if settings.order == "effect":
            order, same = by_effect(np.array([entry.effect for entry in found]), seen, settings.alike)
        elif seen is not None and settings.alike is not None:
            same = repeats(seen.alike, settings.alike)
        marked[name] = _ranked(found, order, same)
    return replace(findings, attributes=marked)


def _ranked(
    found: Sequence[Attribute], order: Sequence[int], same: Sequence[int | None]
) -> tuple[Attribute, ...]:
    """Attributes in an order, with their ranks; `same` says for each one found which of them it repeats."""
    rank = {number: place for place, number in enumerate(order, 1)}
    return tuple(
        replace(
            found[number],
            rank=rank[number],
            repeats=None if (of := same[number]) is None else rank[of],
        )
        for number in order
    )


def by_effect(
    effects: FloatArray, seen: Looks | None, threshold: float | None
) -> tuple[list[int], list[int | None]]:
    """The order of attributes by what they do, and for each the one that it repeats (None: it is distinct).

    From the strongest on: of those that do the same as it, the one with the largest effect for the change of
    the picture stands for all, if it has STANDS_FOR of the strongest's effect: an end of a range that lies
    further than the classifier asks for changes more than the cause. What does the same as that one repeats
    it; the strongest of what is left goes on. So no two that are distinct do the same, and whatever repeats
    does the same as what it repeats. What is distinct comes first, then repetitions, then distinct causes
    without an attribute of MINOR of the strongest effect, then repetitions that have less; among equals the
    stronger.

    Args:
        effects: [A], mean over images.
        seen: how the A changes look; None where they are not compared, and so are all distinct.
        threshold: likeness from which two attributes do the same.

    >>> alike = np.array([[1, 0, 0], [0, 1, 0.9], [0, 0.9, 1]])
    >>> by_effect(np.array([1.0, 4.0, 3.0]), Looks(alike, np.array([1, 4, 1])), 0.5)
    ([2, 0, 1], [None, 2, None])
    """
    if seen is None or threshold is None:
        seen, threshold = Looks(np.eye(len(effects)), np.ones(len(effects))), math.inf
    alike, sizes = seen.alike, np.maximum(seen.sizes, VISIBLE)
    strongest: list[int] = np.argsort(-effects, kind="stable").tolist()
    same: list[int | None] = [None] * len(effects)
    least = MINOR * max(0.0, effects[strongest[0]])
    places: dict[int, int] = {}
    left = strongest
    while left:
        stands = left[0]
        if effects[stands] > 0:
            able = [number for number in left if alike[number, stands] >= threshold]
            able = [number for number in able if effects[number] >= STANDS_FOR * effects[stands]]
            stands = max([stands, *able], key=lambda number: float(effects[number] / sizes[number]))
        places[stands] = 0 if effects[left[0]] >= least and effects[left[0]] > 0 else 2
        repeating = [n for n in left if n != stands and alike[n, stands] >= threshold]
        for number in repeating:
            same[number] = stands
            places[number] = 1 if effects[number] >= least and effects[number] > 0 else 3
        left = [number for number in left if number not in places]
    return sorted(strongest, key=places.__getitem__), same


@torch.no_grad()
def looks(
    model: Model, space: StyleSpace, styles: Tensor, changes: Sequence[DirectedCoordinate], shift: float = 1.0
) -> Looks:
    """How A changes look: how alike they are, and how large.

    Likeness is the cosine between what two of them do to one image, mean over images. 1: the same change of
    the picture, stronger or weaker; 0: other places, or other colours; -1: opposites. Images that either
    leaves as it is do not count; 0 where none is left.

    Args:
        styles: of the images, [n, T]; one image's edits are held at a time.
        changes: A changes, each alone, by `shift` of the way to the end of its range.
    """
    total = np.zeros((len(changes), len(changes)))
    counts = np.zeros_like(total)
    moved = np.zeros(len(changes))
    for own in torch.split(styles, 1):
        edited = torch.cat([own, *(space.shift(own, [change], by=shift) for change in changes)])
        drawn = [model.synthesise(part) for part in torch.split(edited, model.batch_size)]
        images = torch.cat([part.flatten(1).float().cpu() for part in drawn])
        apart = images[1:] - images[0]
        sizes = apart.norm(dim=1).double().numpy()
        moved += sizes / apart.shape[1] ** 0.5
        seen = sizes > VISIBLE * apart.shape[1] ** 0.5
        both = np.outer(seen, seen)
        products = (apart @ apart.T).double().numpy()
        total += np.where(both, products / np.maximum(np.outer(sizes, sizes), 1e-12), 0.0)
        counts += both
    return Looks(total / np.maximum(counts, 1), moved / len(styles))


def repeats(alike: FloatArray, threshold: float) -> list[int | None]:
    """For each attribute in order of rank, the earlier one that it is most like; None where it is distinct.

    Only those that are distinct themselves are compared with, so that every repetition names one that is not.

    Args:
        alike: likeness [A, A].
        threshold: likeness from which one attribute repeats another.

    >>> repeats(np.array([[1, 0.1, 0.8], [0.1, 1, 0.2], [0.8, 0.2, 1]]), 0.5)
    [None, None, 0]
    """
    found: list[int | None] = []
    for number in range(len(alike)):
        distinct = [earlier for earlier, of in enumerate(found) if of is None]
        like = max(distinct, key=lambda earlier: alike[number, earlier], default=None)
        found.append(like if like is not None and alike[number, like] >= threshold else None)
    return found
