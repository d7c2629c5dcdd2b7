"""An endpoint on loopback: batches, repetitions, rate, memory; what it may not answer; its student."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import training_problems
from classifier_sources import NAMES, SIZE, Served, endpoint, probabilities_of, small_network
from stylex.classifiers import Classifier, distil, distillation, load
from stylex.classifiers import endpoint as module
from stylex.classifiers.distillation import Distillation
from stylex.data.images import ImageSet
from stylex.errors import ClassifierError, DataError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "FIRST_PAUSE_S", 0.001)


def pixels(count: int = 5, seed: int = 0) -> Tensor:
    """Images whose pixels are whole bytes, in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator) / 127.5 - 1


def opened(served: Served, options: str = "") -> Classifier:
    return load(f"{served.url}#size={SIZE},{options}")


def test_an_endpoint_gives_the_probabilities_of_what_is_behind_it() -> None:
    network = small_network()
    with endpoint(probabilities_of(network)) as served:
        classifier = opened(served)
        logits = classifier(pixels())
        assert classifier.class_names == NAMES
        assert not classifier.differentiable
        assert not classifier.exposes_features
        with torch.no_grad():
            wanted = network(pixels()).softmax(dim=1)
        assert torch.allclose(classifier.probabilities(logits), wanted, atol=1e-5)


def test_batches_and_every_image_once(tmp_path: Path) -> None:
    with endpoint(probabilities_of(small_network())) as served:
        classifier = opened(served, "batch=2")
        served.batches.clear()
        first = classifier(pixels())
        assert served.batches == [2, 2, 1]
        twice = torch.cat([pixels(), pixels()])
        assert torch.equal(classifier(twice), torch.cat([first, first]))
        assert served.batches == [2, 2, 1]
        again = opened(served, "batch=2")  # another process would do the same
        served.batches.clear()
        assert torch.equal(again(pixels()), first)
        assert served.batches == []
        forgetful = opened(served, "cache=false")
        served.batches.clear()
        forgetful(pixels())
        assert served.batches == [5]


def test_another_model_at_the_same_address_has_another_fingerprint_and_no_old_answers() -> None:
    networks = [small_network(seed=0)]
    with endpoint(lambda images: probabilities_of(networks[0])(images)) as served:
        before = opened(served)
        old = before(pixels())
        same = opened(served)
        networks[0] = small_network(seed=1)
        after = opened(served)
        assert before.fingerprint == same.fingerprint != after.fingerprint
        assert not torch.allclose(after(pixels()), old)


def test_failures_that_may_pass_are_repeated() -> None:
    with endpoint(probabilities_of(small_network())) as served:
        classifier = opened(served)
        served.failures += [(503, {}), (429, {"Retry-After": "0.05"})]
        served.times.clear()
        assert torch.isfinite(classifier(pixels())).all()
        assert len(served.times) == 3
        assert served.times[2] - served.times[1] >= 0.05
        served.failures += [(500, {})] * 3
        impatient = opened(served, "retries=1") if not served.failures else None
        assert impatient is None
        with pytest.raises(ClassifierError, match=r"status 500 .*, 2 times; is it running\?"):
            opened(served, "retries=1")


def test_refusals_are_not_repeated() -> None:
    with endpoint(probabilities_of(small_network())) as served:
        classifier = opened(served)
        served.failures += [(401, {})]
        served.times.clear()
        with pytest.raises(ClassifierError, match=r"refused the images \(status 401"):
            classifier(pixels())
        assert len(served.times) == 1


def test_time_outs_and_no_endpoint() -> None:
    with endpoint(probabilities_of(small_network())) as served:
        served.delay_s = 0.5
        with pytest.raises(ClassifierError, match=r"no answer within 0\.05 s, 2 times"):
            opened(served, "timeout=0.05,retries=1")
    with pytest.raises(ClassifierError, match="refused, 1 times"):
        opened(served, "retries=0")


def test_rate() -> None:
    with endpoint(probabilities_of(small_network())) as served:
        classifier = opened(served, "batch=1,rate=20")
        served.times.clear()
        classifier(pixels(4))
        gaps = [late - early for early, late in zip(served.times, served.times[1:], strict=False)]
        assert min(gaps) > 0.04


def test_a_token_is_sent_and_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with endpoint(probabilities_of(small_network())) as served:
        monkeypatch.setenv("MY_TOKEN", "secret")
        opened(served, "token=MY_TOKEN")
        assert served.headers[-1]["Authorization"] == "Bearer secret"
        monkeypatch.delenv("MY_TOKEN")
        with pytest.raises(ClassifierError, match="MY_TOKEN is to hold its token"):
            opened(served, "token=MY_TOKEN")


@pytest.mark.parametrize(
    ("answer", "options", "message"),
    [
        (lambda images: [[0.5, 0.5]], "", "was sent 2 images and answered with 1 rows"),
        (lambda images: {"message": "hello"}, "", "no list of lists of numbers"),
        (lambda images: [["a", "b"]] * len(images), "", "no list of lists of numbers"),
        (lambda images: b"<html>", "", "no JSON"),
        (lambda images: [[3.0, -1.0]] * len(images), "", "numbers from -1 to 3, .*outputs=logits"),
        (lambda images: [[0.9, 0.9]] * len(images), "", "sum to 1.8, not 1; .*activation=sigmoid"),
        (lambda images: [[float("nan"), 0.9]] * len(images), "", "NaN or infinity"),
        (lambda images: [[0.2, 0.3, 0.5]] * len(images), "classes=a:b", r"expected \[2, 2\]"),
    ],
)
def test_what_an_endpoint_may_not_answer(answer: Any, options: str, message: str) -> None:
    with endpoint(answer) as served, pytest.raises(ClassifierError, match=message) as caught:
        opened(served, options)
    assert "\n" not in str(caught.value)


