"""Runs side by side: rows as their files say, seeds apart, stability by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats

import problems
from stylex.attfind import Findings
from stylex.config import AttFindSettings
from stylex.errors import DataError, RunError
from stylex.evaluation.comparison import as_markdown, compare_runs, stability
from stylex.run import read_json, write_json


def explanation(effects: dict[str, float], mains: list[str | None]) -> dict[str, Any]:
    return {"explained": effects, "attributes": [{"factor": name} for name in mains]}


def evaluated(folder: Path, name: str, seed: int, rates: list[float], truth: Any = None) -> Path:
    path = folder / name
    problems.save_tiny_run(path, problems.tiny_model())
    config = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"seed": seed}))
    curve = {"k": [1, 3], "rate": rates, "low": [0.1, 0.2], "high": [0.8, 0.9], "n": 20}
    method = {
        "method": "AttFind",
        "target": "old",
        "curve": curve,
        "confirmed": [{"share": None}, {"share": 0.75}],
        "distance": [0.01, 0.02],
    }
    content = {"methods": [method], "coordinates": 40, "agreement": {"estimate": 0.97}, "truth": truth}
    write_json(path / "evaluation.json", content)
    return path


def test_rows_and_seeds(tmp_path: Path) -> None:
    one = evaluated(tmp_path, "one", 0, [0.2, 0.5])
    two = evaluated(tmp_path, "two", 1, [0.4, 0.9])
    found = compare_runs([one, two], k=10)
    assert [(row.seed, row.k, row.rate, row.confirmed) for row in found.rows] == [
        (0, 3, 0.5, 0.75),
        (1, 3, 0.9, 0.75),
    ]
    (seeds,) = found.over_seeds
    assert (seeds.seeds, seeds.rates) == ((0, 1), (0.5, 0.9))
    assert seeds.mean == pytest.approx(0.7)
    assert seeds.std == pytest.approx(np.std([0.5, 0.9], ddof=1))
    assert found.stability == ()
    assert compare_runs([one], k=1).rows[0].confirmed is None
    assert compare_runs([one]).over_seeds[0].std is None
    table = as_markdown(found, tmp_path)
    assert "[two](two/config.yaml)" in table
    assert "0.90 (0.20 to 0.90)" in table
    content = found.to_json()
    assert json.loads(json.dumps(content, allow_nan=False)) == content


def test_stability_by_hand(tmp_path: Path) -> None:
    one = {"a": 2.0, "b": 1.0, "c": 0.0, "d": 0.1}
    two = {"d": 0.0, "a": 1.8, "b": 1.2, "c": 0.2}
    found = stability("fast", "old", [explanation(one, ["a", "b", None]), explanation(two, ["a", "d", "b"])])
    expected = stats.pearsonr([2, 1, 0, 0.1], [1.8, 1.2, 0.2, 0]).statistic
    assert found.correlation.estimate == pytest.approx(expected)
    assert found.pairs == pytest.approx((expected,))
    assert found.overlap.estimate == pytest.approx(2 / 3)
    assert abs(found.correlation.chance) < 0.1
    # Two and three of four factors have two in common half the time, and one otherwise: (2 / 3 + 1 / 4) / 2.
    assert found.overlap.chance == pytest.approx(11 / 24, abs=0.05)
    assert found.overlap.limit == pytest.approx(2 / 3)
    three = explanation({"a": 0.0, "b": 0.0, "c": 3.0, "d": 0.0}, ["c"])
    wider = stability("fast", "old", [explanation(one, ["a"]), explanation(two, ["a"]), three])
    assert len(wider.pairs) == 3
    assert min(wider.pairs) < 0 < max(wider.pairs)
    assert wider.correlation.estimate == pytest.approx(np.mean(wider.pairs))
    assert wider.overlap.estimate == pytest.approx(1 / 3)
    assert wider.overlap.chance == pytest.approx(1 / 4, abs=0.05)  # one factor of four each
    with pytest.raises(DataError, match="other factors"):
        stability("fast", "old", [three, explanation({"a": 1.0}, [])])
    runs = [
        evaluated(tmp_path, name, seed, [0, 1], {"explanation": {"old": explanation(effects, ["a"])}})
        for seed, (name, effects) in enumerate([("x", one), ("y", two)])
    ]
    (same,) = compare_runs(runs).stability
    assert same.correlation.estimate == pytest.approx(expected)
    assert same.runs == tuple(str(run) for run in runs)
    content = same.to_json()
    assert content["correlation"]["pairs"] == pytest.approx([expected])
    # A mean of pairs has no interval: nothing may look like one.
    assert not {"low", "high", "method", "confidence"} & {*content["correlation"], *content["overlap"]}


def changed(path: Path, key: str, value: Any) -> Path:
    config = yaml.safe_load((path / "config.yaml").read_text())
    *sections, last = key.split(".")
    part = config
    for section in sections:
        part = part[section]
    part[last] = value
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    return path


def test_only_runs_that_differ_in_their_seed_are_seeds(tmp_path: Path) -> None:
    truth = {"explanation": {"old": explanation({"a": 1.0, "b": 0.0}, ["a"])}}
    runs = [evaluated(tmp_path, name, seed, [0.2, 0.5], truth) for seed, name in enumerate("abcdefg")]
    changed(runs[2], "recipe.training.total_kimg", 7.0)
    changed(runs[3], "data", "others")
    write_json(runs[4] / "run.json", read_json(runs[4] / "run.json") | {"hashes": {"classifier": "f" * 64}})
    write_json(
        runs[5] / "evaluation.json",
        read_json(runs[5] / "evaluation.json") | {"measured": {"sha256": "0" * 64}},
    )
    changed(runs[6], "experiment", "another word for it")
    found = compare_runs(runs)
    alike = tuple(str(runs[number]) for number in (0, 1, 6))
    assert [each.runs for each in found.over_seeds] == [alike, *((str(runs[n]),) for n in (2, 3, 4, 5))]
    assert found.over_seeds[0].seeds == (0, 1, 6)
    assert [each.runs for each in found.stability] == [alike]
    assert [row.run for row in found.rows] == [str(run) for run in runs]
    length, data, classifier, images = found.apart
    assert length == "c: no further seeds of a, b, g (recipe fast): recipe.training.total_kimg 7.0, not 0.04"
    assert data.endswith("data others, not none")
    assert classifier.endswith("classifier ffffffffffff…, not none")
    assert images.endswith("test images 000000000000…, not None")


def test_searches_of_before_and_after_a_setting_existed_are_alike(tmp_path: Path) -> None:
    """A file of before attributes were compared and put in order is one of a search that did neither."""
    old, new, other = (evaluated(tmp_path, name, seed, [0.2, 0.5]) for seed, name in enumerate("abc"))
    for path, chosen in ((old, {}), (new, {}), (other, {"order": "effect", "alike": 0.4})):
        settings = AttFindSettings(**({"order": "selection", "alike": None} | chosen))
        write_json(path / "attributes.json", Findings({}, (), 3, 0, 40, settings).to_json())
    content = read_json(old / "attributes.json")
    for setting in ("order", "alike"):
        del content["settings"][setting]
    write_json(old / "attributes.json", content)
    found = compare_runs([old, new, other])
    assert [each.seeds for each in found.over_seeds] == [(0, 1), (2,)]
    (apart,) = found.apart
    assert "attfind.order effect, not selection" in apart


def test_two_runs_of_one_seed_are_refused(tmp_path: Path) -> None:
    one, two = (evaluated(tmp_path, name, 3, [0.2, 0.5]) for name in ("one", "two"))
    with pytest.raises(DataError, match=r"one and .*two: the same settings and the same seed 3"):
        compare_runs([one, two])
    changed(two, "recipe.loss.kl", 0.25)
    assert [each.seeds for each in compare_runs([one, two]).over_seeds] == [(3,), (3,)]


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name one run"):
        compare_runs([])
    one = evaluated(tmp_path, "one", 0, [0.2, 0.5])
    with pytest.raises(DataError, match="named twice"):
        compare_runs([one, one])
    (one / "evaluation.json").unlink()
    with pytest.raises(RunError, match="not evaluated yet"):
        compare_runs([one])
