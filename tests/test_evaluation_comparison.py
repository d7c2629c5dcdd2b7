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
from stylex.errors import DataError, RunError
from stylex.evaluation.comparison import as_markdown, compare_runs, stability
from stylex.run import write_json


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
    assert found.correlation.interval.estimate == pytest.approx(expected)
    assert found.overlap == pytest.approx(2 / 3)
    assert abs(found.correlation.chance) < 0.1
    three = explanation({"a": 0.0, "b": 0.0, "c": 3.0, "d": 0.0}, ["c"])
    wider = stability("fast", "old", [explanation(one, ["a"]), explanation(two, ["a"]), three])
    assert wider.correlation.interval.low < 0 < wider.correlation.interval.high
    assert wider.overlap == pytest.approx(1 / 3)
    with pytest.raises(DataError, match="other factors"):
        stability("fast", "old", [three, explanation({"a": 1.0}, [])])
    runs = [
        evaluated(tmp_path, name, seed, [0, 1], {"explanation": {"old": explanation(effects, ["a"])}})
        for seed, (name, effects) in enumerate([("x", one), ("y", two)])
    ]
    (same,) = compare_runs(runs).stability
    assert same.correlation.interval.estimate == pytest.approx(expected)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="name one run"):
        compare_runs([])
    one = evaluated(tmp_path, "one", 0, [0.2, 0.5])
    with pytest.raises(DataError, match="named twice"):
        compare_runs([one, one])
    (one / "evaluation.json").unlink()
    with pytest.raises(RunError, match="not evaluated yet"):
        compare_runs([one])
