"""Several runs side by side: recipes against each other, training seeds apart, and whether seeds agree.

Runs are seeds of one thing if nothing else differs: settings, images, classifier, search and test images. A
recipe's name says none of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stylex.attfind import load_findings
from stylex.config import flat
from stylex.errors import DataError, RunError
from stylex.evaluation.chance import correlation
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
    agreement: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(vars(self))


@dataclass(frozen=True)
class OverSeeds:
    """A method towards one class over training seeds: each seed's rate, their mean and spread.

    Seeds are few and images many, so the two are never pooled: `std` (sample standard deviation; None of one
    seed) speaks of training again, a row's interval of other images. `runs`, `seeds` and `rates` go together.
    """

    recipe: str
    method: str
    target: str
    k: int
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    rates: tuple[float, ...]
    mean: float
    std: float | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        lists = {"runs": list(self.runs), "seeds": list(self.seeds), "rates": list(self.rates)}
        return {**vars(self), **lists}


@dataclass(frozen=True)
class Chance:
    """A figure, its mean under chance, and what chance reaches in one case of twenty."""

    estimate: float
    chance: float
    limit: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"estimate": self.estimate, "chance": self.chance, "chance_limit": self.limit}


@dataclass(frozen=True)
class Stability:
    """Whether runs that differ in nothing but their seed explain alike, towards one class.

    `pairs` is Pearson's r, for every pair of runs, of the effects that their attributes give the factors;
    `correlation` their mean. `overlap` is the mean share of main factors (of the first three attributes) that
    two runs have in common (Jaccard). Neither has an interval: factors are all there are and not drawn, and
    pairs share runs. Chance shuffles the factors of every run.
    """

    recipe: str
    target: str
    runs: tuple[str, ...]
    correlation: Chance
    pairs: tuple[float, ...]
    overlap: Chance

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "recipe": self.recipe,
            "target": self.target,
            "runs": list(self.runs),
            "correlation": {**self.correlation.to_json(), "pairs": list(self.pairs)},
            "overlap": self.overlap.to_json(),
        }


@dataclass(frozen=True)
class RunsCompared:
    """All rows, the same over seeds, stability where runs were measured against ground truth.

    `apart` says, a sentence each, why runs of one recipe are not seeds of one thing.
    """

    rows: tuple[Row, ...]
    over_seeds: tuple[OverSeeds, ...]
    stability: tuple[Stability, ...]
    apart: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "over_seeds": [each.to_json() for each in self.over_seeds],
            "stability": [each.to_json() for each in self.stability],
            "apart": list(self.apart),
        }


@dataclass(frozen=True)
class _Evaluated:
    """A run, its evaluation.json, and all that makes it what it is but the seed."""

    run: Run
    content: Mapping[str, Any]
    made: Mapping[str, Any]

    @property
    def name(self) -> str:
        return self.run.path.resolve().name


def compare_runs(paths: Sequence[Path], k: int = 10, seed: int = 0) -> RunsCompared:
    """Read the evaluations of runs; nothing is measured.

    Args:
        k: coordinates moved at once; of a shorter curve its last point is taken, and its k said.

    Raises:
        RunError: a run that has not been evaluated. DataError: no runs, one named twice, or two with the same
            settings and seed.
    """
    if not paths:
        raise DataError("name one run or more to compare")
    places = [path.resolve() for path in paths]
    twice = [path for path, place in zip(paths, places, strict=True) if places.count(place) > 1]
    if twice:
        raise DataError(f"{twice[0]}: named twice; a run compared with itself says nothing")
    groups = _groups([_read(path) for path in paths])
    members = [each for group in groups for each in group]
    rows = {each.run.path: _rows(each.run, each.content, k) for each in members}
    stable: list[Stability] = []
    for group in groups:
        explained = [((each.content.get("truth") or {}).get("explanation") or {}) for each in group]
        for target in dict.fromkeys(target for found in explained for target in found):
            both = [
                (each, found[target]) for each, found in zip(group, explained, strict=True) if target in found
            ]
            if len(both) > 1:
                runs = [str(each.run.path) for each, _ in both]
                recipe = group[0].run.config.recipe.name
                stable.append(stability(recipe, target, [found for _, found in both], seed, runs=runs))
    return RunsCompared(
        tuple(row for path in paths for row in rows[path]),
        tuple(
            each
            for group in groups
            for each in _over_seeds([row for one in group for row in rows[one.run.path]])
        ),
        tuple(stable),
        _apart(groups),
    )


def _read(path: Path) -> _Evaluated:
    run = Run.open(path)
    file = path / "evaluation.json"
    if not file.exists():
        raise RunError(f"{path}: not evaluated yet; 'stylex evaluate {path}' does it")
    content = read_json(file)
    config, hashes = run.config, run.hashes
    made: dict[str, Any] = config.model_dump(mode="json", exclude={"seed", "experiment", "attfind"})
    for what in ("data", "classifier"):  # by content where the run says it: one thing may lie in two places
        made[what] = hashes.get(what, made[what])
    # as loaded: a file of before some setting existed says nothing of it
    searched = (path / "attributes.json").exists()
    settings = load_findings(run).settings if searched else config.attfind
    made["attfind"] = settings.model_dump(mode="json", exclude={"batch_size"})
    made["test images"] = (content.get("measured") or {}).get("sha256")
    return _Evaluated(run, content, made)


def _groups(found: Sequence[_Evaluated]) -> list[list[_Evaluated]]:
    """Runs that differ in their seed alone, together.

    Raises:
        DataError: two that do not even differ in their seed.
    """
    groups: list[list[_Evaluated]] = []
    for each in found:
        group = next((group for group in groups if group[0].made == each.made), None)
        if group is None:
            groups.append([each])
            continue
        twin = next((one for one in group if one.run.config.seed == each.run.config.seed), None)
        if twin is not None:
            raise DataError(
                f"{twin.run.path} and {each.run.path}: the same settings and the same seed "
                f"{each.run.config.seed}, so they are not two seeds; name one of them"
            )
        group.append(each)
    return groups


def _apart(groups: Sequence[Sequence[_Evaluated]]) -> tuple[str, ...]:
    """Why runs of one recipe are in several groups: what differs from the first group of that recipe."""
    first: dict[str, Sequence[_Evaluated]] = {}
    said = []
    for group in groups:
        recipe = group[0].run.config.recipe.name
        base = first.setdefault(recipe, group)
        if base is group:
            continue
        ours, theirs = (dict(flat(each[0].made)) for each in (group, base))
        keys = [key for key in {**theirs, **ours} if ours.get(key) != theirs.get(key)]
        named = ", ".join(f"{key} {_short(ours.get(key))}, not {_short(theirs.get(key))}" for key in keys[:3])
        more = f", and {len(keys) - 3} more" if len(keys) > 3 else ""
        said.append(
            f"{', '.join(each.name for each in group)}: no further seeds of "
            f"{', '.join(each.name for each in base)} (recipe {recipe}): {named}{more}"
        )
    return tuple(said)


def _short(value: Any) -> Any:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value


def stability(
    recipe: str,
    target: str,
    found: Sequence[Mapping[str, Any]],
    seed: int = 0,
    *,
    runs: Sequence[str] = (),
) -> Stability:
    """How alike explanations are, from what `evaluate --truth` wrote of two runs or more.

    Raises:
        DataError: the runs were measured on other factors.
    """
    factors = list(found[0]["explained"])
    if any(set(each["explained"]) != set(factors) for each in found):
        raise DataError(f"runs of recipe {recipe} were measured on other factors; use one detector for all")
    effects = [np.array([each["explained"][name] for name in factors]) for each in found]
    mains = [
        np.array([any(entry["factor"] == name for entry in each["attributes"][:3]) for name in factors])
        for each in found
    ]
    pairs = _correlations(effects)
    random = np.random.default_rng(seed)
    chance: list[tuple[float, float]] = []
    for _ in range(DRAWS):
        orders = [random.permutation(len(factors)) for _ in found]
        shuffled = [each[order] for each, order in zip(effects, orders, strict=True)]
        drawn = [each[order] for each, order in zip(mains, orders, strict=True)]
        chance.append((float(np.mean(_correlations(shuffled))), _overlap(drawn)))
    correlations, overlaps = np.array(chance).T
    return Stability(
        recipe,
        target,
        tuple(runs),
        _beside(float(np.mean(pairs)), correlations),
        tuple(pairs),
        _beside(_overlap(mains), overlaps),
    )


def _correlations(effects: Sequence[FloatArray]) -> list[float]:
    return [correlation(one, other) for one, other in combinations(effects, 2)]


def _overlap(mains: Sequence[npt.NDArray[np.bool_]]) -> float:
    """Mean over pairs of Jaccard's share of factors, bool [J] a run; 0 where neither run has any."""
    shares = [
        float((one & other).sum() / max(1, (one | other).sum())) for one, other in combinations(mains, 2)
    ]
    return float(np.mean(shares))


