"""What figures 3 to 6 and 9 share: a sheet of a ranking's first attributes, on one image of each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import in_class
from stylex.attfind.selection import DirectedCoordinate, invert
from stylex.counterfactuals import to_picture
from stylex.errors import DataError
from stylex.explainer import Explainer
from stylex.reproduce.sheets import Cell, Item, draw_sheet
from stylex.reproduce.workshop import Workshop


@dataclass(frozen=True, eq=False)
class Candidates:
    """Images that a sheet may show: styles [N, T], logits [N, K] of what they draw, names."""

    styles: Tensor
    logits: npt.NDArray[np.float32]
    names: tuple[str, ...]


Pick = Callable[[npt.NDArray[np.intp], int, int, DirectedCoordinate], tuple[int, float]]
"""Rows of the candidates in a class, the class to leave it for, the attribute's rank and the change that
leads there → the row to show, and how far the change goes (1: the end of the range)."""


def attfind_sheet(shop: Workshop, item: str, method: str, recipe: str, count: int) -> Item:
    """AttFind's first `count` of the merged ranking, with a recipe, on test images drawn at random."""
    explainer = shop.explainer(recipe)
    title = f"AttFind with {method}, {shop.experiment.title}"
    return random_sheet(shop, item, title, explainer, explainer.findings.merged[:count])


def random_sheet(
    shop: Workshop, item: str, title: str, explainer: Explainer, towards_first: Sequence[DirectedCoordinate]
) -> Item:
    """A sheet of test images, drawn at random from those of a class as in the study, anew an attribute."""
    test = shop.test_images(explainer.model)
    random = np.random.default_rng(shop.seed)
    return attribute_sheet(
        shop,
        item,
        title,
        explainer,
        Candidates(test.styles, test.logits, test.names),
        towards_first,
        lambda members, target, rank, change: (int(random.choice(members)), 1.0),
    )


def attribute_sheet(
    shop: Workshop,
    item: str,
    title: str,
    explainer: Explainer,
    candidates: Candidates,
    towards_first: Sequence[DirectedCoordinate],
    pick: Pick,
) -> Item:
    """A row an attribute: an image of either class before and after it, with the other's probability.

    Args:
        towards_first: changes that lead to the first class; the second class's images get them, the first
            class's their inverse.

    Raises:
        DataError: not two classes, no attributes, or no image of a class.
    """
    model, names = explainer.model, explainer.class_names
    if len(names) != 2 or model.classifier.activation != "softmax":
        raise DataError(f"{item} shows two classes that exclude each other, not {', '.join(names)}")
    if not towards_first:
        raise DataError(f"{item}: there are no attributes to show")
    space = explainer.discovery.space
    rows: list[tuple[str, list[Cell]]] = []
    content: list[dict[str, Any]] = []
    for rank, change in enumerate(towards_first, 1):
        cells: list[Cell] = []
        shown = []
        for source in (0, 1):
            members = np.flatnonzero(in_class(candidates.logits, source, "softmax"))
            if not len(members):
                raise DataError(f"{item}: no image counts as '{names[source]}'")
            (moving,) = invert([change]) if source == 0 else [change]
            row, amount = pick(members, 1 - source, rank, moving)
            styles = candidates.styles[row : row + 1]
            drawn = model.synthesise(torch.cat([styles, space.shift(styles, [moving], amount)]))
            probability = model.classifier.probabilities(model.classify(drawn))[:, 1 - source].tolist()
            for picture, p in zip(drawn, probability, strict=True):
                cells.append(Cell(to_picture(picture), f"{names[1 - source]} {p:.2f}"))
            shown.append(
                {
                    "image": candidates.names[row],
                    "class": names[source],
                    "amount": amount,
                    "before": probability[0],
                    "after": probability[1],
                }
            )
        rows.append((f"{rank}", cells))
        content.append({"rank": rank, **space.describe(change), "shown": shown})
    file = shop.home / f"{item}.png"
    draw_sheet(file, title, rows)
    text = (
        f"## {item.replace('-', ' ').capitalize()}: {shop.experiment.title}\n\n![attributes]({file.name})\n\n"
        f"{title}. Pairs: before and after; above each the probability of the other class."
    )
    return Item(item, shop.experiment.name, text, {"attributes": content}, [file])
