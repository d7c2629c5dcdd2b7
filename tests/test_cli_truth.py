"""Verbs about the truth of explanations, from images on, every result as docs/json.md has it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import problems
import training_problems
from stylex.cli.app import main
from stylex.data import load_dataset
from stylex.data.avatars import render_avatars
from stylex.evaluation.coverage import LEAST_IMAGES, TRUSTED
from stylex.evaluation.factor_training import train_detector
from stylex.run import read_json
from test_cli import documented, same_shape

pytest.importorskip("python_avatars")

CPU = ("--device", "cpu", "--precision", "fp32", "--threads", "1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Faces of 16 px, a detector, a run with random weights, and another version of its classifier."""
    folder = tmp_path_factory.mktemp("truth")
    render_avatars(folder / "faces", count=600, size=16, processes=1)
    images = load_dataset(folder / "faces", use_cache=False)
    train_detector(images, epochs=1).save(folder / "detector.safetensors")
    problems.save_tiny_run(folder / "run", problems.tiny_model(), str(folder / "faces"))
    other = training_problems.classifier(seed=3)
    other.options = {"widths": [4, 4, 8, 8]}
    other.save(folder / "other.safetensors")
    return folder


@pytest.fixture
def run(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(home / "run", tmp_path / "run")
    return tmp_path / "run"


def stylex(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    shown = capfd.readouterr()
    return int(ended.value.code or 0), shown.out, shown.err


def check(capfd: pytest.CaptureFixture[str], verb: str, *arguments: object, like: str | None = None) -> Any:
    code, out, err = stylex(capfd, *verb.split()[1:], *arguments, "--json")
    assert code == 0, err
    content = json.loads(out)
    same_shape(documented(like or verb), content)
    for entry in content.get("coverage", ()):
        assert entry["group"] in ("class 'a'", "class 'b'")
        lost = entry["agreement"]["estimate"] < TRUSTED or entry["agreement"]["n"] < LEAST_IMAGES
        assert (entry["warning"] is not None) == lost
        assert not lost or f"warning: {entry['warning']}" in err
    return content


def test_verbs(
    home: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    balance(run, home / "faces")
    found = check(
        capfd, "stylex factors reliance", run / "classifier.safetensors", home / "faces", "--faces", 20, *CPU
    )
    assert found["faces"] == 20
    check(capfd, "stylex attfind", run, "--images", 30, "--set", "unstable_threshold=null", *CPU)
    detector = home / "detector.safetensors"
    asked = [run, "--factors", detector, "--truth", "--faces", 24, "--control", *CPU]
    measured = check(capfd, "stylex evaluate", *asked)
    assert measured["truth"]["faces"] == 24
    assert measured["coverage"] == read_json(run / "evaluation.json")["coverage"]
    assert sum(entry["agreement"]["n"] for entry in measured["coverage"]) == measured["images"]
    assert {"AttFind independent", "random-weight classifier"} <= {m["method"] for m in measured["methods"]}
    assert measured["truth"]["reliance"]
    code, _, err = stylex(capfd, "evaluate", run, "--truth")
    assert (code, "--truth needs --factors" in err) == (2, True)
    rows = check(capfd, "stylex compare", run)["rows"]
    assert rows[0]["rate"] == measured["methods"][0]["curve"]["rate"][-1]
    numbers = [f"--set={text}" for text in ("discovery=24", "latents=6", "repeats=2", "count=2")]
    check(
        capfd,
        "stylex evaluate",
        run,
        "--protocol",
        "study",
        *numbers,
        *CPU,
        like="stylex evaluate --protocol study",
    )
    code, _, err = stylex(capfd, "evaluate", run, "--set", "repeats=2", *CPU)
    assert (code, "--set is for --protocol study" in err) == (2, True)
    use = ["glasses", "--column", "glasses", "--images", 4, "--draws", 19, "--no-adjust", *CPU]
    found = check(capfd, "stylex ask use", run, *use)
    assert found["verdicts"][0]["examples_with"] >= 8
    assert sum(entry["agreement"]["n"] for entry in found["coverage"]) == 4
    assert all(
        "too few" in entry["warning"] or "not be trusted" in entry["warning"] for entry in found["coverage"]
    )
    code, _, err = stylex(capfd, "ask", "use", run, "hat", *CPU)
    assert (code, "say who shows it" in err) == (2, True)
    code, _, err = stylex(capfd, "ask", "use", run, "hat", "--column", "hat", *CPU)
    assert (code, "no column 'hat'" in err) == (1, True)
    check(capfd, "stylex ask groups", run, "--by", "glasses", *CPU)
    code, _, err = stylex(capfd, "ask", "groups", run, "--by", "age", *CPU)
    assert (code, "no column 'age'" in err) == (1, True)
    versions = ["--classifier", home / "other.safetensors", "--images", 2, "--count", 1]
    assert check(capfd, "stylex ask versions", run, *versions, *CPU)["coverage"] == measured["coverage"]
    monkeypatch.setattr("stylex.evaluation.stage.load_extractor", lambda name: problems.PooledPixels())
    given = ["--count", 6, "--perceptual", "classifier", "--export", tmp_path / "cf", *CPU]
    figures = check(capfd, "stylex counterfactuals", run, *given)
    assert figures["images"] == 6
    assert (tmp_path / "cf" / "images.csv").exists()


def balance(path: Path, faces: Path) -> None:
    from test_cli import balance as steer

    steer(path, faces)
