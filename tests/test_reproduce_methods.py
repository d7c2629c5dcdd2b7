"""All methods on several recipes and seeds, from rendered faces on: one command, one table."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import problems
import training_problems
from stylex import classifiers
from stylex.classifiers import Classifier
from stylex.cli.app import main
from stylex.config import load_recipe
from stylex.errors import ClassifierError, ConfigError, DataError, Stopped, StylexError, TrainingDiverged
from stylex.reproduce.experiments import EXPERIMENTS, experiment
from stylex.reproduce.items import default_experiments, reproduce
from stylex.reproduce.kept import finished
from stylex.reproduce.workshop import RECIPES, Workshop
from stylex.run import Run
from test_reproduce import CPU, save_classifier
from test_reproduce_experiments import balance

pytest.importorskip("python_avatars")

METHODS = {"AttFind", "AttFind independent", "Wu et al.", "random", "random-weight classifier"}

TINY = (*training_problems.TINY, "loss.perceptual_network=classifier")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def workshop(home: Path) -> Workshop:
    return Workshop(
        experiment("avatars-age"),
        home,
        {},
        training_problems.HARDWARE,
        size=16,
        assignments=TINY,
        epochs=1,
        images_per_class=4,
        recipes=("fast", "stylex"),
        seeds=(0, 1),
        faces=120,
    )


def test_all_methods_with_two_seeds(tmp_path: Path) -> None:
    shop = workshop(tmp_path / "home")
    shop.render()
    for recipe, kind, seed in (("fast", "evidence", 0), ("fast", "evidence", 1), ("stylex", "stylex", 0)):
        model = problems.tiny_model(kind)
        balance(model, shop.data.training.batch(slice(None)), spread=6)
        path = shop.run_folder(recipe, seed)
        problems.save_tiny_run(path, model, config=shop.settings(recipe, seed))
    save_classifier(shop.home / "classifier.safetensors", model.classifier)
    save_classifier(shop.home / "judge.safetensors", training_problems.classifier(seed=7))

    found = reproduce("methods", shop)
    last = Run.open(shop.home / "stylex-seed-1")
    assert finished(last)  # the only one that had to be trained
    assert last.config.seed == 1
    rows, failed = found.content["rows"], found.content["failed"]
    runs = {(row["recipe"], row["seed"]) for row in rows}
    assert {("fast", 0), ("fast", 1), ("stylex", 0)} <= runs
    assert len(runs) + len(failed) == 4
    for recipe, seed in (("fast", 0), ("fast", 1)):
        own = [row for row in rows if (row["recipe"], row["seed"]) == (recipe, seed)]
        assert {row["method"] for row in own} >= METHODS
        assert all(row["low"] <= row["rate"] <= row["high"] for row in own)
        assert all(row["coordinates"] > 0 and row["distance"] > 0 for row in own)
        assert any(row["confirmed"] is not None for row in own)
    page = (shop.home / "methods.md").read_text()
    assert "| [fast](fast/config.yaml) | fast | 0 |" in page
    assert "| [fast-seed-1](fast-seed-1/config.yaml) | fast | 1 |" in page
    assert (shop.home / "fast-seed-1" / "config.yaml").exists()
    assert any(each["recipe"] == "fast" and each["seeds"] == [0, 1] for each in found.content["over_seeds"])
    assert "over seeds 0, 1 (mean" in page

    kept = {file: file.stat().st_mtime_ns for file in shop.home.glob("*/evaluation.json")}
    weights = last.model_file.stat().st_mtime_ns
    again = reproduce("methods", workshop(shop.home))
    assert again.content == json.loads(json.dumps(found.content))
    assert {file: file.stat().st_mtime_ns for file in kept} == kept
    assert last.model_file.stat().st_mtime_ns == weights


def test_what_fails_is_left_out_with_its_own_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that diverges and a control that cannot be had; what was measured stays as it is."""
    shop = replace(workshop(tmp_path / "home"), seeds=())
    shop.render()
    model = problems.tiny_model("evidence")
    balance(model, shop.data.training.batch(slice(None)), spread=6)
    problems.save_tiny_run(shop.run_folder("fast"), model, config=shop.settings("fast"))
    save_classifier(shop.home / "classifier.safetensors", model.classifier)
    save_classifier(shop.home / "judge.safetensors", training_problems.classifier(seed=7))
    ends: list[StylexError] = [Stopped("stopped"), TrainingDiverged("not a number")]

    def train(*_: object, **__: object) -> None:
        raise ends.pop(0)

    def draw(*_: object) -> Classifier:
        raise ClassifierError("nothing to draw")

    monkeypatch.setattr("stylex.training.train", train)
    monkeypatch.setattr("stylex.evaluation.controls.random_weights", draw)
    with pytest.raises(Stopped):
        reproduce("methods", shop)
    measured = shop.home / "fast" / "evaluation.json"
    before = measured.stat().st_mtime_ns
    found = reproduce("methods", shop)
    assert measured.stat().st_mtime_ns == before
    assert {row["recipe"] for row in found.content["rows"]} == {"fast"}
    assert {row["method"] for row in found.content["rows"]} >= METHODS - {"random-weight classifier"}
    assert found.content["failed"] == {"stylex": "not a number"}
    assert "- stylex is left out: not a number" in found.text
    assert "- fast: no random-weight classifier: nothing to draw" in found.text

    refused = replace(shop, seed=1)
    with pytest.raises(ConfigError, match="another --home"):
        reproduce("methods", replace(refused, recipes=("stylex", "fast")))
    assert not ends


