"""`stylex data`: make a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, Size, progress, result

app = typer.Typer(help="Make data sets.", no_args_is_help=True)


@app.callback()
def _data() -> None:
    """Make data sets."""


@app.command()
def avatars(
    out: Annotated[Path, typer.Option("--out", help="New folder for images, factors.csv and spec.yaml.")],
    count: Annotated[int, typer.Option("--count", min=1, help="Number of faces.")] = 13000,
    size: Size = 64,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    spec: Annotated[Path | None, typer.Option("--spec", help="YAML file that plants other causes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Render labelled faces whose every factor is known, with causes of the label planted by a spec."""
    from stylex.data import AvatarSpec, render_avatars

    planted = None if spec is None else AvatarSpec.load(spec)
    assert size is not None
    with progress() as display:
        task = display.add_task("rendering faces", total=count)
        rendered = render_avatars(
            out,
            count=count,
            size=size,
            seed=seed,
            spec=planted,
            on_progress=lambda done, total: display.update(task, completed=done, total=total),
        )
    content = {
        "path": str(rendered.path),
        "count": rendered.count,
        "size": rendered.size,
        "seed": rendered.seed,
        "classes": rendered.classes,
    }
    result(as_json, content, f"{rendered.count} faces of {rendered.size} px in {rendered.path}")
