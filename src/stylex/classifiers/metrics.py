"""How good and how honest a classifier's probabilities are: pure functions on arrays."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]

CALIBRATION_BINS = 15
"""Bins of the expected calibration error, as in Guo et al."""


def confusion_matrix(labels: Labels, predicted: Labels, classes: int) -> Labels:
    """Counts [K, K]: row is the true class, column the predicted one.

    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def accuracy(confusion: Labels) -> float:
    """Share of images on the diagonal of a confusion matrix."""
    return float(np.trace(confusion) / confusion.sum())


def balanced_accuracy(confusion: Labels) -> float:
    """Mean over classes of the share of that class predicted rightly; classes without images are left out.

    Brodersen et al., "The balanced accuracy and its posterior distribution" (2010).

    >>> balanced_accuracy(np.array([[9, 1], [1, 1]]))
    0.7
    """
    counts = confusion.sum(axis=1)
    seen = counts > 0
    return float((np.diag(confusion)[seen] / counts[seen]).mean())


def expected_calibration_error(probabilities: Floats, labels: Labels, bins: int = CALIBRATION_BINS) -> float:
    """Σ_b |B_b| / N · |accuracy(B_b) − confidence(B_b)| over equal-width bins of the top probability.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), equation 3: bin b holds the images whose
    highest probability is in ((b − 1) / bins, b / bins].

    Args:
        probabilities: [N, K], rows sum to 1.
        labels: [N].

    Returns:
        A number in [0, 1]; 0 is perfectly calibrated.

    >>> labels = np.array([0, 0, 0, 1])  # three of four are right, at a confidence of 0.8
    >>> round(expected_calibration_error(np.array([[0.8, 0.2]] * 4), labels), 6)
    0.05
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    where = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(where, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def brier_score(probabilities: Floats, labels: Labels) -> float:
    """Mean over images of Σ_k (p_k − [k = label])²: 0 is perfect, 2 is certain and wrong.

    Brier, "Verification of forecasts expressed in terms of probability" (1950); with two classes, twice the
    score that only looks at one of them.

    >>> brier_score(np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([0, 0]))
    0.25
    """
    wanted = np.eye(probabilities.shape[1])[labels]
    return float(((probabilities - wanted) ** 2).sum(axis=1).mean())


def log_loss(probabilities: Floats, labels: Labels) -> float:
    """Mean of −ln p(label), probabilities no smaller than 1e-12."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(chosen, 1e-12)).mean())


@dataclass(frozen=True)
class Scores:
    """What a classifier did on one labelled set. `confusion[true][predicted]` counts images."""

    images: int
    accuracy: float
    balanced_accuracy: float
    expected_calibration_error: float
    brier_score: float
    log_loss: float
    confusion: tuple[tuple[int, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """Plain types, ready for `json.dumps`."""
        return {**asdict(self), "confusion": [list(row) for row in self.confusion]}


def score(probabilities: Floats, labels: Labels) -> Scores:
    """All metrics at once, from probabilities [N, K] and labels [N]."""
    confusion = confusion_matrix(
        labels, probabilities.argmax(axis=1).astype(np.int64), probabilities.shape[1]
    )
    return Scores(
        images=len(labels),
        accuracy=accuracy(confusion),
        balanced_accuracy=balanced_accuracy(confusion),
        expected_calibration_error=expected_calibration_error(probabilities, labels),
        brier_score=brier_score(probabilities, labels),
        log_loss=log_loss(probabilities, labels),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
    )
