"""A small report in which every word and every picture is told apart from all others."""

from __future__ import annotations

import numpy as np

from stylex.report.content import (
    AttributeSection,
    CounterfactualExample,
    Curve,
    Pair,
    Picture,
    Reconstruction,
    ReportContent,
    Table,
    TargetSection,
)

SIDE = 8


def picture(number: int) -> Picture:
    """One even colour, no two numbers below 1,000 alike."""
    color = [40 + 20 * (number % 10), 40 + 20 * (number // 10 % 10), 40 + 20 * (number // 100)]
    return np.full((SIDE, SIDE, 3), color, np.uint8)


def heat(hottest: int) -> np.ndarray:
    where = np.zeros((SIDE, SIDE), np.float32)
    where[hottest, hottest] = 1
    return where


def attribute(target: int, rank: int, name: str | None) -> AttributeSection:
    first = 100 * target + 20 * rank
    pairs = tuple(
        Pair(
            name=f"pair-{target}-{rank}-{i}.png",
            before=picture(first + 2 * i),
            after=picture(first + 2 * i + 1),
            probability_before=0.11 + 0.01 * i,
            probability_after=0.61 + 0.01 * i,
            flipped=i == 0,
        )
        for i in range(3)
    )
    return AttributeSection(
        rank=rank,
        name=name,
        coordinate=4000 + first,
        direction=f"direction-{target}-{rank}",
        layer=f"layer-{target}-{rank}",
        channel=7000 + first,
        effect=1.25 / rank,
        effect_low=1.0 / rank,
        effect_high=1.5 / rank,
        flip_share=0.5 / rank,
        flip_share_low=0.4 / rank,
        flip_share_high=0.6 / rank,
        where=heat(rank),
        pairs=pairs,
    )


def target_section(number: int, name: str) -> TargetSection:
    curves = tuple(
        Curve(f"curve-{number}-{i}", (1, 2, 3), (0.2, 0.4, 0.83), (0.1, 0.3, 0.7), (0.3, 0.5, 0.9), 300 + i)
        for i in range(2)
    )
    examples = tuple(
        CounterfactualExample(
            name=f"example-{number}-{i}.png",
            original=picture(100 * number + 90 + 3 * i),
            reconstruction=picture(100 * number + 91 + 3 * i),
            counterfactual=picture(100 * number + 92 + 3 * i),
            changes=() if i else (f"change-{number}-a", f"change-{number}-b"),
            probability_original=0.07,
            probability_before=0.09,
            probability_after=0.19 if i else 0.77,
            flipped=not i,
        )
        for i in range(2)
    )
    attributes = (attribute(number, 1, f"named-{number}"), attribute(number, 2, None))
    return TargetSection(name, attributes, curves, examples)


def report_content() -> ReportContent:
    return ReportContent(
        title="the-title",
        summary="the-summary",
        class_names=("class-young", "class-old"),
        facts={f"fact-label-{i}": f"fact-value-{i}" for i in range(8)},
        warnings=("warning-one", "warning-two"),
        reconstructions=(
            Reconstruction("kept.png", picture(301), picture(302), (0.83, 0.17), (0.86, 0.14)),
            Reconstruction("lost.png", picture(303), picture(304), (0.72, 0.28), (0.31, 0.69)),
        ),
        reconstruction_figures={"figure-label": "figure-value"},
        quality_tables=(Table("table-title", ("column-1", "column-2"), (("row-name", "row-value"),)),),
        pair_tables=(Table("pair-title", ("pair-column-1", "pair-column-2"), (("pair-row", "pair-cell"),)),),
        targets=(target_section(0, "class-young"), target_section(1, "class-old")),
        coordinates=54321,
        effect_on="log-odds",
        command="stylex report the-run --seed 1",
        provenance={"version-of": "9.8.7", "nested": {"hash": "sha256:abc"}, "list": ["one", "two"]},
    )
