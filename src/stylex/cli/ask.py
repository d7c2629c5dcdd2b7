"""`stylex ask`: questions about a classifier, put to a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from stylex.cli.output import (
    AsJson,
    Device,
    OtherImages,
    PrecisionName,
    RunPath,
    Threads,
    choose_hardware,
    note,
    note_coverage,
    progress,
    result,
)
from stylex.errors import ConfigError, DataError
from stylex.run import Run

if TYPE_CHECKING:
    from stylex.data import ImageSet
    from stylex.evaluation.coverage import Coverage
    from stylex.evaluation.measure import TestImages
    from stylex.explainer import Explainer
    from stylex.questions.groups import GroupFinding

app = typer.Typer(
    help="Ask a run: does it use this, for whom, where it errs, what changed?", no_args_is_help=True
)

MOST_EXAMPLES = 100
"""Examples with a value, and as many without, that are drawn from a column."""


@app.callback()
def _ask() -> None:
    """Ask a run: does it use this, for whom, where it errs, what changed?"""


@app.command()
def use(
    path: RunPath,
    concept: Annotated[str, typer.Argument(help="What it is called, such as glasses.")],
    column: Annotated[str | None, typer.Option(help="Column of the run's table that knows.")] = None,
    value: Annotated[str | None, typer.Option(help="Value of the column; by default the concept.")] = None,
    with_: Annotated[
        Path | None, typer.Option("--with", help="Folder of examples that show the concept.")
    ] = None,
    without: Annotated[Path | None, typer.Option(help="Folder of examples that do not.")] = None,
    towards: Annotated[str | None, typer.Option(help="Class; by default each one.")] = None,
    adjust: Annotated[
        bool, typer.Option(help="Hold the table's other columns equal (the class always is).")
    ] = True,
    images: Annotated[int, typer.Option(min=2, help="Test images that the concept is added to.")] = 32,
    draws: Annotated[int, typer.Option(min=19, help="Resamples, and shuffles; p goes down to 1/draws.")] = 99,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Does the classifier use it? A hypothesis, tested with examples from a column or from two folders."""
    from stylex.evaluation.measure import prepare
    from stylex.explainer import load_images, open_explainer
    from stylex.questions.hypothesis import columns_of, does_it_use

    if (column is None) == (with_ is None or without is None):
        raise ConfigError("say who shows it: either --column (and --value), or --with and --without")
    run = Run.open(path)
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    source = data or run.data_source
    held = labels = None
    # With the classes, if there are any and the column's values are compared: they are held equal.
    dataset = load_images(run, data, labelled=column is not None)
    if column is not None:
        wanted = value or concept
        examples, has = _from_column(dataset.discovery, column, wanted, source, run.config.seed)
        labels = examples.labels
        if adjust:
            held = columns_of({name: each for name, each in examples.factors.items() if name != column})
        lacking = [i for i, each in enumerate(dataset.test.factors[column]) if each != wanted]
        candidates = dataset.test.select(lacking)
    else:
        assert with_ is not None
        assert without is not None
        examples, has = _from_folders(with_, without, run.config.resolution)
        candidates = dataset.test
    test = _others(candidates, examples, images, run.config.seed)
    targets = [towards] if towards else list(explainer.class_names)
    if towards is None and len(targets) == 2:
        targets = targets[:1]  # of two classes one is the other's negative
    verdicts = []
    with progress() as display:
        for target in targets:
            task = display.add_task(f"adding {concept}, towards {target}", total=draws)
            verdicts.append(
                does_it_use(
                    explainer.model,
                    examples.batch(slice(None)),
                    has,
                    test.batch(slice(None)),
                    concept,
                    target,
                    labels=labels,
                    covariates=held,
                    draws=draws,
                    seed=run.config.seed,
                    on_progress=lambda done, total, task=task: display.update(  # type: ignore[misc]
                        task, completed=done, total=total
                    ),
                )
            )
    text = "\n".join(
        f"{each.sentence}\n    {each.examples_with} examples with, {each.examples_without} without; "
        "in the data they differ by {:+.2f} ({:+.2f} to {:+.2f})".format(*each.association)
        for each in verdicts
    )
    content = {
        "run": str(path),
        "verdicts": [each.to_json() for each in verdicts],
        "coverage": _coverage_by_class(explainer, prepare(explainer.model, test, run.config.seed)),
    }
    result(as_json, content, text)


