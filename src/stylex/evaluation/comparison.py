"""Several runs side by side: recipes against each other, training seeds apart, and whether seeds agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.errors import DataError, RunError
from stylex.evaluation.chance import AgainstChance, against, correlation
from stylex.evaluation.intervals import Interval
from stylex.run import Run, read_json

DRAWS = 500

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """One method towards one class in one run, with k coordinates moved at once.

    `confirmed` is the share that an independent classifier confirms; None without one, or without flips.
    """

    run: str
    recipe: str
    seed: int
    kimg: float
    method: str
    target: str
    k: int
    coordinates: int
    rate: float
    low: float
    high: float
    images: int
    confirmed: float | None
    distance: float
    agreement: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class OverSeeds:
    """A recipe and method towards one class over training seeds: each seed's rate, their mean and spread.

    Seeds are few and images many, so the two are never pooled: `std` (sample standard deviation; None of one
    seed) speaks of training again, a row's interval of other images.
    """

    recipe: str
    method: str
    target: str
    k: int
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    mean: float
    std: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self), "seeds": list(self.seeds), "rates": list(self.rates)}


@dataclass(frozen=True)
class Stability:
    """Whether runs of one recipe that differ in their seed explain alike, towards one class.

    `correlation` is the mean, over pairs of runs, of Pearson's r of the effects that their attributes give
    the factors; its interval is the range over the pairs, and chance shuffles the factors. `overlap` is the
    mean share of main factors (of the first three attributes) that two runs have in common (Jaccard).
    """

    recipe: str
    target: str
    runs: int
    correlation: AgainstChance
    overlap: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "recipe": self.recipe,
            "target": self.target,
            "runs": self.runs,
            "correlation": self.correlation.to_json(),
            "overlap": self.overlap,
        }


@dataclass(frozen=True)
class RunsCompared:
    """All rows, the same over seeds, stability where runs were measured against ground truth."""

    rows: tuple[Row, ...]
    over_seeds: tuple[OverSeeds, ...]
    stability: tuple[Stability, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "over_seeds": [each.to_json() for each in self.over_seeds],
            "stability": [each.to_json() for each in self.stability],
        }


def compare_runs(paths: Sequence[Path], k: int = 10, seed: int = 0) -> RunsCompared:
    """Read the evaluations of runs; nothing is measured.

    Args:
        k: coordinates moved at once; of a shorter curve its last point is taken, and its k said.

    Raises:
        RunError: a run that has not been evaluated. DataError: no runs, or one named twice.
    """
    if not paths:
        raise DataError("name one run or more to compare")
    places = [path.resolve() for path in paths]
    twice = [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if twice:
        raise DataError(f"{twice[0]}: named twice; a run compared with itself says nothing")
    rows: list[Row] = []
    truths: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for path in paths:
        run = Run.open(path)
        file = path / "evaluation.json"
        if not file.exists():
            raise RunError(f"{path}: not evaluated yet; 'stylex evaluate {path}' does it")
        content = read_json(file)
        rows += _rows(run, content, k)
        for target, found in ((content.get("truth") or {}).get("explanation") or {}).items():
            truths.setdefault((run.config.recipe.name, target), []).append(found)
    return RunsCompared(
        tuple(rows),
        _over_seeds(rows),
        tuple(
            stability(recipe, target, found, seed)
            for (recipe, target), found in truths.items()
            if len(found) > 1
        ),
    )


def stability(recipe: str, target: str, found: Sequence[Mapping[str, Any]], seed: int = 0) -> Stability:
    """How alike explanations are, from what `evaluate --truth` wrote of two runs or more.

    Raises:
        DataError: the runs were measured on other factors.
    """
    factors = list(found[0]["explained"])
    if any(set(each["explained"]) != set(factors) for each in found):
        raise DataError(f"runs of recipe {recipe} were measured on other factors; use one detector for all")
    effects = [np.array([each["explained"][name] for name in factors]) for each in found]
    pairs = [correlation(one, other) for one, other in combinations(effects, 2)]
    random = np.random.default_rng(seed)
    chance = [
        float(
            np.mean([correlation(random.permutation(one), other) for one, other in combinations(effects, 2)])
        )
        for _ in range(DRAWS)
    ]
    mains = [{entry["factor"] for entry in each["attributes"][:3]} - {None} for each in found]
    overlaps = [len(one & other) / max(1, len(one | other)) for one, other in combinations(mains, 2)]
    interval = Interval(float(np.mean(pairs)), min(pairs), max(pairs), len(found), 1.0, "range")
    return Stability(recipe, target, len(found), against(interval, chance), float(np.mean(overlaps)))


def as_markdown(found: RunsCompared, base: Path | None = None) -> str:
    """The rows as a table; each links the config.yaml of its run, relative to `base` where that is given."""
    lines = [
        "| run | recipe | seed | kimg | method | towards | k of S | flips (95 %) | n | confirmed | moved "
        "| agreement |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found.rows:
        place = Path(row.run)
        if base is not None and place.resolve().is_relative_to(base.resolve()):
            place = place.resolve().relative_to(base.resolve())
        confirmed = "–" if row.confirmed is None else f"{row.confirmed:.2f}"
        lines.append(
            f"| [{Path(row.run).name}]({(place / 'config.yaml').as_posix()}) | {row.recipe} | {row.seed} | "
            f"{row.kimg:g} | {row.method} | {row.target} | {row.k} of {row.coordinates} | {row.rate:.2f} "
            f"({row.low:.2f} to {row.high:.2f}) | {row.images} | {confirmed} | {row.distance:.3f} | "
            f"{row.agreement:.3f} |"
        )
    return "\n".join(lines)


def _rows(run: Run, content: Mapping[str, Any], k: int) -> list[Row]:
    found = []
    for method in content["methods"]:
        curve = method["curve"]
        place = max((i for i, each in enumerate(curve["k"]) if each <= k), default=0)
        confirmed = method["confirmed"]
        found.append(
            Row(
                str(run.path),
                run.config.recipe.name,
                run.config.seed,
                run.config.recipe.training.total_kimg,
                method["method"],
                method["target"],
                curve["k"][place],
                content["coordinates"],
                curve["rate"][place],
                curve["low"][place],
                curve["high"][place],
                curve["n"],
                None if confirmed is None else confirmed[place]["share"],
                method["distance"][place],
                content["agreement"]["estimate"],
            )
        )
    return found


def _over_seeds(rows: Sequence[Row]) -> tuple[OverSeeds, ...]:
    together: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        together.setdefault((row.recipe, row.method, row.target), []).append(row)
    found = []
    for (recipe, method, target), same in together.items():
        rates = [row.rate for row in same]
        found.append(
            OverSeeds(
                recipe,
                method,
                target,
                max(row.k for row in same),
                tuple(row.seed for row in same),
                tuple(rates),
                float(np.mean(rates)),
                float(np.std(rates, ddof=1)) if len(rates) > 1 else None,
            )
        )
    return tuple(found)
