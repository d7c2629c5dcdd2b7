"""Train recipes for the same time on one machine, and compare what they are worth.

    python scripts/quality_per_hour.py --data avatars --classifier classifier.safetensors \\
        --judge judge.safetensors --factors detector.safetensors --minutes 20 --jobs 2 --out rows

Each row of quality_per_hour.yaml (`--rows`, some of them: `--only fast,stylex`) is trained by `stylex train
--time-budget`, which shortens the recipe to the images that fit, searched by `stylex attfind` and measured on
the test images by `stylex evaluate --quality --truth`. `--jobs` rows at a time, each on CPU cores of its own.
A row that is done is not done again; a training that was stopped goes on. The table goes to standard output
as Markdown, everything to `--out`/table.json.

On a machine whose speed changes from hour to hour minutes are no measure. `--like fast --kimg 25` in place of
`--minutes` gives every row as many images as take as long as 25,000 of row fast, by steps timed in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from typing import Any

import yaml

from stylex import classifiers
from stylex.benchmarks.machine import describe
from stylex.config import load_recipe
from stylex.data import preview
from stylex.hardware import choose
from stylex.reproduce.kept import finished
from stylex.run import Run, read_json, write_json
from stylex.training.costs import measure_size, measure_step
from stylex.training.plan import SCHEDULE_KEYS, TRAINING_SHARE, Measurement, fitting_total, scale_total
from stylex.training.setup import Request

TRIAL_SECONDS = 10.0
"""For each timing of a row's steps."""

WIDTHS = ("network.channel_base", "network.channel_max")
"""Given for every row, so that a time budget changes the length of a training and nothing else."""


@dataclass(frozen=True)
class Row:
    """One row of the table: a recipe and its assignments."""

    name: str
    recipe: str
    assignments: tuple[str, ...]


