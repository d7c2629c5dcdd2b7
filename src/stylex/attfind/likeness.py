"""Attributes that do the same: coordinates whose changes to the same images point the same way.

Subset selection picks coordinates that explain other images than those before (Lang et al. 2021, "subset"),
so that a cause with several coordinates, such as a hair colour of many shades, comes back rank after rank.
Neither the paper nor the study says which attributes are one; this is ours. The ranking stays as it was
selected.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import Findings, in_class
from stylex.model import Model
from stylex.stylespace import DirectedCoordinate, StyleSpace

LIKENESS_IMAGES = 32
"""Images outside a class on which its attributes are compared."""

VISIBLE = 1e-3
"""Root mean square of a change below which an attribute leaves an image as it is (pixels from -1 to 1)."""

FloatArray = npt.NDArray[np.float64]


def mark_repeats(
    model: Model, space: StyleSpace, styles: Tensor, logits: Tensor, findings: Findings
) -> Findings:
    """Findings whose attributes say which one before them they repeat, if `settings.alike` says from when.

    Args:
        styles, logits: of the images searched, [N, T] and [N, K]; for a class, LIKENESS_IMAGES of those
            outside it are looked at, spread evenly.
    """
    settings = findings.settings
    if settings.alike is None:
        return findings
    marked = dict(findings.attributes)
    for target, name in enumerate(model.class_names):
        found = findings.attributes[name]
        outside = np.flatnonzero(~in_class(logits.cpu().numpy(), target, model.classifier.activation))
        if len(found) < 2 or not len(outside):
            continue
        some = np.unique(np.linspace(0, len(outside) - 1, min(LIKENESS_IMAGES, len(outside))).astype(int))
        shown = styles[torch.from_numpy(outside[some]).to(styles.device)]
        alike = likeness(model, space, shown, [entry.change for entry in found], settings.shift)
        marked[name] = tuple(
            replace(entry, repeats=None if first is None else first + 1)
            for entry, first in zip(found, repeats(alike, settings.alike), strict=True)
        )
    return replace(findings, attributes=marked)


@torch.no_grad()
def likeness(
    model: Model, space: StyleSpace, styles: Tensor, changes: Sequence[DirectedCoordinate], shift: float = 1.0
) -> FloatArray:
    """How alike changes look, [A, A]: the cosine between what two of them do to one image, mean over images.

    1: the same change of the picture, stronger or weaker; 0: other places, or other colours; -1: opposites.
    Images that either leaves as it is do not count; 0 where none is left.

    Args:
        styles: of the images, [n, T]; one image's edits are held at a time.
        changes: A changes, each alone, by `shift` of the way to the end of its range.
    """
    total = np.zeros((len(changes), len(changes)))
    counts = np.zeros_like(total)
    for own in torch.split(styles, 1):
        edited = torch.cat([own, *(space.shift(own, [change], by=shift) for change in changes)])
        drawn = [model.synthesise(part) for part in torch.split(edited, model.batch_size)]
        images = torch.cat([part.flatten(1).float().cpu() for part in drawn])
        apart = images[1:] - images[0]
        sizes = apart.norm(dim=1).double().numpy()
        seen = sizes > VISIBLE * apart.shape[1] ** 0.5
        both = np.outer(seen, seen)
        products = (apart @ apart.T).double().numpy()
        total += np.where(both, products / np.maximum(np.outer(sizes, sizes), 1e-12), 0.0)
        counts += both
    found: FloatArray = total / np.maximum(counts, 1)
    return found


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
