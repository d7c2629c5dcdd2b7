"""`stylex train`: train a generator around a classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stylex.classifiers import Classifier
from stylex.cli.output import (
    AsJson,
    Device,
    Group,
    PrecisionName,
    Size,
    Threads,
    choose_hardware,
    note,
    progress,
    result,
)
from stylex.config import Recipe, RunConfig, differences, load_named, load_recipe, override, validate
from stylex.errors import ConfigError, DataError, RunError
from stylex.run import Run


def train(
    out: Annotated[Path, typer.Option("--out", help="Run directory; an existing run is continued.")],
    data: Annotated[str | None, typer.Option(help="Folder, CSV or fashion-mnist[:PATH].")] = None,
    classifier: Annotated[
        str | None, typer.Option(help="File of 'stylex classifier train', or another source.")
    ] = None,
    recipe: Annotated[
        str | None, typer.Option(help="fast (default), stylex, study, vdv, stylegan2, or a YAML file.")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="Named experiment whose settings are taken.")] = None,
    size: Size = None,
    group: Group = None,
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

    given = {"data": data, "classifier": classifier, "resolution": size, "group": group, "seed": seed}
    said: dict[str, Any] = load_named("experiments", experiment) if experiment else {}
    said |= {key: value for key, value in given.items() if value is not None}
    if (out / "run.json").exists() or (out / "config.yaml").exists():
        run: Run | None = (found := Run.open(out))
        config = _same_settings(found, said, recipe, set_ or [])
    else:
        if data is None or classifier is None:
            raise ConfigError("a new run needs --data and --classifier")
        run = None
        said.setdefault("experiment", Path(data).name or data)
        if recipe is None and "recipe" in said:  # the experiment's own
            said["recipe"] = override(said["recipe"], set_ or [])
        else:
            said["recipe"] = load_recipe(recipe or "fast", set_ or []).model_dump()
        config = validate(RunConfig, said, f"settings of {out}")
    dataset = load_dataset(data or config.data, size=config.resolution, group=config.group, labelled=False)
    if not len(dataset.training):
        raise DataError(f"{data or config.data}: none of its images is one to train on; add images")
    if run is None:
        explained = classifiers.load(config.classifier)
    else:
        if data is not None:
            _same_data(run, data, dataset.fingerprint)
        explained = _same_classifier(run, classifier)
    explained.check(dataset.training.batch(slice(0, 8)))
    chosen = choose_hardware(device, precision, threads)
    if run is None:
        hashes = {"data": dataset.fingerprint, "classifier": explained.fingerprint}
        run = Run.create(out, config, hashes)
    if explained.can_be_saved and not run.classifier_file.exists():
        explained.save(run.classifier_file)
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


def _same_settings(run: Run, said: dict[str, Any], recipe: str | None, assignments: list[str]) -> RunConfig:
    """The run's settings.

    Raises:
        ConfigError: the command line asks for others; data and classifier are compared by content elsewhere.
    """
    config = run.config
    wanted: Recipe = config.recipe
    if recipe is not None:
        wanted = load_recipe(recipe, assignments)
    elif assignments:
        wanted = validate(
            Recipe, override(config.recipe.model_dump(), assignments), f"settings of {run.path}"
        )
    same = {"data": config.data, "classifier": config.classifier, "recipe": wanted.model_dump()}
    asked = validate(RunConfig, config.model_dump() | said | same, f"settings of {run.path}")
    changed = differences(asked, config)
    if changed:
        listed = ", ".join(f"{key} {before!r}, not {now!r}" for key, (now, before) in changed.items())
        raise ConfigError(
            f"{run.path}: was started with {listed}; leave the options out to continue it, "
            "or start another run with --out"
        )
    return config


def _same_data(run: Run, data: str, fingerprint: str) -> None:
    recorded = run.hashes.get("data")
    if recorded is None and data != run.config.data:
        note(
            f"warning: {run.path} does not say what images it was started with; {data} is taken for the same"
        )
    if recorded not in (None, fingerprint):
        raise RunError(
            f"{run.path}: was started with other images than {data} has now; "
            f"leave --data out to continue with {run.config.data} as it is, or start another run with --out"
        )


def _same_classifier(run: Run, given: str | None) -> Classifier:
    """The run's classifier: its own copy, else the one that is given or that it names.

    Raises:
        RunError: the one that is given is another.
    """
    from stylex import classifiers

    kept = classifiers.load(run.classifier_file) if run.classifier_file.exists() else None
    if kept is not None and (given is None or (given == run.config.classifier and not Path(given).exists())):
        return kept  # the same command continues also when its file has been tidied away
    found = classifiers.load(given or run.config.classifier)
    recorded = run.hashes.get("classifier") if kept is None else kept.fingerprint
    names = found.class_names if kept is None else kept.class_names
    if recorded not in (None, found.fingerprint) or names != found.class_names:
        raise RunError(
            f"{run.path}: was started with another classifier than {given or run.config.classifier}; "
            "leave --classifier out to continue it, or start another run with --out"
        )
    return kept or found


def _watched(dataset: Any) -> Any:
    for images in (dataset.discovery, dataset.training):  # the best checkpoint is chosen on these
        if len(images):
            return images.select(range(min(16, len(images))))
    return None
