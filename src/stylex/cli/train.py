"""`stylex train`: train a generator around a classifier."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stylex import classifiers, parallel
from stylex.classifiers import Classifier
from stylex.cli.output import (
    AsJson,
    Device,
    Group,
    PrecisionName,
    Size,
    Threads,
    hardware_of_all,
    note,
    progress,
    result,
)
from stylex.config import Recipe, RunConfig, differences, load_named, load_recipe, override, validate
from stylex.errors import ConfigError, DataError, RunError, Stopped
from stylex.hardware import Hardware
from stylex.parallel import World
from stylex.run import Run

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from stylex.data import Dataset
    from stylex.training.costs import StepCost
    from stylex.training.loop import TrainingResult
    from stylex.training.setup import Request

CHECKED = 64
"""Training images on which the classifier is looked at before training begins."""


def train(
    out: Annotated[Path, typer.Option("--out", help="Run directory; an existing run is continued.")],
    data: Annotated[
        str | None, typer.Option(help="Folder, table or data set (docs/data.md); options behind a #.")
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(help="File, folder, URL or name (docs/bring-your-own.md); options behind a #."),
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
    time_budget: Annotated[
        str | None, typer.Option(help="Time for training: 2h, 90m, 1h30m; widths and length are fitted.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", help="Trained run of the same images whose weights to start with."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what training would take; write nothing.")
    ] = False,
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
    from stylex.training.origin import check_same_origin, read_origin
    from stylex.training.plan import parse_duration
    from stylex.training.setup import Request, kept_at_once

    budget = None if time_budget is None else parse_duration(time_budget)
    assignments = tuple(set_ or ())
    run, request, cost = None, None, None
    if ((out / "run.json").exists() or (out / "config.yaml").exists()) and not Run.unfinished(out):
        run = Run.open(out)
        given = {"data": data, "classifier": classifier, "resolution": size, "group": group, "seed": seed}
        said: dict[str, Any] = load_named("experiments", experiment) if experiment else {}
        said |= {key: value for key, value in given.items() if value is not None}
        if from_ is not None:
            check_same_origin(run, from_)
        begun = kept_at_once(run.config.recipe) if from_ is not None and recipe else []
        config = _same_settings(run, said, recipe, [*begun, *assignments], chosen=budget is not None)
    else:
        Run.check_free(out)
        origin = None if from_ is None else read_origin(from_)
        request = Request(data, classifier, recipe, experiment, size, group, seed, assignments, origin)
        config = request.settings(out)
    processes = parallel.world_size(devices, nodes)
    parallel.check_shares(config.recipe, processes)
    if dry_run and processes > 1:
        raise ConfigError("--dry-run measures one process; leave --devices and --nodes out")
    try:
        with parallel.joined(devices, nodes, device) as world:
            chosen = hardware_of_all(device, precision, threads, world)
            with parallel.one_at_a_time(world):
                if run is None:
                    explained = classifiers.load(config.classifier)
                else:
                    explained = _same_classifier(run, classifier)
            if request is not None:
                config, cost = _planned(config, request, explained, chosen, budget, world)
                parallel.check_shares(config.recipe, processes)  # it may have made batches smaller
            elif budget is not None and world.first:
                note("--time-budget plans a new run; this one goes on to the length that it was planned with")
            if dry_run:
                around = _stand_in(explained, config, data or config.data)
                _estimate(out, run, config, data or config.data, around, chosen, cost, as_json)
                return
            done = _train(out, config, run, request, data, explained, chosen, world)
    except Stopped as stopped:
        if world.first:
            raise
        # All stop together and the first says so; a process that it started must not seem to have failed.
        raise typer.Exit(0 if world.launched else 143) from stopped
    if world.first:
        _report(out, done, as_json)


def _planned(
    config: RunConfig,
    request: Request,
    explained: Classifier,
    chosen: Hardware,
    budget: float | None,
    world: World,
) -> tuple[RunConfig, StepCost | None]:
    """The settings with what was left to choose, chosen by the first process for all; what steps cost it."""
    from stylex.data import preview
    from stylex.training.plan import plan
    from stylex.training.schedule import never_begins

    cost: StepCost | None = None

    def planned() -> dict[str, Any]:
        nonlocal cost
        source = preview(config.data, group=config.group)
        around = _stand_in(explained, config, config.data)
        found = plan(config, source, around, chosen, fixed=request.fixed(), budget_s=budget, world=world)
        cost = found.cost
        for reason in (*request.reasons(), *found.reasons):
            note(f"chosen: {reason}")
        if cost is not None and world.size > 1:
            note(
                f"times are of one process with its share of a batch, the images divided by {world.size}; "
                "what the processes exchange comes on top"
            )
        for sentence in never_begins(found.config.recipe):
            note(f"warning: {sentence}")
        return found.config.model_dump(mode="json")

    return validate(RunConfig, world.from_first(planned), "settings"), cost


def _train(
    out: Path,
    config: RunConfig,
    run: Run | None,
    request: Request | None,
    data: str | None,
    explained: Classifier,
    chosen: Hardware,
    world: World,
) -> TrainingResult:
    """One process's part: load the images, create the run if this is the first process, train.

    `data` is the source that the command line names, if it does.
    """
    from stylex import training
    from stylex.cli.live import TrainingView
    from stylex.data import load_dataset
    from stylex.training.setup import create_run

    source = data or config.data
    with parallel.one_at_a_time(world):
        dataset = load_dataset(source, size=config.resolution, group=config.group, labelled=False)
    if not len(dataset.training):
        raise DataError(f"{source}: none of its images is one to train on; add images")
    count = len(dataset.training)
    explained.check(dataset.training.batch(range(0, count, max(1, count // CHECKED))))
    if run is not None and data is not None:
        _same_data(run, data, dataset.fingerprint)

    def create() -> None:
        student = None if explained.differentiable else _student(explained, dataset, chosen)
        origin = None if request is None else request.origin
        if origin is not None and origin.other_images(dataset.fingerprint):
            note(
                f"{source}: other images than {origin.path} was trained with, or other ones of them in its "
                "training set"
            )
        with progress() as display:
            create_run(out, config, dataset, explained, chosen, origin, student, _evidence_told(display))

    if run is None:
        world.from_first(create)
        run = Run.open(out)
    around = explained
    if not explained.differentiable:
        around = classifiers.load(run.student_file)
        note(f"training around the student {run.student_file}; the other stages ask the classifier itself")
    if world.first and explained.can_be_saved and not run.classifier_file.exists():
        explained.save(run.classifier_file)
    watched = training.watched_images(dataset)
    if not world.first:
        return training.train(run, dataset.training, around, chosen, watch=watched, world=world)
    about = f"{config.recipe.name}, {config.resolution} px, {chosen.precision} on {chosen.device}"
    with TrainingView(run, about) as view:
        return training.train(
            run, dataset.training, around, chosen, watch=watched, on_progress=view.update, world=world
        )


def _evidence_told(display: Progress) -> Callable[[int, int], None]:
    """Shows how far the search for evidence is, once there is one."""
    tasks: list[TaskID] = []

    def told(done: int, total: int) -> None:
        if not tasks:
            tasks.append(display.add_task("finding the classifier's evidence", total=total))
        display.update(tasks[0], completed=done, total=total)

    return told


def _student(explained: Classifier, dataset: Dataset, chosen: Hardware) -> Classifier:
    """A network that stands in for a classifier without gradients; says how well it does."""
    note(f"{explained.architecture} gives no gradients: a student is distilled from it to train around")
    with progress() as display:
        task = display.add_task("distilling a student", total=None)
        student, found = classifiers.distil(
            explained,
            dataset.training,
            dataset.discovery,
            seed=0,
            hardware=chosen,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    note(f"the student agrees with it on {found.agreement:.1%} of {found.held_out} held-out images")
    if found.warning is not None:
        note(f"warning: {found.warning}")
    return student


def _stand_in(explained: Classifier, config: RunConfig, data: str) -> Classifier:
    """What to time steps with: the classifier, or an untrained student of one without gradients."""
    from stylex.classifiers.distillation import untrained
    from stylex.data import preview

    if explained.differentiable:
        return explained
    return untrained(explained, preview(data, group=config.group).sample(config.resolution, 16)).freeze()


def _report(out: Path, done: TrainingResult, as_json: bool) -> None:
    from stylex.run import read_json
    from stylex.training.evidence import EvidenceFit

    if not (out / "model.safetensors").exists():
        raise RunError(f"{out}: training ended without a model file")
    file = Run.open(out).evidence_file
    evidence = EvidenceFit.from_json(read_json(file)) if file.exists() else None
    content = {
        "run": str(out),
        "step": done.step,
        "images": done.images,
        "seconds": done.seconds,
        "statistics": done.statistics,
        "evidence": None if evidence is None else evidence.to_json(),
    }
    lines = [] if evidence is None else [str(evidence)]
    lines.append(
        f"{out}: {done.images / 1000:.0f} kimg in {done.step} steps and {done.seconds / 60:.0f} min; "
        f"next: stylex attfind {out}"
    )
    result(as_json, content, "\n".join(lines))


def _estimate(
    out: Path,
    run: Run | None,
    config: RunConfig,
    data: str,
    explained: Classifier,
    hardware: Hardware,
    cost: StepCost | None,
    as_json: bool,
) -> None:
    """The result of a dry run; steps are timed unless their cost is known."""
    from stylex.cli.estimate import describe
    from stylex.data import preview
    from stylex.training.costs import estimate

    found = None if run is None else run.newest_checkpoint()
    done = 0 if found is None else int(found[1]["images"])
    images = preview(data, group=config.group)
    few = images.sample(config.resolution, 2 * config.recipe.training.batch_size)
    measured = estimate(
        config,
        few,
        explained,
        hardware,
        images_done=done,
        prepared=found is not None,
        training_images=images.training,
        cost=cost,
    )
    content = {
        "run": str(out),
        "training_images": images.training,
        "settings": config.model_dump(mode="json"),
        **measured.content(),
    }
    result(as_json, content, describe(out, config, measured, images.training))


def _same_settings(
    run: Run, said: dict[str, Any], recipe: str | None, assignments: list[str], *, chosen: bool
) -> RunConfig:
    """The run's settings; with `chosen`, those that a time budget decided are not compared.

    Raises:
        ConfigError: the command line asks for others; data and classifier are compared by content elsewhere.
    """
    from stylex.training.plan import keep_choices

    config = run.config
    wanted: Recipe = config.recipe
    if recipe is not None:
        wanted = load_recipe(recipe, assignments)
        if wanted.name == config.recipe.name:
            wanted = keep_choices(wanted, config.recipe, assignments, everything=chosen)
    elif assignments:
        wanted = validate(
            Recipe, override(config.recipe.model_dump(), assignments), f"settings of {run.path}"
        )
    same = {"data": config.data, "classifier": config.classifier, "recipe": wanted.model_dump()}
    asked = validate(RunConfig, config.model_dump() | said | same, f"settings of {run.path}")
    other = differences(asked, config)
    if other:
        listed = ", ".join(f"{key} {before!r}, not {now!r}" for key, (now, before) in other.items())
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
