"""Metrics against scikit-learn, and against slow sums written from the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from stylex.classifiers import metrics

sklearn_metrics = pytest.importorskip("sklearn.metrics")


def outcomes(classes: int, count: int = 500) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(classes)
    probabilities = random.dirichlet(np.ones(classes), count)
    return probabilities, random.integers(0, classes, count)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_confusion_and_accuracies_equal_scikit_learn(classes: int) -> None:
    probabilities, labels = outcomes(classes)
    predicted = probabilities.argmax(axis=1)
    confusion = metrics.confusion_matrix(labels, predicted, classes)
    assert np.array_equal(confusion, sklearn_metrics.confusion_matrix(labels, predicted))
    assert metrics.accuracy(confusion) == pytest.approx(sklearn_metrics.accuracy_score(labels, predicted))
    assert metrics.balanced_accuracy(confusion) == pytest.approx(
        sklearn_metrics.balanced_accuracy_score(labels, predicted)
    )


def test_confusion_keeps_a_class_that_never_occurs() -> None:
    confusion = metrics.confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3)
    assert confusion.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0]]
    assert metrics.balanced_accuracy(confusion) == 0.5


@pytest.mark.parametrize("classes", [2, 5])
def test_log_loss_equals_scikit_learn(classes: int) -> None:
    probabilities, labels = outcomes(classes)
    expected = sklearn_metrics.log_loss(labels, probabilities, labels=range(classes))
    assert metrics.log_loss(probabilities, labels) == pytest.approx(expected)


def test_brier_of_two_classes_is_twice_scikit_learns_of_one() -> None:
    probabilities, labels = outcomes(2)
    one = sklearn_metrics.brier_score_loss(labels, probabilities[:, 1])
    assert metrics.brier_score(probabilities, labels) == pytest.approx(2 * one)


def test_brier_bounds() -> None:
    certain = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert metrics.brier_score(certain, np.array([0, 0])) == 0
    assert metrics.brier_score(certain, np.array([1, 1])) == 2


@pytest.mark.parametrize("classes", [2, 4])
def test_calibration_error_equals_the_definition_bin_by_bin(classes: int) -> None:
    probabilities, labels = outcomes(classes)
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    expected = 0.0
    for b in range(1, 16):
        members = [i for i in range(len(labels)) if (b - 1) / 15 < confidence[i] <= b / 15]
        if members:
            right = sum(predicted[i] == labels[i] for i in members) / len(members)
            expected += len(members) / len(labels) * abs(right - np.mean([confidence[i] for i in members]))
    assert expected > 0.05
    assert metrics.expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_calibration_error_closed_forms() -> None:
    certain = np.tile([1.0, 0.0], (10, 1))
    assert metrics.expected_calibration_error(certain, np.zeros(10, dtype=np.int64)) == 0
    assert metrics.expected_calibration_error(certain, np.ones(10, dtype=np.int64)) == 1
    tied = np.tile([0.5, 0.5], (10, 1))  # confidence 1/2, right half the time
    assert metrics.expected_calibration_error(tied, np.arange(10) % 2) == pytest.approx(0)


def test_score_gathers_all_and_is_plain_json() -> None:
    probabilities, labels = outcomes(3)
    found = metrics.score(probabilities, labels).to_json()
    assert found["images"] == 500
    assert sum(map(sum, found["confusion"])) == 500
    assert found["accuracy"] == pytest.approx((probabilities.argmax(axis=1) == labels).mean())
    assert all(type(count) is int for row in found["confusion"] for count in row)
