"""`stylex doctor`: what this machine and a classifier were understood to be, before time is spent on them."""

from __future__ import annotations

import importlib.util
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
    choose_hardware,
    note,
    result,
)
from stylex.extras import EXTRAS

SHOWN = 12
"""Images in the text; the figure has more."""


def doctor(
    classifier: Annotated[
        str | None, typer.Option(help="What is to be explained: as for 'stylex train --classifier'.")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Images to look at it with, with labels where there are some.")
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", help="Figure of its answers beside thumbnails, a .png.")
    ] = Path("stylex-doctor.png"),
    size: Size = None,
    group: Group = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Show what was understood of a classifier, with its answers on a few images; or look at this machine."""
    from stylex import classifiers
    from stylex.hardware import place
    from stylex.run import provenance

    chosen = choose_hardware(device, precision, threads)
    content: dict[str, Any] = {
        "machine": {**provenance(), "hardware": str(chosen)},
        "packages": {name: importlib.util.find_spec(name) is not None for name in EXTRAS},
        "classifier": None,
    }
    lines = [f"{key}: {value}" for key, value in content["machine"].items()]
    absent = [f"{name} (stylex[{EXTRAS[name]}])" for name, there in content["packages"].items() if not there]
    lines.append(f"not installed: {', '.join(absent) or 'nothing'}")
    if classifier is not None:
        explained = classifiers.load(classifier)
        place(explained, chosen)
        if data is None:
            found = {"classifier": classifiers.describe(explained)}
            lines += ["", *_settings(found["classifier"]), "give --data to see its answers"]
        else:
            found = _answers(explained, data, size, group, out, lines)
        content["classifier"] = found
    result(as_json, content, "\n".join(lines))


def _answers(
    explained: Any, data: str, size: int | None, group: str | None, out: Path, lines: list[str]
) -> dict[str, Any]:
    from stylex import classifiers
    from stylex.classifiers.checking import IMAGES
    from stylex.data import preview
    from stylex.report.inspection import save_inspection

    source = preview(data, group=group, labelled=True)
    images = source.sample(size or _side(source.side, explained.input_size), IMAGES)
    found = classifiers.inspect(explained, images)
    save_inspection(found, out)
    lines += ["", *_settings(found.settings)]
    for number, name in enumerate(found.names[:SHOWN]):
        answer, probability = found.answer(number)
        label = "" if found.labels is None else f" (labelled {found.labels[number]})"
        lines.append(f"  {name}: {answer} {probability:.2f}{label}")
    if found.accuracy is not None:
        lines.append(f"right on {found.accuracy:.0%} of {len(found.names)} images")
    lines.append(f"{found.images_per_second:.0f} images/s; figure: {out}")
    for warning in found.warnings:
        note(f"warning: {warning}")
    return {**found.to_json(), "figure": str(out)}


def _side(of_images: int, of_classifier: int | None) -> int:
    """A power of two that the images and the classifier reach."""
    wanted = max(8, min(of_images, of_classifier or of_images, 256))
    return 1 << (wanted.bit_length() - 1)


def _settings(found: dict[str, Any]) -> list[str]:
    names = found["class_names"]
    shown = ", ".join(names[:8]) + (f" … ({len(names)} in all)" if len(names) > 8 else "")
    kind = "one logit, two classes" if found["single_logit"] else found["activation"]
    colour = f"{found['channels']} channels" + (f", {found['order']}" if found["order"] else ", grey")
    size = f"{found['input_size']} px" if found["input_size"] else "any size"
    return [
        f"classifier: {found['architecture']}",
        f"classes: {shown} ({kind})",
        f"input: {size}, {colour}; black becomes {_numbers(found['black'])}, "
        f"white {_numbers(found['white'])} "
        f"(mean {_numbers(found['mean'])}, std {_numbers(found['std'])} on the 0:1 scale)",
        f"gradients: {_yes(found['gradients'])}; features for the loss: {_yes(found['features'])}; "
        f"kept within a run: {_yes(found['travels_with_a_run'])}",
    ]


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.4g}" for value in dict.fromkeys(values))


def _yes(value: bool) -> str:
    return "yes" if value else "no"
