"""Table 2: flip rates of Wu et al. and of AttFind with StyleGAN2 and StylEx, by the study's protocol."""

from __future__ import annotations

from typing import Any

from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import STYLEGAN2, Workshop

COLUMNS = (
    ("Wu et al.", STYLEGAN2, "Wu et al."),
    ("AttFind with StyleGAN2", STYLEGAN2, "AttFind"),
    ("AttFind with StylEx", "", "AttFind"),
)
"""Column, recipe (empty: the experiment's own) and method; Wu et al. is of StyleGAN2, as in the study."""

SPREAD = (
    "±: standard deviation over the draws of latents, in which images come again; what other images would "
    "give is the interval's to say."
)

OF_THE_STUDY = (
    "The ± that the study prints for Wu et al. is by mistake one of AttFind's, so nothing is known of its "
    "own; and where its table says 0.247 (AFHQ), its text says 20.8 %."
)


def make(shop: Workshop) -> Item:
    """Our rates with what a rate should never be without, beside the study's and the paper's."""
    columns: dict[str, Any] = {}
    for column, recipe, method in COLUMNS:
        found: Any = shop.study_result(recipe or shop.stylex_recipe)
        figure = next((each for each in found["figures"] if each["method"] == method), None)
        columns[column] = None if figure is None else {**figure, "coordinates": found["coordinates"]}
    published = {name: {"mean": mean, "std": std} for name, (mean, std) in shop.experiment.flips.items()}
    numbers = shop.study
    lines = [
        f"## Table 2: {shop.experiment.title}",
        "",
        f"Protocol study: top {numbers.count} at once, {numbers.repeats} × {numbers.latents} latents, recipe "
        f"{shop.stylex_recipe}, seed {shop.seed}.",
        "",
        "| | rate ± std | 95 % over distinct images | against the original | coordinates | confirmed | moved "
        "| study | paper |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for column, figure in columns.items():
        other = " | ".join(_published(published.get(f"{before}{column}")) for before in ("", "paper: "))
        if figure is None:
            lines.append(f"| {column} | no image shows a class clearly | | | | | | {other} |")
            continue
        whole, original, confirmed = figure["interval"], figure["original"], figure["confirmed"]
        against = "–" if original is None else f"{original['mean']:.3f} ± {original['std']:.3f}"
        share = None if confirmed is None else confirmed["share"]
        lines.append(
            f"| {column} | {figure['mean']:.3f} ± {figure['std']:.3f} | {whole['low']:.3f} to "
            f"{whole['high']:.3f} | {against} | {figure['coordinates']} | "
            f"{'–' if share is None else format(share, '.2f')} | {figure['distance']:.3f} | {other} |"
        )
    notes = [SPREAD, OF_THE_STUDY] if published else [SPREAD]
    lines += ["", " ".join(notes)]
    content = {
        "columns": columns,
        "published": published,
        "settings": numbers.model_dump(mode="json"),
        "notes": notes,
    }
    return Item("table-2", shop.experiment.name, "\n".join(lines), content)


def _published(figure: dict[str, Any] | None) -> str:
    if figure is None:
        return "–"
    return f"{figure['mean']:.3f}" + ("" if figure["std"] is None else f" ± {figure['std']:.3f}")
