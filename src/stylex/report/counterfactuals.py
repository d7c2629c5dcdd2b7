"""One counterfactual as files: a figure, a flickering animation, the numbers."""

from __future__ import annotations

from pathlib import Path

from stylex.counterfactuals import Counterfactual
from stylex.errors import ConfigError
from stylex.report.animation import counterfactual_figure, write_gif
from stylex.report.content import CounterfactualExample
from stylex.report.pictures import SHOWN_SIDE
from stylex.run import write_atomically, write_json

SUFFIXES = (".png", ".gif", ".json")


def as_example(found: Counterfactual) -> CounterfactualExample:
    """A counterfactual as the report shows it; a sampled one is its own original."""
    target = found.class_names.index(found.target)
    before = found.probabilities_original or found.probabilities_before
    return CounterfactualExample(
        name=found.name,
        original=found.reconstruction if found.original is None else found.original,
        reconstruction=found.reconstruction,
        counterfactual=found.edited,
        changes=tuple(str(change) for change in found.changes),
        probability_original=before[target],
        probability_before=found.probabilities_before[target],
        probability_after=found.probabilities_after[target],
        flipped=found.flipped,
    )


def save_counterfactual(found: Counterfactual, path: Path) -> None:
    """Write .png, .gif or .json, by the suffix of `path`.

    Raises:
        ConfigError: another suffix.
        RunError: the file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        write_json(path, found.to_json())
    elif suffix == ".gif":
        target = found.class_names.index(found.target)
        captions = (
            f"{found.target}: {found.probabilities_before[target]:.0%}",
            f"{found.target}: {found.probabilities_after[target]:.0%}",
        )
        scale = max(1, SHOWN_SIDE // max(found.edited.shape[:2]))
        write_gif(path, found.reconstruction, found.edited, scale=scale, captions=captions)
    elif suffix == ".png":
        figure = counterfactual_figure(as_example(found), found.target)
        write_atomically(path, lambda file: figure.save(file, "PNG"))
    else:
        raise ConfigError(f"{path}: a counterfactual is saved as {', '.join(SUFFIXES)}, not '{path.suffix}'")
