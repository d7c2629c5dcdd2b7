"""`stylex convert`: somebody else's StyleGAN2 or StylEx as a run, and our generator for elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, result
from stylex.errors import ConfigError, RunError


def convert(
    source: Annotated[
        Path,
        typer.Argument(metavar="SRC", help=".pt, .pkl or .safetensors, a folder of SavedModels, or a run."),
    ],
    out: Annotated[Path, typer.Option("--out", help="New run directory; with --to the file to write.")],
    classifier: Annotated[
        str | None, typer.Option(help="What is to be explained: as for 'stylex train --classifier'.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Images, for a model that has an encoder.")] = None,
    label: Annotated[
        int | None,
        typer.Option("--label", min=0, help="Class, from 0, that a conditional generator is to draw."),
    ] = None,
    to: Annotated[
        str | None, typer.Option("--to", help="Write a run's generator as stylegan2-ada or onnx.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run of a model that was trained elsewhere, or (--to) write a run's generator for elsewhere."""
    from stylex import classifiers
    from stylex.interop import conversion

    if to is not None:
        from stylex import hardware
        from stylex.model import load_model
        from stylex.run import Run

        if label is not None:
            raise ConfigError("--label says what a converted generator is to draw; with --to leave it out")
        if out.exists():
            raise RunError(f"{out}: exists; nothing was overwritten, choose another name")
        model = load_model(Run.open(source), hardware.choose("cpu", "fp32"))
        written = conversion.export(model, to, out)
        result(
            as_json, {"run": str(source), "to": to, **written}, f"{out}: the generator of {source} as {to}"
        )
        return
    explained = None if classifier is None else classifiers.load(classifier)
    run = conversion.convert(
        source, out, explained, classifier_source=classifier or "", data=data or "", label=label
    )
    network = run.config.recipe.network
    content = {
        "run": str(out),
        "source": str(source),
        "layout": run.config.recipe.name.removeprefix("converted "),
        "resolution": run.config.resolution,
        "encoder": run.config.recipe.encodes,
        "mapping": run.config.recipe.samples,
        "condition": network.condition,
        "label": label,
    }
    what = "encodes images" if run.config.recipe.encodes else "samples its images"
    what += "" if label is None else f" of class {label}"
    result(
        as_json,
        content,
        f"{out}: {content['layout']}, {run.config.resolution} px, {what}; next: stylex attfind {out}",
    )
