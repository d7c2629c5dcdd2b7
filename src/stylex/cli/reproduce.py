"""`stylex reproduce`: one command an item of the replication study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, Device, PrecisionName, Size, Threads, choose_hardware, note, result


def reproduce(
    what: Annotated[str, typer.Argument(help="table-1, table-2, figure-2 to figure-9, compute or claims.")],
    experiment: Annotated[
        str | None,
        typer.Option(
            help="study-afhq, study-ffhq-age, avatars-age or fashion-mnist; by default the item's own."
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
        Path | None, typer.Option(help="Folder for runs and results; by default reproduce/EXPERIMENT.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Recipe of StylEx in place of the experiment's.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Setting of both recipes, section.key=value.")
    ] = None,
    study: Annotated[
        list[str] | None, typer.Option("--study", help="Number of protocol study, such as repeats=3.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Of the classifiers.")] = 15,
    images: Annotated[
        int | None, typer.Option("--images", min=1, help="Discovery images of each class for AttFind.")
    ] = None,
    size: Size = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
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
    from stylex.reproduce.items import default_experiment
    from stylex.reproduce.items import reproduce as make
    from stylex.reproduce.workshop import Workshop

    own = default_experiment(what)
    found = find(experiment or own)
    folders = parse_folders(found, data or [])
    settings = validate(StudySettings, override({}, study or []), "settings of protocol study")
    shop = Workshop(
        found,
        home or Path("reproduce") / found.name,
        folders,
        choose_hardware(device, precision, threads),
        recipe=recipe,
        size=size,
        assignments=tuple(set_ or ()),
        epochs=epochs,
        seed=seed,
        study=settings,
        images_per_class=images,
        model=model,
        say=note,
    )
    item = make(what, shop)
    written = ", ".join(str(file) for file in item.files)
    result(as_json, item.to_json(), f"{item.text}\n\n{written}")
