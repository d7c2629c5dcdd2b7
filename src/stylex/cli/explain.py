"""`stylex explain`: why this image, and what would change the classifier's mind?"""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, Device, PrecisionName, Threads, choose_hardware, note, result
from stylex.errors import ConfigError
from stylex.explainer import DEMO, demo_folder, open_explainer
from stylex.report.counterfactuals import SUFFIXES
from stylex.run import Run


def explain(
    path: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, or 'demo'.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…")],
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            help="Class that the images should count as, once for all or once for each; by default the most "
            "probable class that an image is not.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the files; by default RUN/explain.")
    ] = None,
    device: Device = "auto",
    precision: PrecisionName = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Find the smallest change that flips each image; write a figure, a flickering GIF and JSON."""
    demo = str(path) == DEMO
    run = Run.open(demo_folder() if demo else path)
    folder = out or (Path("stylex-explain") if demo else path / "explain")
    explainer = open_explainer(run, choose_hardware(device, precision, threads))
    for image in images:  # before any work: one that cannot be read must not leave half an answer
        explainer.decode(image)
    found = []
    stems = _different([image.stem for image in images])
    for image, stem, goal in zip(images, stems, _goals(target, len(images)), strict=True):
        counterfactual = explainer.counterfactual(image, goal)
        name = f"{stem}-{counterfactual.target}".replace("/", "_")
        files = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
        for file in files:
            counterfactual.save(file)
        if counterfactual.warning is not None:
            note(f"warning: {counterfactual.warning}")
        found.append({**counterfactual.to_json(), "files": [str(file) for file in files]})
        if not as_json:
            result(False, None, f"{counterfactual.answer}\n    {', '.join(str(file) for file in files)}")
    if as_json:
        result(True, {"run": str(path), "explanations": found}, "")


def _goals(targets: list[str] | None, count: int) -> list[str | None]:
    """A target for each image; None leaves it to the image."""
    if not targets:
        return [None] * count
    if len(targets) not in (1, count):
        raise ConfigError(
            f"--target is given {len(targets)} times for {count} images; give one, or one for each"
        )
    return [*targets] * (count if len(targets) == 1 else 1)


def _different(stems: list[str]) -> list[str]:
    """Names for files, numbered where images of different folders have the same one."""
    found: list[str] = []
    for stem in stems:
        names = (
            stem if stems.count(stem) == 1 and not number else f"{stem}-{number + 1}" for number in count()
        )
        found.append(next(name for name in names if name not in found))
    return found
