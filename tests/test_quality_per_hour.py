"""The script that compares recipes at equal time: its rows, what it takes for done, its table."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pytest

import training_problems as problems
from problems import save_images
from script_files import HOME, load_script
from stylex.config import load_recipe
from stylex.training.costs import StepCost
from stylex.training.loop import train


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script("quality_per_hour")


def test_every_row_is_a_recipe_and_no_two_are_the_same(script: Any) -> None:
    rows = script.read_rows(HOME / "quality_per_hour.yaml")
    recipes = [load_recipe(row.recipe, list(row.assignments)) for row in rows]
    assert all(one != two for number, one in enumerate(recipes) for two in recipes[:number])
    assert {row.recipe for row in rows} == {"fast", "stylex", "study", "vdv", "stylegan2"}
    assert [row.name for row in script.read_rows(HOME / "quality_per_hour.yaml", ["vdv", "fast"])] == [
        "fast",
        "vdv",
    ]
    with pytest.raises(SystemExit, match="no row none"):
        script.read_rows(HOME / "quality_per_hour.yaml", ["none"])


@pytest.mark.parametrize(("recipe", "factors"), [("fast", True), ("fast", False), ("stylegan2", True)])
def test_truth_is_measured_where_there_is_a_detector_and_an_encoder(
    script: Any, recipe: str, factors: bool, tmp_path: Path
) -> None:
    given = argparse.Namespace(
        data="fashion-mnist#Shirt,Coat",
        classifier=Path("c.safetensors"),
        judge=Path("j.safetensors"),
        factors=Path("d.safetensors") if factors else None,
        test=None,
        minutes=1,
        seed=0,
        size=32,
        images=8,
        jobs=1,
    )
    made = script.commands(script.Row("row", recipe, ()), given, tmp_path)
    assert ("--truth" in made["evaluation.json"]) == (factors and recipe == "fast")
    assert "None" not in made["evaluation.json"]
    assert made["model.safetensors"][made["model.safetensors"].index("--data") + 1] == given.data


def test_rows_get_the_images_that_take_as_long_as_those_of_another(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose steps take twice as long gets half of the images, its schedule in proportion."""
    data = save_images(tmp_path / "data")

    def timed(config: Any, *_: Any, **__: Any) -> StepCost:
        slow = 2.0 if config.recipe.loss.r1 == 10 else 1.0
        return StepCost(8, {"encode": 0.1 * slow, "swap": 0.1 * slow}, {}, 0.1 * slow, 0, 0, 1)

    monkeypatch.setattr(script, "measure_step", timed)
    monkeypatch.setattr("stylex.classifiers.load", lambda _: problems.classifier())
    given = argparse.Namespace(
        data=str(data),
        classifier=Path("c.safetensors"),
        rows=HOME / "quality_per_hour.yaml",
        like="fast",
        kimg=20,
        size=16,
        jobs=1,
        out=tmp_path / "rows",
    )
    rows = script.read_rows(HOME / "quality_per_hour.yaml", ["fast", "no-warm-up", "r1-10", "batch-16"])
    lengths = script.lengths_of(rows, given)
    kept = {name: dict(each.split("=") for each in said) for name, said in lengths.items()}
    assert {name: float(each["training.total_kimg"]) for name, each in kept.items()} == {
        "fast": 20,
        "no-warm-up": 20,
        "r1-10": 10,
        "batch-16": 20,
    }
    start = load_recipe("fast").loss.adversarial_start_kimg / load_recipe("fast").training.total_kimg
    assert float(kept["r1-10"]["loss.adversarial_start_kimg"]) == pytest.approx(10 * start, rel=0.01)
    assert "loss.adversarial_start_kimg" not in kept["no-warm-up"]
    monkeypatch.setattr(script, "in_time_of", None)  # what is kept is not timed again
    assert script.lengths_of(rows, given) == lengths
    given.kimg = 30
    with pytest.raises(SystemExit, match="is of"):
        script.lengths_of(rows, given)


def test_a_row_that_was_stopped_is_not_taken_for_trained(script: Any, tmp_path: Path) -> None:
    run = problems.make_run(tmp_path / "run", "fast", ["training.keep_checkpoints=9"])
    train(run, problems.images(), problems.classifier(), problems.HARDWARE)
    files = run.checkpoint_files()
    assert script.finished(run)
    for file in files[1:]:
        file.unlink()
    assert run.model_file.exists()
    assert not script.finished(run)
    shutil.rmtree(run.checkpoints)
    assert script.finished(run), "a whole model without checkpoints, as a copy may be"


def test_the_table_has_a_cell_for_every_column_whatever_is_missing(script: Any) -> None:
    found = dict.fromkeys(key for key, _ in script.COLUMNS.values())
    found |= {"minutes": 9.96, "flips_3": {"young": 0.5, "old": 1.0}, "images": 20_000, "worst_factor": None}
    table = script.markdown({"fast": found}).splitlines()
    assert len({line.count("|") for line in table}) == 1
    assert "| 20,000 |" in table[2]
    assert "| 1.00 / 0.50 |" in table[2]
    assert table[2].startswith("| fast | 10.0 |")
    assert table[2].endswith("| – |")