def _beside(estimate: float, chance: FloatArray) -> Chance:
    return Chance(estimate, float(chance.mean()), float(np.quantile(chance, 0.95)))


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
        agreement = "–" if row.agreement is None else f"{row.agreement:.3f}"
        lines.append(
            f"| [{Path(row.run).name}]({(place / 'config.yaml').as_posix()}) | {row.recipe} | {row.seed} | "
            f"{row.kimg:g} | {row.method} | {row.target} | {row.k} of {row.coordinates} | {row.rate:.2f} "
            f"({row.low:.2f} to {row.high:.2f}) | {row.images} | {confirmed} | {row.distance:.3f} | "
            f"{agreement} |"
        )
    return "\n".join(lines)


def describe_seeds(found: RunsCompared) -> list[str]:
    """What training again changes: rates of every seed, and whether seeds explain alike."""
    lines = []
    for each in found.over_seeds:
        if each.std is not None:
            rates = ", ".join(f"{rate:.2f}" for rate in each.rates)
            lines.append(
                f"{each.recipe}, {each.method} → '{each.target}': {rates} over seeds "
                f"{', '.join(map(str, each.seeds))} (mean {each.mean:.2f} ± {each.std:.2f}; "
                f"{_run_names(each.runs)})"
            )
    for same in found.stability:
        r, pairs = same.correlation, same.pairs
        between = f"pairs {min(pairs):.2f} to {max(pairs):.2f}" if len(pairs) > 1 else "one pair"
        lines.append(
            f"{same.recipe} → '{same.target}', {len(same.runs)} seeds ({_run_names(same.runs)}): effects of "
            f"factors correlate by {r.estimate:.2f} ({between}; chance up to {r.limit:.2f}), main "
            f"factors overlap by {same.overlap.estimate:.2f} (chance {same.overlap.chance:.2f}, up to "
            f"{same.overlap.limit:.2f})"
        )
    return lines


def _run_names(runs: Sequence[str]) -> str:
    return ", ".join(Path(run).name for run in runs)


def _rows(run: Run, content: Mapping[str, Any], k: int) -> list[Row]:
    agreement = content["agreement"]
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
                None if agreement is None else agreement["estimate"],
            )
        )
    return found


def _over_seeds(rows: Sequence[Row]) -> tuple[OverSeeds, ...]:
    """Of the rows of one group."""
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
                tuple(row.run for row in same),
                tuple(row.seed for row in same),
                tuple(rates),
                float(np.mean(rates)),
                float(np.std(rates, ddof=1)) if len(rates) > 1 else None,
            )
        )
    return tuple(found)
