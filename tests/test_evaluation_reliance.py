"""True reliance against a slow reference, and a classifier whose reliance is known by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stylex.classifiers import Classifier
from stylex.data import load_dataset
from stylex.data.avatars import render_avatars
from stylex.data.faces import FACTORS, STANDARD_VALUES, render_face
from stylex.data.images import ImageSet
from stylex.errors import ConfigError, DataError
from stylex.evaluation.reliance import (
    Redrawn,
    background_of,
    crossed_effect,
    redraw,
    reliance,
    some_faces,
    strongest,
)

pytest.importorskip("python_avatars")

SIZE = 16


class BottomRow(nn.Module):
    """Log-odds of the second class: 8 × the mean of red minus blue in the lowest row, where clothes are."""

    def forward(self, images: Tensor) -> Tensor:
        shirt = images[:, :, -1, 5:11].mean(dim=2)
        odds = 8 * (shirt[:, 0] - shirt[:, 2])
        return torch.stack([-odds / 2, odds / 2], dim=1)


def shirts() -> Classifier:
    return Classifier(BottomRow(), class_names=("cold", "warm"), input_size=None).freeze()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> ImageSet:
    folder = tmp_path_factory.mktemp("faces") / "faces"
    render_avatars(folder, count=30, size=SIZE, seed=3, processes=1)
    sets = load_dataset(folder, use_cache=False)
    return max((sets.training, sets.discovery, sets.test), key=len)


def odds(classifier: Classifier, picture: Any) -> float:
    pixels = torch.from_numpy(picture.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    logits = classifier(pixels)[0]
    return float(logits[1] - logits[0])


def test_redrawn_faces_equal_a_slow_reference(faces: ImageSet) -> None:
    classifier = shirts()
    few = faces.select(range(4))
    found = redraw(classifier, few, STANDARD_VALUES, batch_size=7)
    assert set(found.values) == set(FACTORS)
    for name in ("clothing_color", "glasses", "hair_style"):
        changes = found.changes(name, 1)
        for number in range(4):
            row = {factor: few.factors[factor][number] for factor in FACTORS}
            before = odds(classifier, few.images[number])
            for index, value in enumerate(found.values[name]):
                if value == row[name]:
                    assert np.isnan(changes[number, index])
                    continue
                after = odds(classifier, render_face(row | {name: value}, SIZE))
                assert changes[number, index] == pytest.approx(after - before, abs=1e-4)
                assert found.changes(name, 0)[number, index] == pytest.approx(before - after, abs=1e-4)


def test_only_what_the_classifier_sees_is_relied_on(faces: ImageSet) -> None:
    found = reliance(redraw(shirts(), faces), ("cold", "warm"), resamples=29)
    assert set(found) == {"cold", "warm"}
    for rows in found.values():
        assert rows[0].factor == "clothing_color"
        assert rows[0].relied
        assert rows[0].effect.low > 0
        others = {row.factor: row for row in rows[1:]}
        for name in ("glasses", "mouth", "eyebrows"):  # long hair and a neck may reach the clothes
            assert others[name].size.estimate < 0.02 * rows[0].size.estimate
            assert not others[name].relied
            assert others[name].flips.estimate <= 0.1
    assert found["warm"][0].value in ("red", "yellow")
    assert found["warm"][0].flips.estimate == 1


def by_hand() -> Redrawn:
    """Faces 0 to 11 at log-odds −1, factor a adds 2, b adds 0.3; c (three values) adds 0 or −1."""
    count = 12
    base = np.tile(np.float32([0.5, -0.5]), (count, 1))

    def with_odds(*columns: float) -> Any:
        return np.stack([np.tile(np.float32([-o / 2, o / 2]), (count, 1)) for o in columns], axis=1)

    return Redrawn(
        tuple(str(number) for number in range(count)),
        {"a": ("no", "yes"), "b": ("no", "yes"), "c": ("x", "y", "z")},
        {name: np.zeros(count, np.int64) for name in "abc"},
        base,
        {"a": with_odds(-1, 1), "b": with_odds(-1, -0.7), "c": with_odds(-1, -1, -2)},
        "softmax",
    )


def test_figures_known_by_hand() -> None:
    (rows,) = reliance(
        by_hand(), ("no", "yes"), relied_share=0.2, resamples=99
    ).values()  # nothing is outside "no"
    assert [(row.factor, row.value, row.relied) for row in rows] == [
        ("a", "yes", True),
        ("b", "yes", False),
        ("c", "y", False),
    ]
    assert [row.effect.estimate for row in rows] == pytest.approx([2, 0.3, 0], abs=1e-6)
    assert [row.size.estimate for row in rows] == pytest.approx([2, 0.3, 0.5], abs=1e-6)
    assert [row.flips.estimate for row in rows] == [1, 0, 0]
    assert rows[2].by_value == {"x": None, "y": pytest.approx(0), "z": pytest.approx(-1)}
    looser = reliance(by_hand(), ("no", "yes"), relied_share=0.15, resamples=99)["yes"]
    assert [row.relied for row in looser] == [True, True, False]


def noisy(seed: int, effect: float, faces: int = 40, values: int = 6) -> Redrawn:
    """Every value changes log-odds by noise of deviation 1; the last one of `real` adds `effect`."""
    random = np.random.default_rng(seed)
    base = np.tile(np.float32([1, -1]), (faces, 1))
    own = {name: random.integers(0, values, faces) for name in ("null", "real")}
    logits = {}
    for name in own:
        change = random.normal(0, 1, (faces, values))
        change[:, -1] += effect * (name == "real")
        change[np.arange(faces), own[name]] = 0
        logits[name] = (base[:, None] + np.stack([-change / 2, change / 2], axis=2)).astype(np.float32)
    names = tuple(str(number) for number in range(faces))
    shown = tuple("abcdef"[:values])
    return Redrawn(names, {"null": shown, "real": shown}, own, base, logits, "softmax")


def test_a_factor_that_does_nothing_has_no_effect_on_average() -> None:
    null, real, plain = [], [], []
    for seed in range(200):
        found = noisy(seed, 3.0)
        changes = {name: found.changes(name, 1) for name in ("null", "real")}
        null.append(crossed_effect(changes["null"], np.ones(40)))
        real.append(crossed_effect(changes["real"], np.ones(40)) - np.nanmean(changes["real"][:, -1]))
        plain.append(strongest(changes["null"])[1])
    assert abs(np.mean(null)) < 4 * np.std(null) / len(null) ** 0.5
    assert np.mean(plain) > 0.15  # the largest of the means of all faces
    assert np.abs(real).max() < 1e-6, "both halves choose the same value: its plain mean"


def test_intervals_of_nothing_cover_nothing() -> None:
    rows = [
        row.effect
        for seed in range(40)
        for row in reliance(noisy(seed, 3.0), ("no", "yes"), resamples=99)["yes"]
        if row.factor == "null"
    ]
    assert sum(effect.low <= 0 <= effect.high for effect in rows) >= 34


class Told(nn.Module):
    """A classifier whose log-odds of the first class are known for every picture of a list."""

    def __init__(self, pictures: list[Any], odds: list[float]) -> None:
        super().__init__()
        self.odds: dict[bytes, float] = {}
        for picture, value in zip(pictures, odds, strict=True):
            assert self.odds.setdefault(picture.tobytes(), value) == value, "alike faces of unlike classes"

    def forward(self, images: Tensor) -> Tensor:
        pictures = ((images + 1) * 127.5).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
        found = torch.tensor([self.odds[picture.tobytes()] for picture in pictures])
        return torch.stack([found / 2, -found / 2], dim=1)


def test_a_conjunction_and_what_only_goes_along_with_it(tmp_path: Path) -> None:
    """A wizard has a beard and glasses; clothing that goes along with both, and all else, does nothing."""
    wizard = Path(__file__).parent.parent / "scripts" / "avatar_specs" / "wizard.yaml"
    render_avatars(tmp_path / "faces", count=70, size=SIZE, seed=4, spec=wizard, processes=1)
    sets = load_dataset(tmp_path / "faces", use_cache=False)
    images = max((sets.training, sets.discovery, sets.test), key=len)
    rows = [{name: images.factors[name][number] for name in FACTORS} for number in range(len(images))]
    navy = np.array([row["clothing_color"] == "navy" for row in rows])
    is_wizard = np.array([row["facial_hair"] == "beard" and row["glasses"] == "glasses" for row in rows])
    assert np.corrcoef(navy, is_wizard)[0, 1] > 0.6, "the companion is there to mislead"

    drawn, odds = [], []
    for row in rows:
        for factor in FACTORS:
            for value in sorted(set(images.factors[factor])):
                changed = row | {factor: value}
                drawn.append(render_face(changed, SIZE))
                both = changed["facial_hair"] == "beard" and changed["glasses"] == "glasses"
                odds.append(4.0 if both else -2.0)
    told = Classifier(Told(drawn, odds), class_names=("wizard", "other"), input_size=None).freeze()
    found = reliance(redraw(told, images), ("wizard", "other"), resamples=99)

    for rows_of, value_of in ((found["wizard"], "beard"), (found["other"], None)):
        causes = {row.factor: row for row in rows_of if row.relied}
        assert set(causes) == {"facial_hair", "glasses"}
        assert value_of in (None, causes["facial_hair"].value)
        assert all(row.size.estimate == 0 for row in rows_of if not row.relied)
    other = {row.factor: row.effect.estimate for row in found["other"]}
    assert other["glasses"] == pytest.approx(6), "a wizard without either is none"
    assert other["facial_hair"] == pytest.approx(6)
    lacking = [row for row, both in zip(rows, is_wizard, strict=True) if not both]
    towards = {row.factor: row.effect.estimate for row in found["wizard"]}
    for factor, value, needed in (
        ("glasses", "glasses", ("facial_hair", "beard")),
        ("facial_hair", "beard", ("glasses", "glasses")),
    ):
        without = [row for row in lacking if row[factor] != value]
        share = np.mean([row[needed[0]] == needed[1] for row in without])
        assert towards[factor] == pytest.approx(6 * share), "half a wizard becomes one, others do not"


def test_classes_with_too_few_faces_outside_are_named(caplog: pytest.LogCaptureFixture) -> None:
    assert set(reliance(by_hand(), ("no", "yes"), resamples=9)) == {"yes"}
    assert "not measured towards 'no' (0): fewer than 10 of 12 faces" in caplog.text


def test_a_value_that_every_face_has_does_not_count() -> None:
    changes = np.array([[np.nan, 0.5, -1.0], [np.nan, 1.5, np.nan]])
    assert strongest(changes) == (1, 1.0)


def test_faces_read_smaller_than_they_were_drawn(tmp_path: Path) -> None:
    render_avatars(tmp_path / "faces", count=4, size=32, seed=1, processes=1)
    images = load_dataset(tmp_path / "faces", size=SIZE, use_cache=False).training
    assert redraw(shirts(), images).base.shape == (len(images), 2)


def test_another_background(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text("classes: [a, b]\nbackground: '#ffffff'\n")
    render_avatars(tmp_path / "faces", count=12, size=SIZE, spec=spec, processes=1)
    images = load_dataset(tmp_path / "faces", use_cache=False).training
    assert background_of(tmp_path / "faces") == "#ffffff"
    assert background_of(tmp_path) != background_of(tmp_path / "nowhere")
    redraw(shirts(), images, background="#ffffff")
    with pytest.raises(DataError, match="background"):
        redraw(shirts(), images)
    with (tmp_path / "faces" / "factors.csv").open() as stream:
        row = [line.split(",")[0] for line in stream].index(images.names[0])
    for source in (tmp_path / "faces", tmp_path / "faces" / "factors.csv"):
        with pytest.raises(DataError, match=rf"factors\.csv, row {row}: {images.names[0]}: is not the face"):
            redraw(shirts(), images, source=source)


def test_bad_input(faces: ImageSet) -> None:
    smiles = faces.factors["mouth"]
    wrong = {
        **faces.factors,
        "mouth": (*smiles[:3], "grimace" if smiles[3] == "smile" else "smile", *smiles[4:]),
    }
    with pytest.raises(DataError, match=f"{faces.names[3]}: is not the face"):
        redraw(shirts(), replace(faces, factors=wrong))
    with pytest.raises(DataError, match="glasses missing"):
        redraw(shirts(), replace(faces, factors={k: v for k, v in faces.factors.items() if k != "glasses"}))
    with pytest.raises(DataError, match="no rendered faces"):
        redraw(shirts(), faces.select([]))
    few = redraw(shirts(), faces.select(range(4)))
    with pytest.raises(DataError, match="4 faces leave fewer than 10"):
        reliance(few, ("cold", "warm"))
    with pytest.raises(ConfigError, match="0 to 1"):
        reliance(few, ("cold", "warm"), relied_share=0)
    assert some_faces(faces, 3).names == (faces.names[0], faces.names[(len(faces) - 1) // 2], faces.names[-1])
    with pytest.raises(ConfigError, match="0 faces"):
        some_faces(faces, 0)
