"""The commands that repeat a run, as its report shows them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from stylex.config import AttFindSettings, differences, load_recipe, names
from stylex.report.compose import AMOUNTS, Amounts
from stylex.run import Run

SEARCH_OPTIONS = {"images_per_class": "--images", "method": "--method", "batch_size": "--batch-size"}
"""Settings of a search that have an option of their own."""


def commands(
    run: Run,
    search: AttFindSettings,
    shown: Amounts = AMOUNTS,
    *,
    data: str | None = None,
    one_vs_one: bool = False,
) -> str:
    """The commands that make a run again, one a line: settings that are not the defaults are spelled out.

    `data` stands in place of the source of the images, where that is nobody's business; `one_vs_one` says
    that attributes from each class to each other one were searched too.
    """
    name = run.path.resolve().name
    judged = ["--judge", str(run.judge_file)] if run.judge_file.exists() else []
    lines = [
        ["train", *_training(run, data or run.config.data), "--out", name],
        ["attfind", name, *_search(search, run.config.attfind), *(["--one-vs-one"] if one_vs_one else [])],
        ["evaluate", name, *judged],
        ["report", name, *_amounts(shown)],
    ]
    return "\n".join(shlex.join(["stylex", *line]) for line in lines)


def _training(run: Run, data: str) -> Iterable[str]:
    config = run.config
    yield from ("--data", data, "--classifier", config.classifier)
    if config.experiment in names("experiments"):
        yield from ("--experiment", config.experiment)
    # A recipe of the user's own is a file that may be gone: it is told by how it differs from the default.
    base = config.recipe.name if config.recipe.name in names("recipes") else "fast"
    yield from ("--recipe", base)
    changed = differences(config.recipe, load_recipe(base))
    yield from _assignments({key: value for key, (value, _) in changed.items()})
    yield from ("--size", str(config.resolution), "--seed", str(config.seed))
    if config.group is not None:
        yield from ("--group", config.group)


def _search(settings: AttFindSettings, of_the_run: AttFindSettings) -> Iterable[str]:
    changed = differences(settings, AttFindSettings()) | differences(settings, of_the_run)
    values = {key: value for key, (value, _) in changed.items()}
    for key, option in SEARCH_OPTIONS.items():
        if key in values:
            yield from (option, str(values.pop(key)))
    yield from _assignments(values)


def _amounts(shown: Amounts) -> Iterable[str]:
    for key in ("attributes", "pairs"):
        if getattr(shown, key) != getattr(AMOUNTS, key):
            yield from (f"--{key}", str(getattr(shown, key)))


def _assignments(values: dict[str, Any]) -> Iterable[str]:
    """`--set key=value`, the value as JSON, which YAML reads; plain words without their quotes."""
    for key, value in values.items():
        plain = isinstance(value, str) and value.replace("-", "").replace("_", "").isalpha()
        text = value if plain and value not in _YAML_WORDS else json.dumps(value, ensure_ascii=False)
        yield from ("--set", f"{key}={text}")


_YAML_WORDS = ("true", "false", "yes", "no", "on", "off", "null")
"""Lower-case words that YAML does not take for text; names of ours have no capitals."""
