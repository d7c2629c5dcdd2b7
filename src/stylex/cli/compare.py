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
    from stylex.evaluation.comparison import as_markdown, compare_runs

    found = compare_runs(paths, k)
    lines = [as_markdown(found, Path.cwd())]
    if not markdown:
        for each in found.over_seeds:
            if each.std is not None:
                rates = ", ".join(f"{rate:.2f}" for rate in each.rates)
                lines.append(
                    f"{each.recipe}, {each.method} → '{each.target}': {rates} over seeds "
                    f"{', '.join(map(str, each.seeds))} (mean {each.mean:.2f} ± {each.std:.2f})"
                )
        for same in found.stability:
            r = same.correlation
            lines.append(
                f"{same.recipe} → '{same.target}', {same.runs} seeds: effects of factors correlate by "
                f"{r.interval.estimate:.2f} ({r.interval.low:.2f} to {r.interval.high:.2f}; chance up to "
                f"{r.limit:.2f}), main factors overlap by {same.overlap:.2f}"
            )
    result(as_json, found.to_json(), "\n".join(lines))
