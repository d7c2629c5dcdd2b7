"""`stylex compare`: evaluated runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
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
                    f"{', '.join(map(str, each.seeds))} (mean {each.mean:.2f} ± {each.std:.2f}; "
                    f"{_names(each.runs)})"
                )
        for same in found.stability:
            r, pairs = same.correlation, same.pairs
            between = f"pairs {min(pairs):.2f} to {max(pairs):.2f}" if len(pairs) > 1 else "one pair"
            lines.append(
                f"{same.recipe} → '{same.target}', {len(same.runs)} seeds ({_names(same.runs)}): effects of "
                f"factors correlate by {r.estimate:.2f} ({between}; chance up to {r.limit:.2f}), main "
                f"factors overlap by {same.overlap.estimate:.2f} (chance {same.overlap.chance:.2f}, up to "
                f"{same.overlap.limit:.2f})"
            )
        lines += found.apart
    result(as_json, found.to_json(), "\n".join(lines))


def _names(runs: Sequence[str]) -> str:
    return ", ".join(Path(run).name for run in runs)
