"""`stylex train`: train a generator around a classifier."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stylex import hardware, parallel
from stylex.cli.output import AsJson, Device, PrecisionName, Threads, choose_hardware, note, progress, result
from stylex.config import RunConfig, load_named, load_recipe, validate
from stylex.errors import ConfigError, RunError, Stopped
from stylex.hardware import Hardware
from stylex.parallel import World
from stylex.run import Run, write_atomically

if TYPE_CHECKING:
    from stylex.training.loop import TrainingResult


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
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine, one a GPU; not under torchrun.")
    ] = None,
    nodes: Annotated[
        int, typer.Option(min=1, help="Machines; MASTER_ADDR, MASTER_PORT and NODE_RANK say who they are.")
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Train encoder, generator and discriminator around a classifier; continue the run if it exists."""
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
    source = classifier or config.classifier
    if existing and run.classifier_file.exists():
        source = str(run.classifier_file)
    parallel.check_shares(config.recipe, parallel.world_size(devices, nodes))
    try:
        with parallel.joined(devices, nodes, device) as world:
            done = _train(
                out, config, existing, data or config.data, source, (device, precision, threads), world
            )
    except Stopped as stopped:
        if world.first:
            raise
        # All stop together and the first says so; a process that it started must not seem to have failed.
        raise typer.Exit(0 if world.launched else 143) from stopped
    if world.first:
        _report(out, done, as_json)


def _train(
    out: Path,
    config: RunConfig,
    existing: bool,
    data: str,
    source: str,
    wanted: tuple[str, str, int | None],
    world: World,
) -> TrainingResult:
    """One process's part: load what is needed, create the run if this is the first process, train."""
    from stylex import classifiers, training
    from stylex.data import load_dataset

    chosen = _hardware(wanted, world)
    with parallel.one_at_a_time(world):
        dataset = load_dataset(data, size=config.resolution, group=config.group, labelled=False)
        explained = classifiers.load(source)
    explained.check(dataset.training.batch(slice(0, 8)))
    if not existing and world.first:
        run = Run.create(out, config)
        if Path(source).is_file() and Path(source).suffix == ".safetensors":
            with Path(source).open("rb") as original:
                write_atomically(run.classifier_file, lambda file: shutil.copyfileobj(original, file))
    world.wait()  # until the run is there
    run = Run.open(out)
    watched = _watched(dataset)
    if not world.first:
        return training.train(run, dataset.training, explained, chosen, watch=watched, world=world)
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

        return training.train(
            run, dataset.training, explained, chosen, watch=watched, on_progress=show, world=world
        )


def _hardware(wanted: tuple[str, str, int | None], world: World) -> Hardware:
    """What this process computes on; number format and threads of all processes are those of the first."""
    device, precision, threads = wanted
    if world.size == 1:
        return choose_hardware(device, precision, threads)
    threads = threads or max(1, hardware.usable_cores() // world.local_size)
    device = str(world.device)
    if world.first:
        chosen = choose_hardware(device, precision, threads)
        note(f"{world.size} processes")
    format_, threads = world.share((chosen.precision, threads) if world.first else ("", 0))[0]
    return chosen if world.first else hardware.choose(device, format_, threads)  # type: ignore[arg-type]


def _report(out: Path, done: TrainingResult, as_json: bool) -> None:
    if not (out / "model.safetensors").exists():
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
