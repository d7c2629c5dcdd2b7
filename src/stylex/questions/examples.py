"""Which images a question is put with: drawn over the whole set, since sets are often sorted by class."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]
LabelArray = npt.NDArray[np.int64]


def spread(count: int, most: int, seed: int, labels: LabelArray | None = None) -> IndexArray:
    """At most `most` of `count` images, at random and as many of each class as there are: [n], in order.

    A class that runs out leaves its share to the others.

    Args:
        labels: [count], the class of each image; without them all are one class.
    """
    strata = _strata(count, labels)
    quotas = _shares(np.array([len(each) for each in strata], np.int64), most)
    random = np.random.default_rng(seed)
    drawn = [random.choice(each, quota, replace=False) for each, quota in zip(strata, quotas, strict=True)]
    return np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64)


def matched(
    has: npt.NDArray[np.bool_], most: int, seed: int, labels: LabelArray | None = None
) -> tuple[IndexArray, IndexArray]:
    """At most `most` images with something and as many without, as many of each class: two times [n].

    The two differ in what is asked about and not in the class. Images of a class in which all have it, or
    none, tell nothing and stay out.

    Args:
        has: [N], which of the images have it.
        labels: [N], the class of each; without them all are one class.
    """
    strata = _strata(len(has), labels)
    pairs = [(each[has[each]], each[~has[each]]) for each in strata]
    quotas = _shares(np.array([min(map(len, pair)) for pair in pairs], np.int64), most)
    random = np.random.default_rng(seed)
    found = []
    for kind in (0, 1):
        drawn = [random.choice(pair[kind], n, replace=False) for pair, n in zip(pairs, quotas, strict=True)]
        found.append(np.sort(np.concatenate(drawn)) if drawn else np.empty(0, np.int64))
    return found[0], found[1]


def _strata(count: int, labels: LabelArray | None) -> list[IndexArray]:
    """Positions of the images of each class."""
    if labels is None:
        return [np.arange(count, dtype=np.int64)]
    return [np.flatnonzero(labels == label).astype(np.int64) for label in np.unique(labels)]


def _shares(sizes: IndexArray, most: int) -> IndexArray:
    """How many of each class, at most `most` in all: the same number, in so far as there are as many."""
    shares = np.zeros_like(sizes)
    while most > 0 and (open_ := np.flatnonzero(shares < sizes)).size:
        more = max(1, most // len(open_))
        for place in open_[:most]:
            taken = min(more, int(sizes[place] - shares[place]))
            shares[place] += taken
            most -= taken
    return shares