def test_an_endpoint_that_lies_later() -> None:
    lies: list[int] = []
    honest = probabilities_of(small_network())

    def answer(images: Tensor) -> Any:
        found = honest(images)
        if lies:
            found["probabilities"] = found["probabilities"][:-1]
        return found

    with endpoint(answer) as served:
        classifier = opened(served)
        lies.append(1)
        with pytest.raises(ClassifierError, match="was sent 5 images and answered with 4 rows"):
            classifier(pixels())


@pytest.mark.parametrize(("lie", "message"), [(float("nan"), "NaN or infinity"), (3.0, "no probabilities")])
def test_what_is_wrong_is_not_remembered(lie: float, message: str) -> None:
    lies: list[float] = []
    network = small_network()
    honest = probabilities_of(network)

    def answer(images: Tensor) -> Any:
        return [[lies[0], 0.5]] * len(images) if lies else honest(images)

    with endpoint(answer) as served:
        classifier = opened(served)
        lies.append(lie)
        with pytest.raises(ClassifierError, match=message) as caught:
            classifier(pixels())
        assert str(caught.value).startswith(served.url)
        lies.clear()
        with torch.no_grad():
            wanted = network(pixels()).softmax(dim=1)
        for again in (classifier, opened(served)):
            assert torch.allclose(again.probabilities(again(pixels())), wanted, atol=1e-5)


def test_what_was_remembered_wrongly_is_asked_for_again() -> None:
    with endpoint(probabilities_of(small_network())) as served:
        source: Any = opened(served).network
        images = (pixels() + 1) / 2
        wanted = source.network(images)
        keys = list(source.network._answers)
        source.network._remember({key: torch.full((2,), float("nan")).numpy() for key in keys})
        served.batches.clear()
        again: Any = opened(served).network
        assert torch.equal(again.network(images), wanted)
        assert served.batches == [2, 5]


@pytest.mark.parametrize("option", ["range=0:255", "mean=0.5:0.5:0.5", "std=0.5:0.5:0.5"])
def test_an_endpoint_normalises_for_itself(option: str) -> None:
    name = option.partition("=")[0]
    with (
        endpoint(probabilities_of(small_network())) as served,
        pytest.raises(
            ClassifierError, match=f"{name} means nothing for an endpoint, .*; leave it out"
        ) as caught,
    ):
        opened(served, option)
    assert "\n" not in str(caught.value)


def test_one_number_an_image_logits_and_grey_images() -> None:
    def one(images: Tensor) -> Any:
        return images.mean(dim=(1, 2, 3)).tolist()

    with endpoint(one) as served:
        classifier = opened(served, "classes=bright")
        shares = classifier.probabilities(classifier(pixels()))[:, 1]
        assert torch.allclose(shares, (pixels().mean(dim=(1, 2, 3)) + 1) / 2, atol=1e-4)
        assert classifier.class_names == ("not bright", "bright")
    with endpoint(lambda images: [[5.0, -3.0 * float(image.mean())] for image in images]) as served:
        assert opened(served, "outputs=logits")(pixels())[0, 0] == 5
    with endpoint(lambda images: [[float(image.shape[0] == 1), 0.0] for image in images]) as served:
        assert float(opened(served, "channels=1")(pixels())[0, 0]) > -1e-3


def test_a_store_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with endpoint(probabilities_of(small_network())) as served:
        classifier = opened(served)
        served.batches.clear()
        classifier(pixels())
        classifier(pixels())
        assert served.batches == [5]
    assert os.listdir(tmp_path) == ["file"]


# -- the student ------------------------------------------------------------------------------------------


def test_a_student_learns_to_answer_as_its_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "FEWEST_STEPS", 40)

    def red_or_green(images: Tensor) -> Any:
        margin = 20 * (images[:, 0] - images[:, 1]).mean(dim=(1, 2))
        return torch.stack([margin, -margin], dim=1).softmax(dim=1).tolist()

    training, others = training_problems.images(48), training_problems.images(24, seed=1)
    with endpoint(red_or_green) as served:
        teacher = opened(served)
        student, found = distil(teacher, training, others, batch_size=16)
        asked = sum(served.batches)
    assert found.agreement >= 0.9
    assert found.warning is None
    assert student.frozen
    assert student.differentiable
    assert student.exposes_features
    assert student.class_names == teacher.class_names
    assert asked == 2 + 48 + 24  # the probe, and every image once


def test_a_student_of_labels_that_do_not_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "FEWEST_STEPS", 40)

    def labels(images: Tensor) -> Tensor:
        margin = 20 * (images[:, 0] - images[:, 1]).mean(dim=(1, 2))
        return torch.stack([margin, -margin, 2 + 0 * margin], dim=1)

    network = load(labels, activation="sigmoid", class_names="abc")
    training = training_problems.images(32)
    student, found = distil(network, training, training.select([]), batch_size=16)
    assert student.activation == "sigmoid"
    assert (found.held_out, found.images) == (0, 32)
    assert found.agreement > 0.8


def test_bad_students() -> None:
    poor = Distillation("small_cnn", 10, 10, 0.6, 1.0, 3)
    assert poor.warning is not None
    assert "only 60%" in poor.warning
    none: ImageSet = training_problems.images(2).select([])
    with pytest.raises(DataError, match="0 images to distil"):
        distil(training_problems.classifier(), none, none)
