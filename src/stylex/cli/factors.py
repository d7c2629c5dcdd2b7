"""`stylex factors`: train the network that reads the factors of an image."""

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

app = typer.Typer(help="Train the network that reads the factors of an image.", no_args_is_help=True)


@app.callback()
def _factors() -> None:
    """Train the network that reads the factors of an image."""


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
