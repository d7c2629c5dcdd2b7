"""`stylex factors`: train the network that reads the factors of an image; a classifier's true reliance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from stylex.cli.output import (
    AsJson,
    Device,
    Group,
    PrecisionName,
    Size,
    Threads,
    check_new_file,
    choose_hardware,
    progress,
    result,
)

app = typer.Typer(help="The factors of rendered faces: read them, rely on them.", no_args_is_help=True)


@app.callback()
def _factors() -> None:
    """The factors of rendered faces: train a network that reads them, see which a classifier relies on."""


@app.command()
def train(
    data: Annotated[str, typer.Argument(help="Images with a factor table, as 'stylex data avatars' writes.")],
    out: Annotated[Path, typer.Option("--out", help="File to write, .safetensors.")],
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training images.")] = None,
    size: Size = None,
    group: Group = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train a factor detector, and report how well it reads each factor of the test images."""
    from stylex.data import load_dataset
    from stylex.evaluation.factor_training import EPOCHS, DetectorProgress, train_detector

    check_new_file(out)
    dataset = load_dataset(data, size=size, group=group)
    chosen = choose_hardware(device, precision, threads)
    with progress() as display:
        task = display.add_task("training the factor detector", total=None)

        def show(step: DetectorProgress) -> None:
            display.update(
                task,
                total=step.steps,
                completed=step.step,
                description=f"training the factor detector, loss {step.loss:.4f}, "
                f"{step.images_per_second:.0f} images/s",
            )

        detector = train_detector(dataset, chosen, epochs or EPOCHS, seed, on_progress=show)
    detector.save(out)
    result(as_json, {"file": str(out), **detector.report}, f"{out}\n{describe(detector.report)}")


@app.command()
def reliance(
    classifier: Annotated[str, typer.Argument(help="File of 'stylex classifier train', or another source.")],
    data: Annotated[str, typer.Argument(help="Rendered faces, as 'stylex data avatars' writes them.")],
    faces: Annotated[int, typer.Option(min=1, help="Test faces drawn again.")] = 300,
    size: Size = None,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Which factors does a classifier rely on? Faces are drawn again with one factor changed."""
    from stylex import classifiers
    from stylex.data import load_dataset
    from stylex.evaluation.reliance import redraw
    from stylex.evaluation.reliance import reliance as measure
    from stylex.evaluation.stage import load_faces
    from stylex.hardware import place

    explained = classifiers.load(classifier)
    drawn = load_faces(load_dataset(data, size=size, labelled=False), data, faces)
    place(explained.freeze(), choose_hardware(device, precision, threads))
    with progress() as display:
        task = display.add_task("drawing faces again", total=len(drawn.images))
        redrawn = redraw(
            explained,
            drawn.images,
            background=drawn.background,
            source=drawn.source,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    found = measure(redrawn, explained.class_names, seed=seed)
    content = {
        "classifier": classifier,
        "faces": len(drawn.images),
        "reliance": {name: [row.to_json() for row in rows] for name, rows in found.items()},
    }
    lines = []
    for name, rows in found.items():
        lines.append(f"towards '{name}': log-odds by the strongest value (95 % interval), flips")
        lines += [
            f"  {'*' if row.relied else ' '} {row.factor} = {row.value}: {row.effect.estimate:+.2f} "
            f"({row.effect.low:+.2f} to {row.effect.high:+.2f}), {row.flips.estimate:.0%}"
            for row in rows
        ]
    result(as_json, content, "\n".join([*lines, "* relied on: a tenth of the largest effect or more"]))


def describe(report: Mapping[str, Any]) -> str:
    """Accuracy of every factor as a table."""
    factors = report["factors"]
    width = max(len(name) for name in factors) + 2
    lines = ["factor".ljust(width) + "accuracy (95 % interval)    blurred"]
    for name, score in factors.items():
        share, blurred = score["accuracy"], score["blurred"]
        lines.append(
            f"{name.ljust(width)}{share['estimate']:8.2%} ({share['low']:.2%} to {share['high']:.2%})"
            f"   {blurred['estimate']:.2%}"
        )
    images = next(iter(factors.values()))["accuracy"]["n"]
    lines.append(f"on {images} {report['held_out']} images, trained on {report['training_images']}")
    lines += [f"not read: {name} ({why})" for name, why in report["skipped"].items()]
    return "\n".join(lines)
