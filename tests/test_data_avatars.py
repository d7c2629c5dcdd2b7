"""The avatar renderer: what is drawn, from which distribution, and that nothing but seed and spec decides."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.stats import chi2_contingency

from script_files import HOME
from stylex.data import FACTORS, STANDARD_VALUES, AvatarSpec, load_dataset, render_avatars, render_face
from stylex.errors import DataError

python_avatars = pytest.importorskip("python_avatars")
resvg_py = pytest.importorskip("resvg_py")

PLAIN = {
    "hair_style": "short",
    "hair_color": "brown",
    "glasses": "none",
    "mouth": "smile",
    "facial_hair": "none",
    "skin": "light",
    "clothing": "crew_neck",
    "clothing_color": "red",
    "eyebrows": "flat",
}
CONJUNCTION = {
    "classes": ["young", "old"],
    "factors": {"hair_color": {"grey": 0.5, "black": 0.5}, "glasses": {"glasses": 0.4, "none": 0.6}},
    "combinations": [
        {"all": {"hair_color": "grey", "glasses": "glasses"}, "given": {"old": 0.9, "young": 0.05}}
    ],
}


def _hashes(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("file", sorted((HOME / "avatar_specs").glob("*.yaml")), ids=lambda file: file.stem)
def test_specs_that_models_are_trained_on(file: Path) -> None:
    spec = AvatarSpec.load(file)
    assert max(spec.classes.values()) == 0.5
    drawn = [spec.draw(0, index) for index in range(2000)]
    for name in spec.factors:
        for value in {face[name] for _, face in drawn}:
            for label in spec.classes:
                faces = [face for own, face in drawn if own == label]
                share = sum(face[name] == value for face in faces) / len(faces)
                assert share == pytest.approx(spec.probability(name, value, label), abs=0.05)


def _draws(spec: AvatarSpec, count: int, seed: int = 5) -> list[tuple[str, dict[str, str]]]:
    return [spec.draw(seed, index) for index in range(count)]


def test_bytes_depend_on_seed_and_spec_alone(tmp_path: Path) -> None:
    render_avatars(tmp_path / "one", count=130, size=16, seed=3, processes=1)
    render_avatars(tmp_path / "three", count=130, size=16, seed=3, processes=3)
    render_avatars(tmp_path / "other", count=130, size=16, seed=4, processes=1)
    one = _hashes(tmp_path / "one")
    assert len(one) == 132
    assert one == _hashes(tmp_path / "three")
    assert one != _hashes(tmp_path / "other")


def test_a_larger_count_adds_faces_and_changes_none(tmp_path: Path) -> None:
    render_avatars(tmp_path / "few", count=5, size=16, processes=1)
    render_avatars(tmp_path / "more", count=9, size=16, processes=1)
    few, more = _hashes(tmp_path / "few"), _hashes(tmp_path / "more")
    del few["factors.csv"]
    assert few.items() <= more.items()


def test_the_table_says_what_was_drawn(tmp_path: Path) -> None:
    result = render_avatars(tmp_path / "faces", count=12, size=32, processes=1)
    spec = AvatarSpec.load(tmp_path / "faces" / "spec.yaml")
    assert spec == AvatarSpec.default()
    with (tmp_path / "faces" / "factors.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert Counter(row["label"] for row in rows) == result.classes
    for index, row in enumerate(rows):
        label, face = spec.draw(0, index)
        assert row["label"] == label
        assert {name: row[name] for name in FACTORS} == face
        with Image.open(tmp_path / "faces" / row["file"]) as picture:
            assert picture.mode == "RGB"
            assert np.array_equal(np.asarray(picture), render_face(face, 32))


def test_draws_never_change_between_versions() -> None:
    drawn = [(label, *face.values()) for label, face in (AvatarSpec.default().draw(0, i) for i in range(2))]
    assert drawn == [
        ("old", "curly", "blonde", "none", "smile", "beard", "light", "collar", "green", "sad"),
        ("old", "curly", "blonde", "glasses", "serious", "none", "dark", "overall", "red", "raised"),
    ]


def test_default_spec_plants_the_stated_causes() -> None:
    draws = _draws(AvatarSpec.default(), 6000)
    shares = Counter(label for label, _ in draws)
    assert shares["old"] / 6000 == pytest.approx(0.5, abs=0.026)  # four standard deviations
    stated = {
        ("hair_color", "grey"): {"old": 0.8, "young": 0.1},
        ("glasses", "glasses"): {"old": 0.75, "young": 0.2},
        ("mouth", "smile"): {"old": 0.35, "young": 0.65},
    }
    for (factor, value), given in stated.items():
        for label, p in given.items():
            own = [face for drawn, face in draws if drawn == label]
            share = sum(face[factor] == value for face in own) / len(own)
            assert share == pytest.approx(p, abs=4 * (p * (1 - p) / len(own)) ** 0.5), (factor, label)


def test_default_spec_keeps_everything_else_independent() -> None:
    draws = _draws(AvatarSpec.default(), 6000)
    for factor in set(FACTORS) - {"hair_color", "glasses", "mouth"}:
        counts = Counter((label, face[factor]) for label, face in draws)
        table = [[counts[label, v] for v in STANDARD_VALUES[factor]] for label in ("young", "old")]
        assert chi2_contingency(table).pvalue > 1e-4, factor
    old = [face for label, face in draws if label == "old"]
    for first, second in combinations(FACTORS, 2):
        counts = Counter((face[first], face[second]) for face in old)
        table = [[counts[a, b] for b in STANDARD_VALUES[second]] for a in STANDARD_VALUES[first]]
        assert chi2_contingency(table).pvalue > 1e-5, (first, second)


def test_probability_matches_draws_with_and_without_combination() -> None:
    for spec in (AvatarSpec.default(), AvatarSpec.parse(CONJUNCTION)):
        draws = _draws(spec, 6000)
        for label in spec.classes:
            own = [face for drawn, face in draws if drawn == label]
            for factor in FACTORS:
                for value in STANDARD_VALUES[factor]:
                    p = spec.probability(factor, value, label)
                    share = sum(face[factor] == value for face in own) / len(own)
                    assert share == pytest.approx(p, abs=4.5 * (p * (1 - p) / len(own)) ** 0.5 + 1e-12)


def test_conjunction_holds_exactly_as_often_as_stated() -> None:
    draws = _draws(AvatarSpec.parse(CONJUNCTION), 6000)
    for label, p in (("old", 0.9), ("young", 0.05)):
        own = [face for drawn, face in draws if drawn == label]
        both = sum(face["hair_color"] == "grey" and face["glasses"] == "glasses" for face in own) / len(own)
        assert both == pytest.approx(p, abs=4 * (p * (1 - p) / len(own)) ** 0.5)
    young = [face for drawn, face in draws if drawn == "young"]
    # By hand: 0.05 + 0.95 * (0.5 - 0.2) / (1 - 0.2)
    grey = sum(face["hair_color"] == "grey" for face in young) / len(young)
    assert grey == pytest.approx(0.40625, abs=0.037)


def test_spurious_factor_and_more_than_two_classes(tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text(
        "classes: {a: 0.2, b: 0.3, c: 0.5}\n"
        "factors:\n"
        "  clothing_color: {given: {a: [red], b: [blue], c: {red: 0.5, blue: 0.5}}}\n"
        "  hair_style: [bun]\n"
    )
    spec = AvatarSpec.load(file)
    draws = _draws(spec, 2000)
    assert {face["clothing_color"] for label, face in draws if label == "a"} == {"red"}
    assert {face["clothing_color"] for label, face in draws if label == "b"} == {"blue"}
    assert {face["hair_style"] for _, face in draws} == {"bun"}
    assert {face["skin"] for _, face in draws} == set(STANDARD_VALUES["skin"])  # left out: standard values
    assert Counter(label for label, _ in draws)["c"] / 2000 == pytest.approx(0.5, abs=0.045)
    assert AvatarSpec.parse(yaml.safe_load(spec.to_yaml())) == spec


def test_fast_path_equals_plain_python_avatars() -> None:
    avatar = python_avatars.Avatar(
        style=python_avatars.AvatarStyle.TRANSPARENT,
        eyes=python_avatars.EyeType.DEFAULT,
        nose=python_avatars.NoseType.DEFAULT,
        top=python_avatars.HairType.BOB,
        hair_color=python_avatars.HairColor.SILVER_GRAY,
        facial_hair=python_avatars.FacialHairType.BEARD_MEDIUM,
        facial_hair_color=python_avatars.HairColor.SILVER_GRAY,
        accessory=python_avatars.AccessoryType.PRESCRIPTION_2,
        mouth=python_avatars.MouthType.SERIOUS,
        skin_color=python_avatars.SkinColor.DARK_BROWN,
        clothing=python_avatars.ClothingType.OVERALL,
        clothing_color=python_avatars.ClothingColor.PASTEL_YELLOW,
        eyebrows=python_avatars.EyebrowType.ANGRY_NATURAL,
    ).render()
    svg = avatar.replace('viewBox="0 0 264 280"', 'viewBox="18 12 228 228"').replace("280px", "264px")
    png = resvg_py.svg_to_bytes(svg_string=svg, width=64, height=64, background="#a9cfe0")
    plain = np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))
    face = {
        "hair_style": "bob",
        "hair_color": "grey",
        "facial_hair": "beard",
        "glasses": "glasses",
        "mouth": "serious",
        "skin": "dark",
        "clothing": "overall",
        "clothing_color": "yellow",
        "eyebrows": "angry",
    }
    render_face(face | {"hair_color": "red", "skin": "pale"})  # fills the template cache with other colours
    assert np.array_equal(render_face(face), plain)


@pytest.mark.parametrize("factor", FACTORS)
def test_standard_values_can_be_told_apart_at_64_pixels(factor: str) -> None:
    for others in ({}, {"skin": "dark", "hair_color": "black", "glasses": "glasses", "hair_style": "bob"}):
        base = PLAIN | others
        faces = [render_face(base | {factor: v}).astype(int) for v in STANDARD_VALUES[factor]]
        for first, second in combinations(faces, 2):
            plainly_different = (np.abs(first - second).max(axis=-1) > 32).sum()
            assert plainly_different >= 8, factor


@pytest.mark.parametrize("style", STANDARD_VALUES["hair_style"])
def test_hair_color_shows_in_every_hair_style(style: str) -> None:
    grey, black = (render_face(PLAIN | {"hair_style": style, "hair_color": c}) for c in ("grey", "black"))
    assert (np.abs(grey.astype(int) - black).max(axis=-1) > 100).sum() > 150


def test_facial_hair_takes_the_color_of_the_hair() -> None:
    shaved = render_face(PLAIN | {"hair_color": "grey"}).astype(int)
    grey, black = (
        render_face(PLAIN | {"facial_hair": "beard", "hair_color": c}).astype(int) for c in ("grey", "black")
    )
    beard = np.abs(grey - shaved).max(axis=-1) > 8
    assert beard.sum() > 50
    assert grey[beard].mean() > black[beard].mean() + 50


def test_one_changed_factor_leaves_the_rest_of_the_face() -> None:
    plain, glasses = render_face(PLAIN), render_face(PLAIN | {"glasses": "glasses"})
    changed = (plain != glasses).any(axis=-1)
    assert 0 < changed.sum() < 0.2 * changed.size
    assert not changed[:16].any()
    assert not changed[48:].any()


def test_equal_faces_share_a_set(tmp_path: Path) -> None:
    spec = AvatarSpec.parse(
        {"classes": ["a", "b"], "factors": {n: [v] for n, v in PLAIN.items() if n != "skin"}}
    )
    render_avatars(tmp_path / "faces", count=60, size=8, spec=spec, processes=1)
    data = load_dataset(tmp_path / "faces", use_cache=False)
    seen = [set(s.factors["skin"]) for s in (data.training, data.discovery, data.test)]
    assert sum(len(s) for s in seen) == len(STANDARD_VALUES["skin"])
    assert tuple(data.training.factors) == FACTORS


def test_interrupt_leaves_nothing_behind_and_a_killed_run_is_no_obstacle(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_avatars(tmp_path / "faces", count=200, size=8, processes=2, on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "faces" / ".incomplete" / "old").mkdir(parents=True)
    calls: list[tuple[int, int]] = []
    render_avatars(
        tmp_path / "faces", count=70, size=8, processes=1, on_progress=lambda *call: calls.append(call)
    )
    assert calls == [(64, 70), (70, 70)]
    assert sorted(p.name for p in (tmp_path / "faces").iterdir()) == [
        "factors.csv",
        "old",
        "spec.yaml",
        "young",
    ]


def test_what_another_process_is_rendering_is_left_alone(tmp_path: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(DataError, match="another process is rendering"):
            render_avatars(tmp_path / "faces", count=2, size=8, processes=1)

    render_avatars(tmp_path / "faces", count=3, size=8, processes=1, on_progress=second)
    assert len(list((tmp_path / "faces").rglob("*.png"))) == 3


@pytest.mark.skipif(not hasattr(os, "setsid"), reason="needs process groups")
def test_a_whole_group_of_processes_is_stopped_quietly(tmp_path: Path) -> None:
    program = f"""
