"""Training on coloured squares: learns, repeats itself, reports truly, and refuses what it cannot use."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from stylex.classifiers import Classifier, TrainingProgress, evaluate, train
from stylex.classifiers.training import augment, channel_statistics, fit_temperature, predict_logits
from stylex.data.images import ImageSet
from stylex.errors import ConfigError, DataError, TrainingDiverged

SMALL = {"widths": [8, 16, 16, 16]}


def squares(count: int, seed: int, size: int = 16, wrong: float = 0.0) -> ImageSet:
    """A red or blue square somewhere on noise; `wrong` of the labels are turned round."""
    random = np.random.default_rng(seed)
    images = random.integers(60, 120, (count, size, size, 3), dtype=np.uint8)
    labels = random.integers(0, 2, count)
    for image, label in zip(images, labels, strict=True):
        y, x = random.integers(0, size - 6, 2)
        image[y : y + 6, x : x + 6] = (220, 40, 40) if label else (40, 40, 220)
    labels = np.where(random.random(count) < wrong, 1 - labels, labels).astype(np.int64)
    return ImageSet(images, tuple(str(i) for i in range(count)), labels, ("blue", "red"), {})


def quick(training: ImageSet, validation: ImageSet, **settings: object) -> Classifier:
    arguments = {"options": SMALL, "epochs": 2, "batch_size": 32, **settings}
    return train(training, validation, **arguments)[0]  # type: ignore[arg-type]


def test_learns_and_reports_what_it_learnt() -> None:
    seen: list[TrainingProgress] = []
    state = torch.get_rng_state()
    classifier, report = train(
        squares(256, 0),
        squares(100, 1),
        options=SMALL,
        epochs=3,
        batch_size=32,
        learning_rate=0.01,
        data_fingerprint="abc",
        on_progress=seen.append,
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert report.validation.accuracy > 0.95
    assert evaluate(classifier, squares(200, 2)).accuracy > 0.95
    assert classifier.class_names == ("blue", "red")
    assert (classifier.input_size, classifier.frozen, classifier.data_fingerprint) == (16, True, "abc")
    assert evaluate(classifier, squares(100, 1)) == report.validation
    assert json.loads(json.dumps(classifier.report))["validation"]["images"] == 100
    assert [(p.epoch, p.step) for p in seen] == [(e, s) for e in (1, 2, 3) for s in range(1, 9)]
    assert [p.validation is not None for p in seen] == ([False] * 7 + [True]) * 3
    losses = [p.validation.log_loss for p in seen if p.validation is not None]
    assert report.best_epoch == 1 + int(np.argmin(losses))
    assert report.validation.log_loss == pytest.approx(min(losses))


def test_the_epoch_kept_is_the_best_and_not_the_last() -> None:
    # The training labels are turned round: the longer it learns, the worse on validation.
    training, validation = squares(128, 0, wrong=1.0), squares(64, 1)
    _, report = train(
        training, validation, options=SMALL, epochs=4, batch_size=32, learning_rate=0.01, mirror=False
    )
    assert report.best_epoch == 1


def test_same_seed_same_weights() -> None:
    training, validation = squares(64, 0), squares(32, 1)
    first, second, other = (quick(training, validation, seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint == second.fingerprint
    assert first.fingerprint != other.fingerprint


def test_mobilenet_trains_the_same_twice() -> None:
    training, validation = squares(8, 0, size=8), squares(4, 1, size=8)
    settings = {"architecture": "mobilenet_v2", "options": None, "epochs": 1, "batch_size": 4}
    first, second = (quick(training, validation, **settings) for _ in range(2))
    assert first.options == {"first_strides": [1, 1]}
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize("settings", [{"optimiser": "sgd"}, {"label_smoothing": 0.2}, {"input_size": 8}])
def test_variants_train(settings: dict[str, object]) -> None:
    classifier = quick(squares(128, 0), squares(32, 1), epochs=4, **{"learning_rate": 0.02, **settings})
    assert evaluate(classifier, squares(64, 2)).accuracy > 0.8
    assert classifier.input_size == settings.get("input_size", 16)


def test_temperature_is_the_minimum_of_the_loss() -> None:
    random = np.random.default_rng(0)
    true = random.normal(0, 2, (2000, 3))
    shares = np.exp(true) / np.exp(true).sum(axis=1, keepdims=True)
    labels = np.array([random.choice(3, p=row) for row in shares])
    assert fit_temperature(torch.from_numpy(true * 4), labels) == pytest.approx(4, rel=0.1)
    found = fit_temperature(torch.from_numpy(true), labels)
    losses = {
        t: float(torch.nn.functional.cross_entropy(torch.from_numpy(true) / t, torch.from_numpy(labels)))
        for t in (found * 0.99, found, found * 1.01)
    }
    assert min(losses, key=lambda t: losses[t]) == found


def test_calibration_does_not_change_predictions_and_lowers_the_loss() -> None:
    training, validation = squares(128, 0, wrong=0.3), squares(128, 1, wrong=0.3)
    settings = {"options": SMALL, "epochs": 3, "batch_size": 32, "learning_rate": 0.01}
    plain, before = train(training, validation, **settings)  # type: ignore[arg-type]
    fitted, after = train(training, validation, calibrate=True, **settings)  # type: ignore[arg-type]
    assert plain.fingerprint == fitted.fingerprint
    assert after.validation.confusion == before.validation.confusion
    assert after.temperature != 1
    assert after.validation.log_loss < before.validation.log_loss


def test_statistics_are_those_of_the_pixels() -> None:
    images = squares(10, 0)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx(tuple((images.images / 255).mean(axis=(0, 1, 2))))
    assert std == pytest.approx(tuple((images.images / 255).std(axis=(0, 1, 2))))
    black = dataclasses.replace(images, images=np.zeros_like(images.images))
    assert channel_statistics(black) == ((0.0, 0.0, 0.0), (0.05, 0.05, 0.05))


def test_augmentation_is_a_flip_and_a_shift_with_repeated_edges() -> None:
    images = torch.arange(2 * 3 * 8 * 8, dtype=torch.float32).view(2, 3, 8, 8)
    found = augment(images, np.random.default_rng(5), mirror=True, shift=0.25)
    random = np.random.default_rng(5)
    downs, rights = random.integers(-2, 2, 2, endpoint=True), random.integers(-2, 2, 2, endpoint=True)
    flips = random.random(2) < 0.5
    assert len(set(flips)) == 2
    for n in range(2):
        image = images[n].flip(-1) if flips[n] else images[n]
        for y in range(8):
            for x in range(8):
                source = image[:, min(max(y + downs[n], 0), 7), min(max(x + rights[n], 0), 7)]
                assert torch.equal(found[n, :, y, x], source)
    assert augment(images, random, mirror=False, shift=0) is images


def test_logits_do_not_depend_on_the_batch() -> None:
    classifier, images = quick(squares(64, 0), squares(32, 1)), squares(20, 2)
    assert torch.allclose(
        predict_logits(classifier, images, 7), classifier(images.batch(slice(None))), atol=1e-5
    )


def without_labels(images: ImageSet) -> ImageSet:
    return dataclasses.replace(images, labels=None, class_names=None)


def of_one_class(images: ImageSet) -> ImageSet:
    return dataclasses.replace(images, labels=np.ones(len(images), dtype=np.int64))


@pytest.mark.parametrize(
    ("training", "validation", "message"),
    [
        (without_labels(squares(16, 0)), squares(16, 1), "no labels"),
        (squares(16, 0), without_labels(squares(16, 1)), "no labels"),
        (of_one_class(squares(16, 0)), squares(16, 1), "all 16 training images are of one class, 'red'"),
        (squares(16, 0), squares(16, 1).select([]), "0 to validate on"),
        (
            squares(16, 0),
            dataclasses.replace(squares(16, 1), class_names=("red", "blue")),
            "must be the same",
        ),
        (dataclasses.replace(squares(16, 0), class_names=("blue",)), squares(16, 1), "must be"),
    ],
)
def test_data_that_cannot_be_used(training: ImageSet, validation: ImageSet, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        train(training, validation, options=SMALL, epochs=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0},
        {"batch_size": 1},
        {"learning_rate": -1.0},
        {"learning_rate": math.nan},
        {"optimiser": "lion"},
        {"label_smoothing": 1.0},
        {"shift": 0.5},
    ],
)
def test_settings_out_of_range(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        quick(squares(16, 0), squares(16, 1), **settings)


def test_divergence_is_named() -> None:
    with pytest.raises(TrainingDiverged, match=r"epoch 1, step \d"):
        quick(squares(128, 0), squares(16, 1), learning_rate=1e30)


def test_evaluate_refuses_other_classes() -> None:
    classifier = quick(squares(64, 0), squares(16, 1), epochs=1)
    with pytest.raises(DataError, match="same classes"):
        evaluate(classifier, dataclasses.replace(squares(16, 1), class_names=("old", "young")))
    with pytest.raises(DataError, match="no images"):
        evaluate(classifier, squares(16, 1).select([]))
