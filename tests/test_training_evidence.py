"""Evidence components on images whose causes are known, and what training does with them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import training_problems as problems
from stylex.classifiers import Classifier
from stylex.conditions import told
from stylex.config import RunConfig
from stylex.data.images import ImageSet
from stylex.errors import ConfigError, DataError, Stopped
from stylex.hardware import choose
from stylex.networks import build
from stylex.networks.evidence import DEVIATION, MAP_SIZE, TOLD, Evidence, halvings
from stylex.run import read_json
from stylex.training import evidence as fitting
from stylex.training.evidence import FAIR, EvidenceFit, fit_evidence, time_evidence
from stylex.training.progress import Preparation, Progress
from stylex.training.randomness import StepRandom
from stylex.training.stopping import StopRequest

CPU = choose("cpu", "fp32", 1)
CORNERS = (slice(0, 8), slice(0, 8)), (slice(22, 30), slice(20, 28))
WEIGHTS = (3.0, -1.5)
"""Log-odds of the second class for each spot, as large as it is bright."""


class SpotClassifier(nn.Module):
    """Logits [0, w · mean brightness of each spot]."""

    def forward(self, images: Tensor) -> Tensor:
        found = [
            weight * images[:, :, rows, columns].mean(dim=(1, 2, 3))
            for weight, (rows, columns) in zip(WEIGHTS, CORNERS, strict=True)
        ]
        score = torch.stack(found).sum(dim=0)
        return torch.stack([torch.zeros_like(score), score], dim=1)


def spots(count: int, seed: int = 0) -> tuple[ImageSet, np.ndarray]:
    """Grey noise with two spots, each there or not, independent of each other."""
    random = np.random.default_rng(seed)
    there = random.random((count, 2)) < 0.5
    pixels = random.integers(96, 128, (count, 32, 32, 3))
    for number, (rows, columns) in enumerate(CORNERS):
        pixels[:, rows, columns] += (110 * there[:, number])[:, None, None, None]
    names = tuple(str(number) for number in range(count))
    return ImageSet(pixels.astype(np.uint8), names, None, None, {}), there


@pytest.fixture(scope="module", autouse=True)
def _small_batches() -> Iterator[None]:
    """As many steps as otherwise, each of a quarter of the images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "BATCH", 16)
        yield


@pytest.fixture(scope="module")
def fitted() -> tuple[Evidence, EvidenceFit, ImageSet, np.ndarray]:
    classifier = Classifier(SpotClassifier(), class_names=("a", "b"), input_size=32)
    images, there = spots(512)
    evidence = Evidence(32, 2, 5)
    fit = fit_evidence(evidence, images, classifier, CPU, 0, 2)
    return evidence, fit, images, there


def test_components_are_the_causes_each_by_itself(
    fitted: tuple[Evidence, EvidenceFit, ImageSet, np.ndarray],
) -> None:
    evidence, fit, _, _ = fitted
    images, there = spots(200, seed=1)
    found = evidence(images.batch(range(200))).numpy()
    assert fit.explained > 0.95
    assert evidence.used == len(fit.shares) == 2
    correlation = np.corrcoef(np.hstack([found[:, :2], there]).T)[:2, 2:]
    # The first spot counts twice as much, so it comes first; the second speaks for class a: sign turned.
    assert correlation[0, 0] > 0.97
    assert correlation[1, 1] < -0.97
    assert np.abs(correlation[[0, 1], [1, 0]]).max() < 0.2
    assert fit.shares[0] / fit.shares[1] == pytest.approx(2.0, rel=0.15)
    assert fit.kinds == (True, True)
    np.testing.assert_array_equal(found[:, 2:], 0)
    np.testing.assert_allclose(found[:, :2].std(axis=0), DEVIATION, rtol=0.1)


def test_maps_add_up_to_the_log_odds(
    fitted: tuple[Evidence, EvidenceFit, ImageSet, np.ndarray],
) -> None:
    evidence, _, images, _ = fitted
    batch = images.batch(range(200))
    maps = evidence.maps(batch).sum(dim=(2, 3))
    logits = SpotClassifier()(batch)
    expected = logits[:, 1] - logits[:, 0]
    assert float(np.corrcoef(maps[:, 1].numpy(), expected.numpy())[0, 1]) > 0.97