@app.command()
def groups(
    path: RunPath,
    by: Annotated[str, typer.Option(help="Column of the run's table that names the groups.")],
    count: Annotated[int, typer.Option(min=1, help="Attributes of each group, towards each class.")] = 5,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Are explanations the same for all? Attributes by subgroup, and how each is covered."""
    from stylex.explainer import load_images, open_explainer
    from stylex.questions.groups import explain_groups, groups_from_column

    run = Run.open(path)
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    dataset, source = load_images(run, data), data or run.data_source
    labels = groups_from_column(explainer, dataset.discovery, by, source)
    covered = _coverage(explainer, dataset.test, list(dataset.test.factors.get(by, ())))
    found = explain_groups(explainer, labels, covered, count=count, seed=run.config.seed)
    _show_groups(path, by, found, as_json)


@app.command()
def errors(
    path: RunPath,
    count: Annotated[int, typer.Option(min=1, help="Attributes, towards each class.")] = 5,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Why is it wrong? Attributes of the images that the classifier gets wrong, and of the others."""
    from stylex.explainer import load_images, open_explainer
    from stylex.questions.groups import explain_groups, right_or_wrong

    run = Run.open(path)
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    dataset, source = load_images(run, data, labelled=True), data or run.data_source
    known = dict(zip(dataset.discovery.names, range(len(dataset.discovery)), strict=True))
    absent = [name for name in explainer.discovery.names if name not in known]
    if absent:
        raise DataError(
            f"{source}: {absent[0]}, on which the search stood, is not among its discovery images"
        )
    searched = dataset.discovery.select([known[name] for name in explainer.discovery.names])
    classifier = explainer.model.classifier
    labels = right_or_wrong(classifier, searched, source)
    covered = _coverage(explainer, dataset.test, right_or_wrong(classifier, dataset.test, source))
    found = explain_groups(explainer, labels, covered, count=count, seed=run.config.seed)
    _show_groups(path, "errors", found, as_json)


@app.command()
def versions(
    path: RunPath,
    classifier: Annotated[str, typer.Option(help="The other version: a classifier of the same classes.")],
    count: Annotated[int, typer.Option(min=1, help="Attributes of each, towards each class.")] = 5,
    swept: Annotated[int, typer.Option("--images", min=1, help="Discovery images of each class.")] = 16,
    data: OtherImages = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """What changed? Two classifiers side by side on the run's generator."""
    from stylex import classifiers
    from stylex.evaluation.measure import prepare
    from stylex.explainer import load_images, open_explainer
    from stylex.hardware import place
    from stylex.questions.versions import compare_versions

    run = Run.open(path)
    chosen = choose_hardware(device, precision, threads)
    explainer = open_explainer(run, chosen)
    second = classifiers.load(classifier)
    place(second.freeze(), chosen)
    images = load_images(run, data).test if explainer.model.encoder is not None else None
    test = prepare(explainer.model, images, run.config.seed)
    with progress() as display:
        task = display.add_task("measuring effects on the other version, image", total=None)
        found = compare_versions(
            explainer,
            second,
            test,
            count=count,
            swept=swept,
            seed=run.config.seed,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    lines = [f"both give the same class to {found.agreement.estimate:.1%} of {found.images} test images"]
    for entry in found.attributes:
        change = entry.difference
        lines.append(
            f"{'*' if entry.p <= 0.05 else ' '} {entry.title} → '{entry.target}': {entry.first:+.2f} here, "
            f"{entry.second:+.2f} there, difference {change.estimate:+.2f} "
            f"({change.low:+.2f} to {change.high:+.2f})"
        )
    lines.append("* differs (p ≤ 0.05 after Holm's adjustment)")
    covered = _coverage_by_class(explainer, test)
    content = {"run": str(path), "classifier": classifier, **found.to_json(), "coverage": covered}
    result(as_json, content, "\n".join(lines))


def _from_column(
    images: ImageSet, column: str, value: str, source: str, seed: int
) -> tuple[ImageSet, npt.NDArray[np.bool_]]:
    """At most MOST_EXAMPLES images with the value of a column, and as many of each class with another."""
    from stylex.questions.examples import matched
    from stylex.questions.hypothesis import LEAST_EXAMPLES

    if column not in images.factors:
        raise DataError(
            f"{source}: no column '{column}'; there are {', '.join(images.factors) or 'no columns'}"
        )
    cells = np.asarray(images.factors[column])
    if not (cells == value).any():
        known = ", ".join(sorted(set(cells.tolist())))
        raise DataError(f"{source}: no discovery image has '{value}' under '{column}'; there are {known}")
    filled = np.flatnonzero(cells != "")
    labels = None if images.labels is None else images.labels[filled]
    rows = matched(cells[filled] == value, MOST_EXAMPLES, seed, labels)
    if len(rows[0]) < LEAST_EXAMPLES:
        raise DataError(
            f"{source}: {len(rows[0])} discovery images with '{value}' under '{column}' have one without it "
            f"in their class to be compared with; at least {LEAST_EXAMPLES} are needed"
        )
    has = np.zeros(2 * len(rows[0]), np.bool_)
    has[: len(rows[0])] = True
    return images.select(filled[np.concatenate(rows)]), has


def _from_folders(with_: Path, without: Path, size: int) -> tuple[ImageSet, npt.NDArray[np.bool_]]:
    """All images of two folders, without labels, and which of them are of the first."""
    from stylex.data import ImageSet, decode_image

    found: list[Path] = []
    counts = []
    for folder in (with_, without):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder of examples")
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        if not files:
            raise DataError(f"{folder}: holds no examples")
        found += files
        counts.append(len(files))
    pictures = np.stack([decode_image(file, size) for file in found])
    has = np.arange(len(found)) < counts[0]
    return ImageSet(pictures, tuple(map(str, found)), None, None, {}), has


def _others(candidates: ImageSet, examples: ImageSet, most: int, seed: int) -> ImageSet:
    """At most `most` test images that are no examples, as many of each class as far as labels are known."""
    from stylex.data.overlap import equal_pixels
    from stylex.questions.examples import spread

    kept = candidates.select(np.flatnonzero(~equal_pixels(candidates, (examples,))))
    if len(candidates) and not len(kept):
        raise DataError("all test images are among the examples; give other examples, or other images")
    if len(kept) < len(candidates):
        note(f"{len(candidates) - len(kept)} test images are among the examples and are left out")
    return kept.select(spread(len(kept), most, seed, kept.labels))


def _coverage(explainer: Explainer, images: ImageSet, labels: Sequence[str]) -> tuple[Coverage, ...]:
    """Coverage of the groups of test images, said out loud where it is low; none without test images."""
    from stylex.evaluation.coverage import coverage
    from stylex.evaluation.measure import prepare

    if not len(images) or len(labels) != len(images):
        return ()
    test = prepare(explainer.model, images, explainer.run.config.seed)
    found = coverage(test, labels, explainer.model.classifier.activation)
    note_coverage(found)
    return found


def _coverage_by_class(explainer: Explainer, test: TestImages) -> list[dict[str, Any]]:
    """Coverage of test images by class, said out loud where it is low, as plain values."""
    from stylex.evaluation.coverage import by_class

    found = by_class(test, explainer.class_names, explainer.model.classifier.activation)
    note_coverage(found)
    return [entry.to_json() for entry in found]


def _show_groups(path: Path, by: str, found: Sequence[GroupFinding], as_json: bool) -> None:
    lines = []
    for each in found:
        lines.append(f"{by} {each.group} ({each.images} discovery images)")
        for name, attributes in each.attributes.items():
            for entry in attributes:
                effect = entry.effect
                lines.append(
                    f"  {'*' if entry.p <= 0.05 else ' '} → '{name}' {entry.attribute.title}: "
                    f"{effect.estimate:+.2f} ({effect.low:+.2f} to {effect.high:+.2f}), "
                    + ("elsewhere none" if entry.elsewhere is None else f"elsewhere {entry.elsewhere:+.2f}")
                )
        lines += [f"    → '{name}': {reason}" for name, reason in each.missing.items()]
    lines.append("* other than elsewhere (p ≤ 0.05 after Holm's adjustment)")
    content: dict[str, Any] = {"run": str(path), "by": by, "groups": [each.to_json() for each in found]}
    result(as_json, content, "\n".join(lines))