def read_rows(file: Path, only: Sequence[str] = ()) -> list[Row]:
    """The rows of a YAML file, in its order.

    Raises:
        SystemExit: a name in `only` is no row.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    unknown = set(only) - set(content["rows"])
    if unknown:
        sys.exit(f"{file}: no row {', '.join(sorted(unknown))}")
    rows = []
    for name, said in content["rows"].items():
        if only and name not in only:
            continue
        shared = [entry for use in said.get("use", ()) for entry in content["sets"][use]]
        rows.append(Row(name, said["recipe"], (*shared, *said.get("set", ()))))
    return rows


def usable_cores() -> list[int]:
    """The CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def commands(
    row: Row, given: argparse.Namespace, folder: Path, length: Sequence[str] | None = None
) -> dict[str, list[str]]:
    """What is run for a row, by the file in its folder that shows that it was.

    `length`: assignments that say how long it is trained, in place of the minutes.
    """
    stylex = [sys.executable, "-m", "stylex"]
    common = ["--device", "cpu", "--threads", str(max(1, len(usable_cores()) // given.jobs))]
    train = [
        "train",
        "--data",
        given.data,
        "--classifier",
        str(given.classifier),
        "--recipe",
        row.recipe,
    ]
    train += ["--size", str(given.size), "--out", str(folder), "--seed", str(given.seed)]
    train += ["--time-budget", f"{given.minutes}m"] if length is None else []
    for assignment in [*with_widths(row), *(length or [])]:
        train += ["--set", assignment]
    search = ["attfind", str(folder), "--images", str(given.images)]
    measure = ["evaluate", str(folder), "--judge", str(given.judge), "--quality"]
    measure += [] if given.test is None else ["--data", given.test]
    if given.factors is not None and row.recipe != "stylegan2":  # which reconstructs nothing
        measure += ["--factors", str(given.factors), "--truth"]
    return {
        "model.safetensors": [*stylex, *train, *common],
        "attributes.json": [*stylex, *search, *common],
        "evaluation.json": [*stylex, *measure, *common],
    }


def with_widths(row: Row) -> list[str]:
    network = load_recipe(row.recipe, list(row.assignments)).network.model_dump()
    said = {assignment.partition("=")[0] for assignment in row.assignments}
    widths = [f"{key}={network[key.split('.')[1]]}" for key in WIDTHS if key not in said]
    return [*row.assignments, *widths]


def in_time_of(like: Row, row: Row, given: argparse.Namespace) -> list[str]:
    """Assignments that give a row the images that take as long as `given.kimg` of another row.

    Steps of both are timed in turn, twice; what comes before the first step counts.
    """
    recipe, fixed = load_recipe(row.recipe, with_widths(row)), _fixed(row)
    total = given.kimg
    if row != like:
        totals = []
        for _ in range(2):
            reference, own = _timed(like, given), _timed(row, given)
            seconds = reference.cost.seconds(scale_total(reference.recipe, given.kimg, _fixed(like)))
            totals.append(fitting_total(own, recipe, seconds / TRAINING_SHARE, fixed))
        total = float(f"{sum(totals) / len(totals):.3g}")
    chosen = scale_total(recipe, total, fixed).model_dump()
    keys = [key for key in (*SCHEDULE_KEYS, "training.total_kimg") if key not in fixed]
    return [f"{key}={chosen[key.split('.')[0]][key.split('.')[1]]}" for key in keys]


def _fixed(row: Row) -> list[str]:
    return [assignment.partition("=")[0] for assignment in row.assignments]


def _timed(row: Row, given: argparse.Namespace) -> Measurement:
    """The steps of a row on this machine's CPU."""
    hardware = choose("cpu", "auto", max(1, len(usable_cores()) // given.jobs))
    images, explained = preview(given.data), classifiers.load(str(given.classifier))
    said = {"size": given.size, "assignments": with_widths(row)}
    config = Request(given.data, str(given.classifier), row.recipe, **said).settings(given.out / row.name)
    few = images.sample(given.size, 2 * config.recipe.training.batch_size)
    cost = measure_step(
        config, few, explained, hardware, training_images=images.training, limit_s=TRIAL_SECONDS
    )
    size = measure_size(config.recipe, given.size, explained.classes)
    return Measurement(1.0, config.recipe, size, cost)


def lengths_of(rows: Sequence[Row], given: argparse.Namespace) -> dict[str, list[str]]:
    """What `in_time_of` says of every row, kept in `--out`/lengths.json; nothing without `--like`.

    Raises:
        SystemExit: what is kept there is of other settings.
    """
    if given.like is None:
        return {}
    (like,) = read_rows(given.rows, [given.like])
    said = {key: str(getattr(given, key)) for key in ("like", "kimg", "size", "data", "classifier")}
    file = given.out / "lengths.json"
    kept = read_json(file) if file.exists() else {"of": said, "rows": {}}
    if kept["of"] != said:
        sys.exit(f"{file}: is of {kept['of']}; give the same, or another --out")
    given.out.mkdir(parents=True, exist_ok=True)
    for row in rows:
        known = kept["rows"].get(row.name)
        if known is None or known["assignments"] != list(row.assignments):
            length = in_time_of(like, row, given)
            kept["rows"][row.name] = {"assignments": list(row.assignments), "length": length}
            write_json(file, kept)
    return {row.name: kept["rows"][row.name]["length"] for row in rows}


def figures(folder: Path) -> dict[str, Any]:
    """What the table says of a row that is done."""
    run = Run.open(folder)
    found = read_json(folder / "evaluation.json")
    last = json.loads((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    factors = {name: each["agreement"]["estimate"] for name, each in (found["factors"] or {}).items()}
    worst = min(factors, key=lambda name: factors[name]) if factors else None
    quality, truth = found["quality"], found["truth"]
    real = quality["realism"].get("reconstructions") or quality["realism"].get("sampled")
    return {
        "recipe": run.config.recipe.name,
        "seed": run.config.seed,
        "minutes": last["seconds"] / 60,
        "images": last["images"],
        "coordinates": found["coordinates"],
        "agreement": None if found["agreement"] is None else found["agreement"]["estimate"],
        "l1": found["l1"],
        "perceptual": None if not quality["fidelity"] else quality["fidelity"]["perceptual"]["estimate"],
        "fid": real["fid"],
        "extractor": real["extractor"],
        "flips_3": _flips(found, "AttFind", 3),
        "flips_10": _flips(found, "AttFind", 10),
        "confirmed_10": _flips(found, "AttFind", 10, "confirmed"),
        "wu_10": _flips(found, "Wu et al.", 10),
        "random_10": _flips(found, "random", 10),
        "factors": factors,
        "worst_factor": worst,
        "purity": _of_truth(truth, "purity"),
        "correlation": _of_truth(truth, "correlation"),
        "recall_3": None if not truth else _each(truth, lambda e: _at(e["recall_of_factors"], 3)),
        "recall_distinct_3": None
        if not truth  # or measured before attributes were compared
        else _each(truth, lambda e: _at(e.get("recall_distinct", []), 3)),
        "purity_distinct_3": None
        if not truth
        else _each(truth, lambda e: _at(e.get("purity_distinct", []), 3)),
    }


def _flips(found: dict[str, Any], method: str, count: int, what: str = "rate") -> dict[str, float | None]:
    """By target: share flipped by the first coordinates, or share of those flips that were confirmed."""
    shares: dict[str, float | None] = {}
    for entry in found["methods"]:
        if entry["method"] != method or count not in entry["curve"]["k"]:
            continue
        at = entry["curve"]["k"].index(count)
        if what == "rate":
            shares[entry["target"]] = entry["curve"]["rate"][at]
        else:
            shares[entry["target"]] = entry["confirmed"][at]["share"] if entry["confirmed"] else None
    return shares


def _each(truth: dict[str, Any], read: Any) -> dict[str, float | None]:
    return {name: read(entry) for name, entry in truth["explanation"].items()}


def _of_truth(truth: dict[str, Any] | None, key: str) -> dict[str, float | None] | None:
    return None if not truth else _each(truth, lambda entry: entry[key] and entry[key]["estimate"])


def _at(entries: list[dict[str, Any]], count: int) -> float | None:
    return next((entry["estimate"] for entry in entries if entry["k"] == count), None)


COLUMNS = {
    "images": ("images", ",.0f"),
    "S": ("coordinates", "d"),
    "agreement": ("agreement", ".3f"),
    "L1": ("l1", ".3f"),
    "perceptual": ("perceptual", ".3f"),
    "FID": ("fid", ".0f"),
    "flips, k = 3": ("flips_3", ".2f"),
    "k = 10": ("flips_10", ".2f"),
    "confirmed": ("confirmed_10", ".2f"),
    "Wu et al.": ("wu_10", ".2f"),
    "random": ("random_10", ".2f"),
    "purity": ("purity", ".2f"),
    "its first 3": ("purity_distinct_3", ".2f"),
    "correlation": ("correlation", ".2f"),
    "recall@3": ("recall_3", ".2f"),
    "distinct": ("recall_distinct_3", ".2f"),
}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """The table; figures of two targets stand as one / other."""
    heads = ["row", "minutes", *COLUMNS, "worst factor"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, found in rows.items():
        cells = [name, f"{found['minutes']:.1f}"]
        cells += [_cell(found[key], form) for key, form in COLUMNS.values()]
        worst = found["worst_factor"]
        cells.append("–" if worst is None else f"{worst} {found['factors'][worst]:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(value: Any, form: str) -> str:
    if isinstance(value, dict):
        return " / ".join(_cell(value[key], form) for key in sorted(value)) or "–"
    return "–" if value is None else format(value, form)


def work(row: Row, given: argparse.Namespace, cores: set[int], length: Sequence[str] | None) -> None:
    """Train, search and measure one row, its output in a log beside its folder.

    Raises:
        SystemExit: a command failed.
    """
    folder = given.out / row.name
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / f"{row.name}.log").open("a", encoding="utf-8") as log:
        for file, command in commands(row, given, folder, length).items():
            if (folder / file).exists() and (file != "model.safetensors" or finished(Run.open(folder))):
                continue
            print("$", " ".join(command[2:]), file=log, flush=True)
            pinned = ["taskset", "-c", ",".join(map(str, sorted(cores))), *command] if cores else command
            done = subprocess.run(pinned, stdout=log, stderr=log, check=False)
            if done.returncode:
                raise SystemExit(f"{row.name}: '{' '.join(command[2:4])}' failed, see {log.name}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", required=True, help="as for stylex train")
    parser.add_argument("--test", help="measure on the test images of this source instead")
    parser.add_argument("--classifier", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--factors", type=Path, help="a detector of the avatars' factors, for what is true")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=Path, default=Path(__file__).with_suffix(".yaml"))
    parser.add_argument("--only", default="", help="names of rows, separated by commas")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--minutes", type=float, default=60, help="of training, for each row")
    either.add_argument("--like", help="a row: train as long as --kimg of it take, in place of --minutes")
    parser.add_argument("--kimg", type=float, default=25, help="thousand images of the row --like")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=32, help="discovery images of each class")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time, each on cores of its own")
    given = parser.parse_args(arguments)
    rows = read_rows(given.rows, [name for name in given.only.split(",") if name])

    lengths = lengths_of(rows, given)

    usable = usable_cores()
    share = max(1, len(usable) // given.jobs)
    free: Queue[set[int]] = Queue()
    for job in range(given.jobs):
        free.put(set(usable[job * share : (job + 1) * share]) if given.jobs > 1 else set())
    length = {"minutes": given.minutes} if given.like is None else {"like": given.like, "kimg": given.kimg}
    done: dict[str, dict[str, Any]] = {}
    lock = threading.Lock()

    def one(row: Row) -> str | None:
        cores = free.get()
        try:
            work(row, given, cores, lengths.get(row.name))
        except SystemExit as error:
            return str(error)
        finally:
            free.put(cores)
        with lock:
            done[row.name] = figures(given.out / row.name)
            machine = describe(choose("cpu", "auto", share if given.jobs > 1 else None)).to_json()
            ordered = {each.name: done[each.name] for each in rows if each.name in done}
            content = {"machine": machine, "jobs": given.jobs, **length, "rows": ordered}
            write_json(given.out / "table.json", content)
            print(f"{row.name} is done", file=sys.stderr, flush=True)
        return None

    with ThreadPoolExecutor(given.jobs) as pool:
        failures = [message for message in pool.map(one, rows) if message]
    print(markdown({row.name: done[row.name] for row in rows if row.name in done}))
    for message in failures:
        print(message, file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