def test_evidence_lies_where_the_cause_is(
    fitted: tuple[Evidence, EvidenceFit, ImageSet, np.ndarray],
) -> None:
    evidence, _, images, there = fitted
    maps = evidence.maps(images.batch(range(200)))[:, 1].numpy()
    difference = np.abs(maps[there[:200, 0]].mean(axis=0) - maps[~there[:200, 0]].mean(axis=0))
    inside = difference[:6, :6].sum()  # the spot's 4 × 4 places and the reach of three convolutions
    assert inside > 0.8 * difference.sum()


def test_same_seed_same_numbers_another_seed_others() -> None:
    classifier = Classifier(SpotClassifier(), class_names=("a", "b"), input_size=32)
    images, _ = spots(64)
    before = torch.random.get_rng_state()
    states = []
    for seed in (0, 0, 1):
        evidence = Evidence(32, 2, 3)
        fit_evidence(evidence, images, classifier, CPU, seed, 0.16)
        states.append(torch.cat([value.flatten() for value in evidence.state_dict().values()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_cannot_be_fitted_is_refused() -> None:
    classifier = Classifier(SpotClassifier(), class_names=("a", "b"), input_size=32)
    images, _ = spots(1)
    with pytest.raises(DataError, match="2 training images"):
        fit_evidence(Evidence(32, 2, 3), images, classifier, CPU, 0, 1)
    black = ImageSet(np.zeros((40, 32, 32, 3), np.uint8), tuple(map(str, range(40))), None, None, {})
    with pytest.raises(DataError, match="same of all"):
        fit_evidence(Evidence(32, 2, 3), black, classifier, CPU, 0, 1)


def test_large_images_are_looked_at_in_portions_and_reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    images, there = spots(300)
    large = np.repeat(np.repeat(images.images, 4, axis=1), 4, axis=2)
    monkeypatch.setattr(fitting, "ASKED_PIXELS", 7 * 128**2)
    monkeypatch.setattr(fitting, "MOST_IMAGES", 250)
    asked: list[int] = []

    class Counting(SpotClassifier):
        def forward(self, pixels: Tensor) -> Tensor:
            asked.append(len(pixels))
            return super().forward(torch.nn.functional.avg_pool2d(pixels, 4))

    classifier = Classifier(Counting(), class_names=("a", "b"), input_size=128)
    evidence = Evidence(128, 2, 3)
    told: list[tuple[int, int]] = []
    portrait = ImageSet(large, images.names, None, None, {})
    fit = fit_evidence(
        evidence, portrait, classifier, CPU, 0, 1, on_progress=lambda *where: told.append(where)
    )
    assert max(asked) <= 7
    assert sum(asked) == 250
    assert told == sorted(told)
    assert {total for _, total in told} == {250 + 1000}
    assert told[0][0] <= 7
    assert told[-1][0] == 1250
    assert fit.explained > 0.9
    found = evidence(portrait.batch(range(300))).numpy()
    assert np.corrcoef(found[:, 0], there[:, 0])[0, 1] > 0.9


def test_time_is_told_for_each_image() -> None:
    images, _ = spots(20)
    classifier = Classifier(SpotClassifier(), class_names=("a", "b"), input_size=32)
    ticks = iter([0.0, 4.0, 10.0, 100.0, 200.0, 232.0])
    assert time_evidence(images, classifier, CPU, clock=lambda: next(ticks)) == (0.5, 0.5)


@pytest.mark.parametrize("size", [16, 32, 64, 256])
def test_maps_have_one_size_and_sums_are_differentiable(size: int) -> None:
    evidence = Evidence(size, 3, 4)
    for buffer in evidence.buffers():
        torch.nn.init.normal_(buffer, std=0.1)
    images = torch.rand(2, 3, size, size).requires_grad_(True)
    assert evidence.maps(images).shape == (2, 3, MAP_SIZE, MAP_SIZE)
    found = evidence(images)
    found.square().sum().backward()
    assert found.shape == (2, 4)
    assert images.grad is not None
    assert float(images.grad.abs().sum()) > 0
    assert not list(evidence.parameters())


def test_halvings_bring_every_size_to_the_maps() -> None:
    assert halvings(16) == (False, False, False)
    assert halvings(32) == (False, False, True)
    assert halvings(64) == (False, True, True)


# In training


ASSIGNMENTS = ("network.evidence_components=4",)


def test_half_of_swapped_conditions_come_from_one_image_the_others_from_two(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "evidence", ASSIGNMENTS)
    condition = torch.arange(32.0).reshape(8, 4)
    order = torch.tensor([1, 2, 3, 4, 5, 6, 7, 0])
    found = trainer.loss._swapped(condition, order, StepRandom(0, 0, 0, torch.device("cpu")))
    assert torch.equal(found[::2], condition[order][::2])
    rows = (found // 4).long()
    columns = (found % 4).long()
    assert torch.equal(columns, torch.arange(4).expand(8, 4))  # each component stays what it is
    assert any(len(set(row.tolist())) == 2 for row in rows[1::2])
    assert all(len(set(row.tolist())) <= 2 for row in rows)


def test_the_condition_is_the_evidence_and_gets_a_loss(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "evidence", ASSIGNMENTS)
    trainer.resume()
    encoder = trainer.state.networks.encoder
    assert encoder is not None
    assert encoder.evidence is not None
    assert encoder.evidence.used > 0
    average = trainer.state.averages["encoder"]
    assert torch.equal(average.evidence.unmixing, encoder.evidence.unmixing)
    told_of = EvidenceFit.from_json(read_json(trainer.run.evidence_file))
    assert len(told_of.shares) == encoder.evidence.used
    assert ("compare with" in str(told_of)) == (told_of.accounted < FAIR)
    before = {key: value.clone() for key, value in encoder.evidence.state_dict().items()}
    statistics = trainer.step() | trainer.step()
    assert {"encode/evidence", "swap/evidence"} <= set(statistics)
    assert all(torch.equal(before[key], value) for key, value in encoder.evidence.state_dict().items())
    images = trainer.images.batch(range(4))
    classifier = trainer.classifier
    found = told("evidence", classifier, classifier(images), images, encoder)
    assert found is not None
    assert torch.equal(found, encoder.evidence(images))


def test_the_search_for_evidence_tells_how_far_it_is_and_ends_when_asked_to(tmp_path: Path) -> None:
    trainer = problems.make_trainer(tmp_path / "run", "evidence", ASSIGNMENTS)
    stop = StopRequest()
    told: list[Progress] = []

    def show(progress: Progress) -> None:
        told.append(progress)
        stop.requested = True

    with pytest.raises(Stopped, match="the same command begins again"):
        trainer.resume(None, Preparation(stop, trainer.total_images, show))
    assert [0 < (progress.prepared or 0) < 1 for progress in told] == [True]
    assert trainer.run.newest_checkpoint() is None
    assert not trainer.run.evidence_file.exists()
    trainer = problems.make_trainer(tmp_path / "other", "evidence", ASSIGNMENTS)
    trainer.resume(None, Preparation(StopRequest(), trainer.total_images, told.append))
    assert told[-1].prepared == 1
    assert told[-1].seconds_left == 0
    assert trainer.run.evidence_file.exists()


def test_evidence_has_conditions() -> None:
    with pytest.raises(ConfigError, match="no sample steps"):
        problems.recipe("evidence", [*ASSIGNMENTS, "training.schedule=[encode,sample]"])
    with pytest.raises(ConfigError, match=r"loss\.evidence needs"):
        problems.recipe("evidence", [*ASSIGNMENTS, "network.condition=probabilities"])
    recipe = problems.recipe("evidence", ASSIGNMENTS).model_dump()
    with pytest.raises(ValueError, match="16 pixels or more"):
        RunConfig(experiment="e", data="d", classifier="c", resolution=8, recipe=recipe)


def test_more_classes_than_evidence_is_made_for_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"16 classes at most, these are 17.*condition=probabilities"):
        build(problems.recipe("evidence"), 16, 17)
    assert build(problems.recipe("evidence"), 16, 3).generator.condition_features == 12


def test_labels_that_do_not_exclude_each_other_speak_each_for_itself() -> None:
    """The sign of a component is that of the label that it moves, also where there is one label alone."""

    class Labels(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            found = [images[:, :, rows, columns].mean(dim=(1, 2, 3)) for rows, columns in CORNERS]
            return torch.stack([3 * found[0], 2 * found[1]], dim=1)

    images, there = spots(256)
    both = Classifier(Labels(), class_names=("one", "two"), input_size=32, activation="sigmoid")
    evidence = Evidence(32, 2, 4)
    fit_evidence(evidence, images, both, CPU, 0, 0.5)
    found = evidence(images.batch(range(256))).numpy()[:, :2]
    correlation = np.corrcoef(np.hstack([found, there]).T)[:2, 2:]
    assert correlation.max(axis=1).min() > 0.9
    alone = Classifier(
        nn.Sequential(Labels(), First()), class_names=("one",), input_size=32, activation="sigmoid"
    )
    evidence = Evidence(32, 1, 4)
    fit_evidence(evidence, images, alone, CPU, 0, 0.5)
    found = evidence(images.batch(range(256))).numpy()
    assert np.corrcoef(found[:, 0], there[:, 0])[0, 1] > 0.9


class First(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits[:, :1]


def _two_kinds(slope: float = 12.0) -> Evidence:
    """Evidence of one component that comes in two kinds and one that does not, of random maps."""
    torch.manual_seed(0)
    evidence = Evidence(32, 2, 3)
    for number in range(3):
        torch.nn.init.normal_(evidence.get_buffer(f"weight{number}"), std=0.2)
    torch.nn.init.normal_(evidence.head, std=0.2)
    torch.nn.init.normal_(evidence.unmixing[:2])
    evidence.unmixing[:2] /= evidence.linear(torch.rand(64, 3, 32, 32) * 2 - 1)[:, :2].std(0)[:, None] * 2
    evidence.middle[0] = evidence.linear(torch.zeros(1, 3, 32, 32))[0, 0]
    evidence.below[0], evidence.above[0] = slope, 2 * slope
    evidence.centre[0], evidence.spread[0] = 0.25, 1.5
    return evidence


def test_one_of_two_kinds_is_told_and_the_others_as_they_are() -> None:
    evidence = _two_kinds()
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    linear, found = evidence.linear(images), evidence(images)
    torch.testing.assert_close(found[:, 1:], linear[:, 1:])
    away = linear[:, 0] - evidence.middle[0]
    assert bool((away < 0).any() and (away > 0).any())
    likely = torch.sigmoid(torch.where(away < 0, 12.0 * away, 24.0 * away))
    torch.testing.assert_close(found[:, 0], (2 * likely - 1 - 0.25) / 1.5)


def test_how_far_from_what_was_asked_is_a_divergence_of_kinds() -> None:
    evidence = _two_kinds(slope=3.0)
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    own = evidence(images)
    torch.testing.assert_close(evidence.apart(images, own), torch.zeros(8, 3), atol=1e-5, rtol=0)
    asked = own.roll(1, 0)
    apart = evidence.apart(images, asked)
    kinds = [
        torch.distributions.Bernoulli(probs=(value[:, 0] * 1.5 + 0.25 + 1) / 2) for value in (asked, own)
    ]
    expected = torch.distributions.kl_divergence(*kinds)
    torch.testing.assert_close(apart[:, 0], expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(apart[:, 1], ((own - asked)[:, 1] / DEVIATION).square())
    assert not apart[:, 2].any()


def test_an_image_of_the_wrong_kind_is_never_without_a_slope() -> None:
    """The tanh of what is told has none where the wrong kind is certain."""
    evidence = _two_kinds(slope=400.0)
    images = torch.rand(16, 3, 32, 32) * 2 - 1
    images = images[(evidence(images)[:, 0] < 0)][:1].clone().requires_grad_()
    wanted = torch.tensor([[(1 - 0.25) / 1.5, 0.0, 0.0]])
    told_apart = (evidence(images)[:, 0] - wanted[:, 0]).square().sum()
    (flat,) = torch.autograd.grad(told_apart, images)
    (steep,) = torch.autograd.grad(evidence.apart(images, wanted)[:, 0].sum(), images)
    assert float(steep.abs().max()) > 100 * float(flat.abs().max())


def test_evidence_of_before_kinds_is_told_as_it_is(
    fitted: tuple[Evidence, EvidenceFit, ImageSet, np.ndarray],
) -> None:
    evidence, fit, images, _ = fitted
    before = {key: value for key, value in evidence.state_dict().items() if key not in TOLD}
    holder = nn.ModuleDict({"evidence": Evidence(32, 2, 5)})
    holder.load_state_dict({f"evidence.{key}": value for key, value in before.items()})
    batch = images.batch(range(4))
    assert torch.equal(holder["evidence"](batch), evidence.linear(batch))
    assert EvidenceFit.from_json({"explained": 1.0, "held": 1.0, "shares": [0.5, 0.25]}).kinds == ()
    assert EvidenceFit.from_json(fit.to_json()) == fit
    assert str(fit).count("(of two kinds)") == 2


def test_a_component_is_turned_to_the_other_kind() -> None:
    evidence = _two_kinds()
    first, second = (-1 - 0.25) / 1.5, (1 - 0.25) / 1.5
    told = torch.tensor([[first, 0.7, 0.0], [second, -0.1, 0.0]])
    expected = torch.tensor([[second, -DEVIATION, DEVIATION], [first, DEVIATION, DEVIATION]])
    torch.testing.assert_close(evidence.turned(told), expected)