def test_recipes_are_as_wide_and_as_long_as_the_experiments_own(tmp_path: Path) -> None:
    for name, found in EXPERIMENTS.items():
        folders = dict.fromkeys(found.needs, "/data")
        shop = Workshop(found, tmp_path / name, folders, training_problems.HARDWARE)
        own = shop.settings(found.recipe).recipe
        assert own == load_recipe(found.recipe)
        for recipe in RECIPES:
            other = shop.settings(recipe).recipe
            assert other.training.total_kimg == own.training.total_kimg
            assert other.network.channels(found.size) == own.network.channels(found.size)
            assert other.loss.adversarial_start_kimg <= other.training.total_kimg
    start = load_recipe("fast").loss.adversarial_start_kimg / load_recipe("fast").training.total_kimg
    afhq = Workshop(experiment("study-afhq"), tmp_path, {"afhq": "/data"}, training_problems.HARDWARE)
    scaled = afhq.settings("fast").recipe
    assert scaled.loss.adversarial_start_kimg == pytest.approx(start * 880, rel=1e-3)
    short = replace(afhq, assignments=("training.total_kimg=200",))
    assert {short.settings(recipe).recipe.training.total_kimg for recipe in RECIPES} == {200}


def test_from_nothing_on_the_command_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A classifier that calls every image one class: each run is trained, and said to be left out."""
    trained = classifiers.train

    def biased(*given: Any, **more: Any) -> Any:
        classifier, report = trained(*given, **more)
        last = [part for part in classifier.network.modules() if isinstance(part, nn.Linear)][-1]
        with torch.no_grad():
            last.bias[0] += 1000
        return classifier, report

    monkeypatch.setattr(classifiers, "train", biased)
    shop = replace(workshop(tmp_path / "home"), recipes=RECIPES, seeds=())
    shop.home.mkdir()
    shop.render()
    words = [f"--set={text}" for text in TINY]
    words += ["--home", str(shop.home), "--size", "16", "--epochs", "1", "--images", "4", "--json", *CPU]
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "methods", *words])
    shown = capfd.readouterr()
    for recipe in RECIPES:
        run = Run.open(shop.home / recipe)
        assert finished(run)
        assert run.config.experiment == "avatars-age"
        assert run.hashes["classifier"] == Run.open(shop.home / "fast").hashes["classifier"]
        assert f"{recipe} is left out: none of" in shown.err
    assert (ended.value.code, shown.out) == (1, "")
    assert shown.err.splitlines()[-1].startswith("stylex: methods: no run could be measured: none of")


def test_bad_input(tmp_path: Path) -> None:
    shop = workshop(tmp_path / "home")
    with pytest.raises(ConfigError, match="no recipe named 'quick'"):
        reproduce("methods", replace(shop, recipes=("fast", "quick")))
    with pytest.raises(ConfigError, match="leave --recipe out"):
        reproduce("methods", replace(shop, recipe="study"))
    for what in ("table-1", "figure-3"):
        with pytest.raises(ConfigError, match="--seeds is for methods"):
            reproduce(what, shop)
        with pytest.raises(ConfigError, match="--recipes is for methods"):
            reproduce(what, replace(shop, seeds=()))
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "methods", "--seeds", "0,x", "--home", str(tmp_path)])
    assert ended.value.code == 2
    assert default_experiments("methods") == ("avatars-age",)
    afhq = replace(shop, experiment=experiment("study-afhq"))
    with pytest.raises(DataError, match="needs --data afhq=FOLDER"):
        reproduce("methods", afhq)
    assert not shop.home.exists()
