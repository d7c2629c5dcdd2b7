"""`stylex reproduce`: one command an item of the replication study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, Device, PrecisionName, Size, Threads, choose_hardware, note, result
from stylex.errors import ConfigError


def reproduce(
    what: Annotated[
        str, typer.Argument(help="table-1, table-2, figure-2 to figure-9, compute, claims or methods.")
    ],
    experiment: Annotated[
        str | None,
        typer.Option(
            help="study-afhq, study-ffhq-age, avatars-age or fashion-mnist; by default the study's own: "
            "both where it has the item for both."
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option("--data", help="NAME=FOLDER, or FOLDER where one is needed; repeatable."),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", help="figure-3: folder of the authors' released model, or a run made of it."),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Folder for runs and results, by default reproduce/EXPERIMENT; of several experiments "
            "each has a folder of its name in it."
        ),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe of StylEx in place of the experiment's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of every recipe, section.key=value.")
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option("--study", help="Number of protocol study, such as repeats=3.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Of the classifiers, by default 15.")] = None,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Discovery images of each class for AttFind.")
    ] = None,
    size: Size = None,
    seed: Annotated[int | None, typer.Option(min=0, help="By default 0.")] = None,
    recipes: Annotated[
        str | None,
        typer.Option(
            help="methods: recipes side by side, separated by commas; by default fast,stylex,study,stylegan2."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="methods: seeds of their trainings, such as 0,1; shown apart.")
    ] = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Make one table, figure or page of the study again; what it needs is trained first, once."""
    from stylex.config import override, validate
    from stylex.evaluation.study_protocol import StudySettings
    from stylex.reproduce.experiments import experiment as find
    from stylex.reproduce.experiments import parse_folders
    from stylex.reproduce.items import default_experiments, refuse_unused, reproduce_each
    from stylex.reproduce.workshop import Workshop

    own = default_experiments(what)
    options = {
        "recipe": recipe,
        "set": set_,
        "study": study,
        "epochs": epochs,
        "images": images,
        "size": size,
        "seed": seed,
    }
    refuse_unused(what, [name for name, value in options.items() if value not in (None, [])])
    found = [find(name) for name in ([experiment] if experiment else own)]
    folders = parse_folders(found, data or [])
    settings = validate(StudySettings, override({}, study or []), "settings of protocol study")
    named = () if recipes is None else tuple(dict.fromkeys(part.strip() for part in recipes.split(",")))
    numbers = _numbers(seeds)
    hardware, several = choose_hardware(device, precision, threads), len(found) > 1
    shops = [
        Workshop(
            each,
            home if home and not several else (home or Path("reproduce")) / each.name,
            {name: folder for name, folder in folders.items() if name in each.needs},
            hardware,
            recipe=recipe,
            size=size,
            assignments=tuple(set_ or ()),
            epochs=epochs or Workshop.epochs,
            seed=seed or Workshop.seed,
            study=settings,
            images_per_class=images,
            model=model,
            recipes=named,
            seeds=numbers,
            say=note,
        )
        for each in found
    ]
    items, missing = reproduce_each(what, shops)
    text = "\n\n".join(f"{item.text}\n\n{', '.join(map(str, item.files))}" for item in items)
    content = {"item": what, "results": [item.to_json() for item in items], "missing": missing}
    result(as_json, content if several else items[0].to_json(), text)


def _numbers(seeds: str | None) -> tuple[int, ...]:
    """Seeds from text, each once.

    Raises:
        ConfigError: not whole numbers, separated by commas.
    """
    parts = [] if seeds is None else [part.strip() for part in seeds.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ConfigError(f"--seeds {seeds}: give whole numbers separated by commas, such as 0,1")
    return tuple(dict.fromkeys(map(int, parts)))
