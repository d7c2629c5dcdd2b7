"""Every item by name, and the experiment in which the study has it."""

from __future__ import annotations

from collections.abc import Callable

from stylex.errors import ConfigError
from stylex.reproduce import (
    claims,
    compute,
    figure_2,
    figure_3,
    figure_4,
    figure_5,
    figure_6,
    figure_7,
    figure_8,
    figure_9,
    table_1,
    table_2,
)
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import Workshop
from stylex.run import write_atomically, write_json

ITEMS: dict[str, tuple[Callable[[Workshop], Item], str]] = {
    "table-1": (table_1.make, "study-afhq"),
    "table-2": (table_2.make, "study-afhq"),
    "figure-2": (figure_2.make, "study-afhq"),
    "figure-3": (figure_3.make, figure_3.EXPERIMENT),
    "figure-4": (figure_4.make, figure_4.EXPERIMENT),
    "figure-5": (figure_5.make, figure_5.EXPERIMENT),
    "figure-6": (figure_6.make, "study-afhq"),
    "figure-7": (figure_7.make, figure_7.EXPERIMENT),
    "figure-8": (figure_8.make, figure_8.EXPERIMENT),
    "figure-9": (figure_9.make, figure_9.EXPERIMENT),
    "compute": (compute.make, "study-afhq"),
    "claims": (claims.make, "study-afhq"),
}

ELSEWHERE = {
    "user-study": "the user study is made with 'stylex study serve' and analysed with 'stylex study analyse'",
}


def default_experiment(what: str) -> str:
    """The experiment in which the study has an item.

    Raises:
        ConfigError: no such item, or one that another command makes.
    """
    if what in ELSEWHERE:
        raise ConfigError(ELSEWHERE[what])
    if what not in ITEMS:
        raise ConfigError(f"nothing to reproduce is named '{what}'; there are {', '.join(ITEMS)}")
    return ITEMS[what][1]


def check(what: str, shop: Workshop) -> None:
    """See, before any work, that what an item needs was given.

    Raises:
        ConfigError: no such item, or a model for one that trains its own.
        DataError: a folder of data, or the released model, is missing; says where to get it.
    """
    default_experiment(what)
    if what == "figure-3":
        figure_3.check(shop)
        return
    if shop.model is not None:
        raise ConfigError(f"{what} trains its own models; --model is for figure-3")
    shop.experiment.sources(shop.folders)


def reproduce(what: str, shop: Workshop) -> Item:
    """Make one item, and write its page (WHAT.md) and figures (WHAT.json) into the workshop's folder.

    Raises:
        ConfigError, DataError: as for `check`. Everything that data, training, search and evaluation raise.
    """
    check(what, shop)
    shop.home.mkdir(parents=True, exist_ok=True)
    item = ITEMS[what][0](shop)
    page, figures = shop.home / f"{what}.md", shop.home / f"{what}.json"
    write_atomically(page, lambda file: file.write((item.text + "\n").encode("utf-8")))
    write_json(figures, item.to_json())
    item.files.extend([page, figures])
    return item
