"""The factor detector: reads what can be seen and not what cannot, and says how sure it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

import training_problems
from stylex.data import load_dataset
from stylex.data.faces import FACTORS
from stylex.data.images import Dataset, ImageSet
from stylex.demo import prepare_demo
from stylex.errors import CheckpointError, ConfigError, DataError
from stylex.evaluation.factor_training import degrade, factor_columns, train_detector
from stylex.evaluation.factors import FactorDetector, agreement, blur, score_factors
from stylex.evaluation.intervals import wilson
from stylex.hardware import choose
from stylex.model import load_model

COLORS = {"amber": (230, 180, 20), "blue": (30, 60, 230), "rose": (230, 60, 120)}


def pictures(count: int, seed: int, size: int = 16) -> ImageSet:
    """A square on grey: colour and side are factors, and a coin is, which nothing in the image shows."""
    random = np.random.default_rng(seed)
    images = np.full((count, size, size, 3), 128, np.uint8)
    color, (side, coin) = random.choice(list(COLORS), count), random.integers(0, 2, (2, count))
    for number in range(count):
        left = 1 if side[number] == 0 else size // 2 + 1
        images[number, 5:11, left : left + 6] = COLORS[color[number]]
    images += random.integers(0, 20, images.shape, dtype=np.uint8)
    return ImageSet(
        images=images,
        names=tuple(f"{seed}-{number}.png" for number in range(count)),
        labels=None,
        class_names=None,
        factors={
            "color": tuple(str(value) for value in color),
            "side": tuple("left" if value == 0 else "right" for value in side),
            "coin": tuple("heads" if value else "tails" for value in coin),
            "sky": ("grey",) * count,
            "id": tuple(f"{seed}-{number}" for number in range(count)),
        },
    )


def dataset(training: int = 480) -> Dataset:
    return Dataset("squares", pictures(training, 0), pictures(20, 1), pictures(200, 2), "fingerprint", ())


@pytest.fixture(scope="module")
def detector() -> FactorDetector:
    return train_detector(dataset(), training_problems.HARDWARE, epochs=4, seed=0)


def test_what_can_be_seen_is_read_and_what_cannot_is_not(detector: FactorDetector) -> None:
    report = detector.report
    assert set(report["factors"]) == {"color", "side", "coin"}
    for name in ("color", "side"):
        assert report["factors"][name]["accuracy"]["low"] > 0.97
        assert report["factors"][name]["blurred"]["estimate"] > 0.95
    assert report["factors"]["coin"]["accuracy"]["high"] < 0.7
    assert report["skipped"] == {
        "sky": "the training images have one value only",
        "id": "700 different values are no factor",
    }
    assert (report["held_out"], report["training_images"]) == ("test", 480)


def test_the_shipped_detector_reads_every_factor(tmp_path: Path) -> None:
    """Of 280 discovery and 300 test faces, which it did not learn from, and of their reconstructions."""
    run = prepare_demo(tmp_path / "run")
    faces = load_dataset(run.data_source, size=run.config.resolution)
    shipped = FactorDetector.load(run.path / "detector.safetensors")
    assert set(shipped.factors) == set(FACTORS)
    for images in (faces.discovery, faces.test):
        for name, score in score_factors(shipped, images).items():
            assert score.accuracy.estimate >= 0.98, name
    model = load_model(run, choose("cpu", "fp32"))
    pixels = faces.test.batch(slice(0, 150))
    kept = agreement(shipped, pixels, model.synthesise(model.styles(model.encode(pixels)[0])))
    assert {name: rate.estimate for name, rate in kept.agreement.items() if rate.estimate < 0.94} == {}


def test_scores_are_those_of_the_table(detector: FactorDetector) -> None:
    held_out = dataset().test
    read = detector.read(held_out.batch(slice(None)), batch_size=33)
    values = detector.factors["coin"]
    assert values == ("heads", "tails")
    sure = detector.probabilities(held_out.batch(slice(None)), batch_size=33)["coin"]
    assert np.array_equal(sure.argmax(axis=1), read["coin"])
    assert sure.sum(axis=1) == pytest.approx(np.ones(200))
    right = sum(values[i] == truth for i, truth in zip(read["coin"], held_out.factors["coin"], strict=True))
    score = score_factors(detector, held_out)["coin"]
    assert score.accuracy == wilson(right, 200)
    assert score.confusion[0][0] + score.confusion[1][1] == right
    assert sum(score.confusion[0]) == held_out.factors["coin"].count("heads")
    assert score.to_json() == detector.report["factors"]["coin"]


def test_an_empty_cell_counts_nowhere(detector: FactorDetector) -> None:
    held_out = dataset().test
    colors = ("",) * 150 + held_out.factors["color"][150:]
    score = score_factors(detector, replace(held_out, factors=held_out.factors | {"color": colors}))["color"]
    assert score.accuracy.n == 50
    assert sum(map(sum, score.confusion)) == 50
    training = replace(dataset(64).training, factors={"color": ("", "blue", "rose", "") * 16})
    taught = train_detector(replace(dataset(64), training=training), epochs=1)
    assert list(taught.factors) == ["color"]
    assert taught.factors["color"] == ("amber", "blue", "rose")


def test_agreement_by_hand(detector: FactorDetector) -> None:
    images = dataset().test.batch(slice(0, 40))
    other = images.clone()
    other[:10] = images[:10].flip(3)  # the square changes sides, its colour stays
    found = agreement(detector, images, other)
    assert found.agreement["side"] == wilson(30, 40)
    assert found.agreement["color"] == wilson(40, 40)
    before, after = detector.read(images)["side"], detector.read(other)["side"]
    pairs = [a == b for a in before for b in after]
    assert found.chance["side"] == pytest.approx(np.mean(pairs))
    content = found.to_json()["side"]
    assert content["accuracy"] == detector.report["factors"]["side"]["accuracy"]["estimate"]
    with pytest.raises(DataError, match="give the same images"):
        agreement(detector, images, other[:3])
    with pytest.raises(DataError, match="one or more"):
        agreement(detector, images[:0], other[:0])


def test_saved_and_loaded_alike(detector: FactorDetector, tmp_path: Path) -> None:
    detector.save(tmp_path / "detector.safetensors")
    loaded = FactorDetector.load(tmp_path / "detector.safetensors", training_problems.HARDWARE)
    images = dataset().test.batch(slice(0, 8))
    assert loaded.factors == detector.factors
    assert loaded.report == detector.report
    assert not loaded.training
    for name, logits in detector(images).items():
        assert torch.equal(loaded(images)[name], logits)
    classifier = training_problems.classifier()
    classifier.options = {"widths": [4, 4, 8, 8]}
    classifier.save(tmp_path / "classifier.safetensors")
    with pytest.raises(CheckpointError, match="no factor detector; 'stylex factors train'"):
        FactorDetector.load(tmp_path / "classifier.safetensors")


def test_the_same_seed_gives_the_same_weights() -> None:
    def trained(seed: int) -> Tensor:
        return train_detector(dataset(128), epochs=1, seed=seed).heads.weight

    state = torch.random.get_rng_state()
    first = trained(0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(trained(0), first)
    assert not torch.equal(trained(1), first)


def test_blur_equals_scipy() -> None:
    images = torch.rand(2, 3, 12, 12)
    slow = gaussian_filter(images.double().numpy(), (0, 0, 1.5, 1.5), mode="nearest", radius=(0, 0, 5, 5))
    assert torch.allclose(blur(images, 1.5).double(), torch.from_numpy(slow), atol=1e-6)


def test_degraded_images_differ_each_by_itself_and_a_little() -> None:
    images = dataset().test.batch(slice(0, 1)).expand(6, -1, -1, -1)
    spoilt = degrade(images, np.random.default_rng(0))
    assert spoilt.shape == images.shape
    apart = (spoilt[:, None] - spoilt[None]).abs().mean(dim=(2, 3, 4)) + torch.eye(6)
    assert float(apart.min()) > 0.005
    assert float((spoilt - images).abs().mean()) < 0.15


def test_bad_input(detector: FactorDetector, tmp_path: Path) -> None:
    held_out = dataset().test
    with pytest.raises(DataError, match="no column 'color'; there are side"):
        score_factors(detector, replace(held_out, factors={"side": held_out.factors["side"]}))
    strange = held_out.factors | {"color": ("mauve", *held_out.factors["color"][1:])}
    with pytest.raises(DataError, match=r"2-0\.png: color is 'mauve'"):
        score_factors(detector, replace(held_out, factors=strange))
    table = tmp_path / "table.csv"
    table.write_text("file,color\n" + "".join(f"{name},red\n" for name in reversed(held_out.names)))
    with pytest.raises(DataError, match=rf"table\.csv, row {len(held_out)}: 2-0\.png: color is 'mauve'"):
        score_factors(detector, replace(held_out, factors=strange), source=table)
    with pytest.raises(DataError, match=r"\[N, 3, 16, 16\]"):
        detector(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError, match="not of 4"):
        FactorDetector({"a": ("x", "y")}, 4)
    with pytest.raises(ConfigError, match="two values"):
        FactorDetector({"a": ("x",)}, 16)
    bare = replace(pictures(4, 0), factors={})
    with pytest.raises(DataError, match="no factor table"):
        factor_columns(Dataset("bare", bare, bare, bare, "", ()))
    alike = replace(pictures(4, 0), factors={"sky": ("grey",) * 4})
    with pytest.raises(DataError, match="sky: the training images have one value only"):
        factor_columns(Dataset("alike", alike, alike, alike, "", ()))
    nothing = pictures(0, 3)
    with pytest.raises(DataError, match="no images are held out"):
        train_detector(replace(dataset(16), discovery=nothing, test=nothing))
    with pytest.raises(ConfigError, match="epochs is 0"):
        train_detector(dataset(16), epochs=0)
