"""All methods of the study on every recipe, by the default protocol: on images that neither saw.

What Table 2 sets side by side, recipe by recipe, with the controls that it lacks: the run's own ranking,
AttFind's published selections, Wu et al., random coordinates, and AttFind for a classifier with random
weights.
"""

from __future__ import annotations

from pathlib import Path

from stylex.config import load_recipe
from stylex.errors import ConfigError, DataError, Stopped, StylexError
from stylex.evaluation.comparison import as_markdown, compare_runs, describe_seeds
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import RECIPES, Workshop

EXPERIMENT = "avatars-age"
"""By default: its data are rendered, so that nothing has to be fetched."""

COORDINATES = 10

LEGEND = (
    "Flips: share of the test images outside the class that go to it (95 % interval over images); confirmed: "
    "share of the flips that an independent classifier sees; moved: mean change of a pixel, from -1 to 1. "
    "AttFind is the run's own ranking, by default of the subset selection and by effect; AttFind subset and "
    "AttFind independent are the published selections in the order of their picks, but for the one that the "
    "run itself ranks by. Each row links its run's settings."
)


def check(shop: Workshop) -> None:
    """Raise ConfigError, before any training, for a recipe that is not there, or one in place of several."""
    if shop.recipe is not None:
        raise ConfigError("methods trains several recipes, which --recipes names; leave --recipe out")
    for recipe in shop.recipes:
        load_recipe(recipe)


def make(shop: Workshop) -> Item:
    """Train, search and measure each recipe with each seed, where that has not been done, and compare.

    A run that cannot be trained, searched or measured is left out, and the reason given; so is a control.

    Raises:
        ConfigError: a classifier or a run that is there was made otherwise than is asked for.
        DataError: no run could be measured.
    """
    wanted = [(recipe, seed) for recipe in shop.recipes or RECIPES for seed in shop.seeds or (shop.seed,)]
    shop.classifier_file()
    shop.classifier_file(judge=True)
    for recipe, seed in wanted:
        shop.begun(recipe, seed)
    measured: list[Path] = []
    failed: dict[str, str] = {}
    without: list[str] = []
    for recipe, seed in wanted:
        path = shop.run_folder(recipe, seed)
        try:
            shop.run(recipe, seed)
            evaluation = shop.evaluation(recipe, seed, control=True)
        except Stopped:
            raise
        except StylexError as error:
            failed[path.name] = str(error)
            shop.say(f"{path.name} is left out: {error}")
            continue
        measured.append(path)
        without += [f"{path.name}: no {name}: {why}" for name, why in evaluation.get("left_out", {}).items()]
    if not measured:
        raise DataError(f"methods: no run could be measured: {'; '.join(failed.values())}")
    found = compare_runs(measured, COORDINATES)
    lines = [f"## Methods by recipe: {shop.experiment.title}", "", as_markdown(found, shop.home), ""]
    lines += [f"- {line}" for line in (*describe_seeds(found), *found.apart)]
    lines += [f"- {name} is left out: {reason}" for name, reason in failed.items()]
    lines += [f"- {line}" for line in without]
    content = {**found.to_json(), "failed": failed}
    return Item("methods", shop.experiment.name, "\n".join([*lines, "", LEGEND]), content)