import os, signal
from stylex.cli import app
from stylex.data import avatars
fork = avatars._map
def stop(done, total):
    os.killpg(0, signal.SIGTERM)
def render(*arguments, **options):
    return avatars.render_avatars(*arguments, **{{**options, "processes": 3, "on_progress": stop}})
import stylex.data
stylex.data.render_avatars = render
app.main(["data", "avatars", "--out", {str(tmp_path / "faces")!r}, "--count", "600", "--size", "8"])
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, start_new_session=True
    )
    assert ended.returncode == 143
    assert "Traceback" not in ended.stderr
    assert [line for line in ended.stderr.splitlines() if line.startswith("stylex: stopped")]
    assert list(tmp_path.iterdir()) == []


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, signal
from stylex.data.avatars import render_avatars
def kill(done, total):
    os.kill(os.getpid(), signal.SIGKILL)
render_avatars({str(tmp_path / "faces")!r}, count=600, size=8, processes=2, on_progress=kill)
"""
    # Returns only once nobody holds the pipes any more.
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60)
    assert ended.returncode == -9


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(DataError, match="not empty"):
        render_avatars(tmp_path, count=2, size=8)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"classes": ["a", "b"], "colours": 1}, "colours: unknown key"),
        ({"classes": ["a"]}, "at least two classes"),
        ({"classes": {"a": 0.5, "b": 0.4}}, "sum to 0.9"),
        ({"classes": {"a": float("nan"), "b": 0.4}}, "sum to nan"),
        ({"classes": ["a", "../b"]}, "cannot be the name of a class"),
        ({"classes": ["a", "b"], "factors": {"hat": ["x"]}}, "no factor is called hat"),
        (
            {"classes": ["a", "b"], "factors": {"skin": ["green"]}},
            "skin cannot be 'green'; standard values: pale",
        ),
        ({"classes": ["a", "b"], "factors": {"skin": {"pale": 1.5, "dark": -0.5}}}, "negative"),
        (
            {"classes": ["a", "b"], "factors": {"skin": {"given": {"a": ["pale"]}}}},
            "must name each class once",
        ),
        (
            CONJUNCTION | {"combinations": [{"all": {"skin": "pale"}, "given": {"old": 1, "young": 0}}]},
            "at least 2",
        ),
        (CONJUNCTION | {"combinations": CONJUNCTION["combinations"] * 2}, "in two combinations"),
        (
            CONJUNCTION | {"factors": {"hair_color": ["grey"], "glasses": ["glasses"]}},
            "always holds for 'young'",
        ),
    ],
)
def test_bad_specs_get_one_clear_line(raw: object, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        AvatarSpec.parse(raw, where="my.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("my.yaml", "avatars: skin"))


def test_bad_spec_files_faces_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("classes: [a, b\n")
    with pytest.raises(DataError, match=r"broken\.yaml: not a readable YAML file"):
        render_avatars(tmp_path / "out", spec=tmp_path / "broken.yaml")
    with pytest.raises(DataError, match="power of two"):
        render_avatars(tmp_path / "out", size=60)
    with pytest.raises(DataError, match="at least 1"):
        render_avatars(tmp_path / "out", count=0)
    with pytest.raises(DataError, match="skin"):
        render_face({name: value for name, value in PLAIN.items() if name != "skin"})
    with pytest.raises(DataError, match="mouth cannot be 'happy'"):
        render_face(PLAIN | {"mouth": "happy"})
    assert not (tmp_path / "out").exists()
