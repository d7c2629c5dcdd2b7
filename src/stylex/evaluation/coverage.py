"""Coverage: of which images can the model speak at all? Where reconstruction fails, no explanation counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stylex.attfind.effects import Activation
from stylex.errors import DataError
from stylex.evaluation.intervals import Interval, wilson
from stylex.evaluation.measure import TestImages, same_class

TRUSTED = 0.9
"""Share of images whose class must survive reconstruction."""

LEAST_IMAGES = 10
"""Fewer images than this say nothing about a group."""


@dataclass(frozen=True)
class Coverage:
    """How well reconstruction covers one group of test images.

    Attributes:
        group: its name.
        agreement: share of images whose class survives reconstruction.
        l1: mean absolute difference of a pixel, images in [-1, 1].
    """

    group: str
    agreement: Interval
    l1: float

    @property
    def warning(self) -> str | None:
        """What to know before an explanation of this group is trusted, or None."""
        kept = self.agreement
        if kept.estimate < TRUSTED:
            lost = round((1 - kept.estimate) * kept.n)
            return (
                f"{self.group}: the reconstruction changes the class of {lost} of {kept.n} images; "
                "explanations there are about other images and should not be trusted"
            )
        if kept.n < LEAST_IMAGES:
            return (
                f"{self.group}: {kept.n} test images are too few to say whether explanations can be trusted"
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "group": self.group,
            "agreement": self.agreement.to_json(),
            "l1": self.l1,
            "warning": self.warning,
        }


def coverage(test: TestImages, groups: Sequence[str], activation: Activation) -> tuple[Coverage, ...]:
    """Coverage of every group, in order of name.

    Args:
        groups: [N], which group each test image belongs to.

    Raises:
        DataError: not one group an image.
    """
    if len(groups) != len(test.names):
        raise DataError(f"{len(groups)} groups for {len(test.names)} test images: give one an image")
    kept = same_class(test.logits_original, test.logits, activation)
    apart = (test.images.to(test.reconstructions.device) - test.reconstructions).abs().mean(dim=(1, 2, 3))
    labels, distances = np.asarray(groups), apart.double().cpu().numpy()
    return tuple(
        Coverage(
            str(group),
            wilson(int(kept[labels == group].sum()), int((labels == group).sum())),
            float(distances[labels == group].mean()),
        )
        for group in np.unique(labels)
    )


def by_class(test: TestImages, class_names: Sequence[str], activation: Activation) -> tuple[Coverage, ...]:
    """Coverage by the class of the original; of labels that do not exclude each other, as a whole."""
    if activation == "sigmoid":
        return coverage(test, ["all images"] * len(test.names), activation)
    names = [f"class '{class_names[index]}'" for index in test.logits_original.argmax(axis=1)]
    return coverage(test, names, activation)
