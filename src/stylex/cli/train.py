"""`stylex train`: train a generator around a classifier."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from stylex.cli.output import AsJson, Device, PrecisionName, Threads, choose_hardware, note, progress, result
from stylex.config import RunConfig, load_named, load_recipe, validate
from stylex.errors import ConfigError, RunError
from stylex.run import Run, write_atomically


def train(
    out: Annotated[Path, typer.Option("--out", help="Run directory; an existing run is continued.")],
    data: Annotated[str | None, typer.Option(help="Folder, CSV or fashion-mnist[:PATH].")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="File of 'stylex classifier train', or another source.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(help="fast, stylex, study, vdv, stylegan2, or a YAML file.")
    ] = "fast",
    experiment: Annotated[str | None, typer.Option(help="Named experiment whose settings are taken.")] = None,
    size: Annotated[int | None, typer.Option(help="Resolution, a power of two.")] = None,
    group: Annotated[str | None, typer.Option(help="Column whose rows stay together in one set.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Recipe setting, section.key=value.")
    ] = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train encoder, generator and discriminator around a classifier; continue the run if it exists."""
    from stylex import classifiers, training
    from stylex.data import load_dataset

    existing = (out / "run.json").exists() or (out / "config.yaml").exists()
    if existing:
        run = Run.open(out)
        if set_ or recipe != "fast" or experiment or size or seed is not None:
            note(
                f"continuing {out} with its own settings; "
                "--recipe, --set, --size and --seed count for new runs only"
            )
        config = run.config
    else:
        if data is None or classifier is None:
            raise ConfigError("a new run needs --data and --classifier")
        base: dict[str, Any] = (
            load_named("experiments", experiment) if experiment else {"experiment": Path(data).name or data}
        )
        base = base | {
            "data": data,
            "classifier": classifier,
            "recipe": load_recipe(recipe, set_ or []).model_dump(),
        }
        if size is not None:
            base["resolution"] = size
        if seed is not None:
            base["seed"] = seed
        if group is not None:
            base["group"] = group
        config = validate(RunConfig, base, f"settings of {out}")
    dataset = load_dataset(data or config.data, size=config.resolution, group=config.group, labelled=False)
    source = classifier or config.classifier
    if existing and run.classifier_file.exists():
        source = str(run.classifier_file)
    explained = classifiers.load(source)
    explained.check(dataset.training.batch(slice(0, 8)))
    chosen = choose_hardware(device, precision, threads)
    if not existing:
        run = Run.create(out, config)
        if Path(source).is_file() and Path(source).suffix == ".safetensors":
            with Path(source).open("rb") as original:
                write_atomically(run.classifier_file, lambda file: shutil.copyfileobj(original, file))
    with progress() as display:
        task = display.add_task("training", total=int(config.recipe.training.total_kimg * 1000))

        def show(now: Any) -> None:
            shown = ("l1", "encode/agreement", "swap/agreement", "adversarial", "class_free_styles")
            figures = ", ".join(f"{key} {now.statistics[key]:.3f}" for key in shown if key in now.statistics)
            display.update(
                task,
                completed=now.images,
                total=now.total_images,
                description=f"training, {now.images_per_second:.0f} images/s, {figures}",
            )

        done = training.train(
            run, dataset.training, explained, chosen, watch=_watched(dataset), on_progress=show
        )
    if not run.model_file.exists():
        raise RunError(f"{out}: training ended without a model file")
    content = {
        "run": str(out),
        "step": done.step,
        "images": done.images,
        "seconds": done.seconds,
        "statistics": done.statistics,
    }
    result(
        as_json,
        content,
        f"{out}: {done.images / 1000:.0f} kimg in {done.step} steps and {done.seconds / 60:.0f} min; "
        f"next: stylex attfind {out}",
    )


def _watched(dataset: Any) -> Any:
    for images in (dataset.test, dataset.discovery, dataset.training):
        if len(images):
            return images.select(range(min(16, len(images))))
    return None
