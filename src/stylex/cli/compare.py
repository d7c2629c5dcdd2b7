"""`stylex compare`: evaluated runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stylex.cli.output import AsJson, result


def compare(
    paths: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Evaluated runs.")],
    k: Annotated[int, typer.Option("-k", "--attributes", min=1, help="Coordinates moved at once.")] = 10,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="A table for a page; each row links its run's config.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare evaluated runs: recipes with each other, training seeds apart, and whether seeds agree."""
    from stylex.evaluation.comparison import as_markdown, compare_runs, describe_seeds

    found = compare_runs(paths, k)
    lines = [as_markdown(found, Path.cwd())]
    if not markdown:
        lines += describe_seeds(found)
        lines += found.apart
    result(as_json, found.to_json(), "\n".join(lines))
