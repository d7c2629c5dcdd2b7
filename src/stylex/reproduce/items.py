"""Every item by name, and the experiment in which the study has it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stylex.errors import ConfigError, DataError
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
    methods,
    table_1,
    table_2,
)
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import Workshop
from stylex.run import write_atomically, write_json

BOTH = ("study-afhq", "study-ffhq-age")
"""The study's two experiments; Figure 2 shows the first and says of the second that it is similar."""

ITEMS: dict[str, tuple[Callable[[Workshop], Item], tuple[str, ...]]] = {
    "table-1": (table_1.make, BOTH),
    "table-2": (table_2.make, BOTH),
    "figure-2": (figure_2.make, BOTH),
    "figure-3": (figure_3.make, (figure_3.EXPERIMENT,)),
    "figure-4": (figure_4.make, (figure_4.EXPERIMENT,)),
    "figure-5": (figure_5.make, (figure_5.EXPERIMENT,)),
    "figure-6": (figure_6.make, BOTH),
    "figure-7": (figure_7.make, (figure_7.EXPERIMENT,)),
    "figure-8": (figure_8.make, (figure_8.EXPERIMENT,)),
    "figure-9": (figure_9.make, (figure_9.EXPERIMENT,)),
    "compute": (compute.make, BOTH),
    "claims": (claims.make, BOTH),
    "methods": (methods.make, (methods.EXPERIMENT,)),
}

_TRAINED = ("set", "epochs", "size", "seed")

USES: dict[str, tuple[str, ...]] = {
    "table-1": ("size",),
    "table-2": ("recipe", "study", *_TRAINED),
    "figure-2": ("recipe", *_TRAINED),
    "figure-3": ("images", "seed", "model"),
    "figure-4": ("recipe", "images", *_TRAINED),
    "figure-5": ("recipe", "images", *_TRAINED),
    "figure-6": ("images", *_TRAINED),
    "figure-7": _TRAINED,
    "figure-8": _TRAINED,
    "figure-9": ("study", "images", *_TRAINED),
    "compute": ("recipe", *_TRAINED),
    "claims": ("recipe", "study", "images", *_TRAINED),
    "methods": ("recipes", "seeds", "images", *_TRAINED),
}
"""Options of the command that change what an item shows, beside --experiment, --data and --home."""

ELSEWHERE = {
    "user-study": "the user study is made with 'stylex study serve' and analysed with 'stylex study analyse'",
}


def default_experiments(what: str) -> tuple[str, ...]:
    """The experiments in which the study has an item; of an item that is ours the one that needs no data.

    Raises:
        ConfigError: no such item, or one that another command makes.
    """
    if what in ELSEWHERE:
        raise ConfigError(ELSEWHERE[what])
    if what not in ITEMS:
        raise ConfigError(f"nothing to reproduce is named '{what}'; there are {', '.join(ITEMS)}")
    return ITEMS[what][1]


def refuse_unused(what: str, given: Sequence[str]) -> None:
    """Raise ConfigError for options, by their names, that were given and that an item does not use."""
    unused = [name for name in given if name not in USES[what]]
    if unused:
        settings = "its settings are" if len(USES[what]) > 1 else "its setting is"
        raise ConfigError(f"{what} has no use for {_listed(unused)}; {settings} {_listed(USES[what])}")


def _listed(options: Sequence[str]) -> str:
    *first, last = (f"--{option}" for option in options)
    return f"{', '.join(first)} and {last}" if first else last


def check(what: str, shop: Workshop) -> None:
    """See, before any work, that what an item needs was given.

    Raises:
        ConfigError: no such item, or an option that it does not take.
        DataError: a folder of data, or the released model, is missing; says where to get it.
    """
    default_experiments(what)
    if what != "methods" and shop.seeds:
        raise ConfigError(f"{what} is of one --seed; --seeds is for methods")
    if what != "methods" and shop.recipes:
        raise ConfigError(f"{what} is of one --recipe; --recipes is for methods")
    if what == "figure-3":
        figure_3.check(shop)
        return
    if shop.model is not None:
        raise ConfigError(f"{what} trains its own models; --model is for figure-3")
    if what == "methods":
        methods.check(shop)
    if what == "figure-2":
        figure_2.check(shop)
    shop.experiment.check(shop.folders)


def reproduce(what: str, shop: Workshop) -> Item:
    """Make one item, and write its page (WHAT.md) and figures (WHAT.json) into the workshop's folder.

    Raises:
        ConfigError, DataError: as for `check`. Everything that data, training, search and evaluation raise.
    """
    check(what, shop)
    shop.home.mkdir(parents=True, exist_ok=True)
    shop.render()
    item = ITEMS[what][0](shop)
    page, figures = shop.home / f"{what}.md", shop.home / f"{what}.json"
    write_atomically(page, lambda file: file.write((item.text + "\n").encode("utf-8")))
    write_json(figures, item.to_json())
    item.files.extend([page, figures])
    return item


def reproduce_each(what: str, shops: Sequence[Workshop]) -> tuple[list[Item], dict[str, str]]:
    """Make an item in every workshop that has its data, and say of the others what they need.

    Returns:
        The items, and experiment → what is missing and where to get it.

    Raises:
        DataError: no workshop has its data. Everything else as for `reproduce`.
    """
    missing: dict[str, str] = {}
    for shop in shops:
        try:
            check(what, shop)
        except DataError as error:
            missing[shop.experiment.name] = str(error)
    if len(missing) == len(shops):
        raise DataError("; ".join(missing.values()))
    for line in missing.values():
        shops[0].say(f"left out: {line}")
    return [reproduce(what, shop) for shop in shops if shop.experiment.name not in missing], missing
