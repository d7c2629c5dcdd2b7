from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import study_samples
from stylex import load
from stylex.errors import DataError
from stylex.evaluation.factors import FactorDetector
from stylex.evaluation.measure import prepare
from stylex.explainer import demo_folder, load_images
from stylex.run import Run
from stylex.study import analyse
from stylex.study.answers import key_text
from stylex.study.design import StudySettings
from stylex.study.machine import CLEAR, Changes, read_changes, take_part
from stylex.study.material import load_design, load_pairs, make_study, top_attributes


def known(confused: bool) -> tuple[object, Changes]:
    """Every one of three attributes changes a number of its own; or two change the same."""
    design = study_samples.design(attributes=2 if confused else 3, questions=3)
    vectors = {}
    for name in design.images:
        place = design.owner(name)
        vectors[name] = np.eye(3)[0 if confused else place] + 1e-3
    return design, Changes(vectors, vectors, ("hair: grey", "glasses: none", "mouth: open"))


def test_it_tells_apart_what_differs_and_flags_what_does_not(tmp_path: Path) -> None:
    design, changes = known(confused=False)
    found = take_part(design, changes, ["hair", "glasses", "mouth"], 10)
    assert found.accuracy == 1
    assert found.flagged == ()
    assert [entry.reads for entry in found.attributes] == ["hair: grey", "glasses: none", "mouth: open"]
    (tmp_path / "a.csv").write_text(found.csv())
    (tmp_path / "key.txt").write_text(key_text(design.key))
    assert analyse(tmp_path / "a.csv", tmp_path / "key.txt").accuracy == 1
    design, changes = known(confused=True)
    found = take_part(design, changes, ["hair", "glasses"], 40)
    assert found.flagged == ("hair", "glasses")
    assert 0.3 < found.accuracy < 0.7  # there is nothing to go by
    assert [entry.confused_with for entry in found.attributes] == ["glasses", "hair"]
    (tmp_path / "a.csv").write_text(found.csv())
    (tmp_path / "key.txt").write_text(key_text(design.key))
    assert analyse(tmp_path / "a.csv", tmp_path / "key.txt").accuracy == pytest.approx(found.accuracy)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    run = study_samples.run_with_study(tmp_path / "run", study_samples.design())
    detector = FactorDetector({"hair": ("a", "b")}, 32)
    with pytest.raises(DataError, match="reads 32 pixels, the study has 16"):
        read_changes(detector, *load_pairs(run))
    found = read_changes(FactorDetector({"hair": ("a", "b")}, 16).eval(), *load_pairs(run))
    assert found.labels == ("hair: a", "hair: b")
    assert len(found.seen) == len(load_design(run).images)  # type: ignore[union-attr]


def test_the_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The top 6 of the shipped model, read by the detector that is shipped with it: 0.9 or more."""
    monkeypatch.setattr(
        "stylex.study.material._write_pictures", lambda *_: None
    )  # the machine reads the frames
    shutil.copytree(demo_folder(), tmp_path / "run")
    explainer = load(tmp_path / "run", device="cpu", precision="fp32")
    test = prepare(explainer.model, load_images(explainer.run).test, 0)
    design = make_study(explainer, test, StudySettings())
    assert load_design(Run.open(tmp_path / "run")) == design
    ranked = top_attributes(explainer.findings, explainer.class_names, None)
    assert len({entry.coordinate for entry in ranked}) == len(ranked)
    coordinates = [entry.coordinate for entry in ranked]
    places = [coordinates.index(entry.coordinate) for entry in design.attributes]
    assert places == sorted(places)
    detector = FactorDetector.load(tmp_path / "run" / "detector.safetensors")
    found = take_part(design, read_changes(detector, *load_pairs(explainer.run)), list("abcdef"), 20)
    assert found.accuracy >= 0.9
    assert found.attributes[0].accuracy > 0.9
    right = np.array(found.choices) == np.array(list(design.key.values()))  # 20 forms, 6 × 3 questions
    by_attribute = right.reshape(20, 6, 3).mean(axis=(0, 2)).tolist()
    assert [entry.accuracy for entry in found.attributes] == pytest.approx(by_attribute)
    assert min(by_attribute) >= 0.5  # who guesses does as well
    weak = [entry.attribute for entry in found.attributes if min(entry.accuracy, entry.named) < CLEAR]
    assert list(found.flagged) == weak
