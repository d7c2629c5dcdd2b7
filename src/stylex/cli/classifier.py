"""`stylex classifier`: train one."""

from __future__ import annotations

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

app = typer.Typer(help="Train classifiers.", no_args_is_help=True)


@app.callback()
def _classifier() -> None:
    """Train classifiers."""


@app.command()
def train(
    data: Annotated[
        str, typer.Argument(help="Folder with a sub-folder a class, CSV, or fashion-mnist[:PATH].")
    ],
    out: Annotated[Path, typer.Option("--out", help="File to write, .safetensors.")],
    architecture: Annotated[
        str, typer.Option(help="small_cnn, mobilenet_v2 or torchvision:NAME.")
    ] = "small_cnn",
    epochs: Annotated[int, typer.Option(min=1)] = 15,
    batch_size: Annotated[int, typer.Option(min=2)] = 64,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak; by default what suits the batch.")
    ] = None,
    size: Size = None,
    group: Group = None,
    mirror: Annotated[bool, typer.Option(help="Train on mirrored images too.")] = True,
    calibrate: Annotated[bool, typer.Option(help="Fit a temperature on the discovery images.")] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Train a classifier, and report accuracy, calibration and confusions on the test images."""
    from stylex import classifiers
    from stylex.data import load_dataset

    check_new_file(out)
    dataset = load_dataset(data, size=size, group=group)
    chosen = choose_hardware(device, precision, threads)
    with progress() as display:
        task = display.add_task("training the classifier", total=None)

        def show(step: Any) -> None:
            total = step.epochs * step.steps
            display.update(
                task,
                total=total,
                completed=(step.epoch - 1) * step.steps + step.step,
                description=f"training the classifier, epoch {step.epoch}/{step.epochs}, "
                f"loss {step.loss:.3f}, {step.images_per_second:.0f} images/s",
            )

        trained, report = classifiers.train(
            dataset.training,
            dataset.discovery,
            architecture=architecture,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            mirror=mirror,
            calibrate=calibrate,
            seed=seed,
            hardware=chosen,
            data_fingerprint=dataset.fingerprint,
            on_progress=show,
        )
    trained.save(out)
    content: dict[str, Any] = {"file": str(out), "training": report.to_json()}
    lines = [f"{out}: {architecture}, classes {', '.join(trained.class_names)}"]
    if len(dataset.test):
        scores = classifiers.evaluate(trained, dataset.test)
        content["test"] = scores.to_json()
        lines += [
            f"on {scores.images} test images: accuracy {scores.accuracy:.1%}, "
            f"balanced {scores.balanced_accuracy:.1%}, "
            f"calibration error {scores.expected_calibration_error:.3f}, "
            f"Brier score {scores.brier_score:.3f}",
            "confusion (rows: true class, columns: answer)",
            _table(trained.class_names, scores.confusion),
        ]
    result(as_json, content, "\n".join(lines))


def _table(names: tuple[str, ...], rows: Any) -> str:
    width = max(8, *(len(name) + 2 for name in names))
    head = " " * width + "".join(name.rjust(width) for name in names)
    body = [
        name.ljust(width) + "".join(f"{count:{width}d}" for count in row)
        for name, row in zip(names, rows, strict=True)
    ]
    return "\n".join([head, *body])
