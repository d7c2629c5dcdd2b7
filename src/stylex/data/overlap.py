"""Which images of one set are in others too: equal pixels under another name, or the same group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from stylex.data.images import ImageSet

_GRID = 16
"""Pixels along a side by which images are compared first; only those that agree there are compared whole."""

BoolArray = npt.NDArray[np.bool_]


def equal_pixels(images: ImageSet, others: Iterable[ImageSet]) -> BoolArray:
    """Which of N images have exactly the pixels of an image of another set, bool [N].

    Sets of another size have none. What was scaled or compressed anew is another image here.
    """
    found = np.zeros(len(images), np.bool_)
    if not len(images):
        return found
    step = max(1, images.images.shape[1] // _GRID)
    places: defaultdict[bytes, list[int]] = defaultdict(list)
    for place, image in enumerate(images.images):
        places[image[::step, ::step].tobytes()].append(place)
    for other in others:
        if other.images.shape[1:] != images.images.shape[1:]:
            continue
        for image in other.images:
            for place in places.get(image[::step, ::step].tobytes(), ()):
                found[place] = found[place] or np.array_equal(images.images[place], image)
    return found


def equal_group(images: ImageSet, others: Iterable[ImageSet], column: str | None) -> BoolArray:
    """Which of N images share a value of a column (such as a patient) with another set, bool [N].

    An empty cell is shared with nobody; without the column in both nothing is shared.
    """
    if column is None or column not in images.factors:
        return np.zeros(len(images), np.bool_)
    known = {value for other in others for value in other.factors.get(column, ())} - {""}
    return np.array([value in known for value in images.factors[column]], np.bool_)
