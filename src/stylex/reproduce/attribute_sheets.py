"""What figures 4, 5, 6 and 9 share: a sheet of a ranking's first attributes, on one image of each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from stylex.attfind.attributes import in_class
from stylex.attfind.selection import DirectedCoordinate, invert
from stylex.counterfactuals import to_picture
from stylex.errors import DataError
from stylex.evaluation.measure import TestImages
from stylex.explainer import Explainer
from stylex.reproduce.sheets import Cell, Item, draw_sheet
from stylex.reproduce.workshop import Workshop


def attribute_sheet(
    shop: Workshop,
    item: str,
    title: str,
    explainer: Explainer,
    test: TestImages,
    towards_first: Sequence[DirectedCoordinate],
) -> Item:
    """A row an attribute: an image of either class before and after it, with the other's probability.

    As in the study images are drawn at random from those of a class; here a seed draws them, anew for each
    attribute.

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
    space, random = explainer.discovery.space, np.random.default_rng(shop.seed)
    rows: list[tuple[str, list[Cell]]] = []
    content: list[dict[str, Any]] = []
    for rank, change in enumerate(towards_first, 1):
        cells: list[Cell] = []
        shown = []
        for source in (0, 1):
            members = np.flatnonzero(in_class(test.logits, source, "softmax"))
            if not len(members):
                raise DataError(f"{item}: no test image counts as '{names[source]}'")
            row = int(random.choice(members))
            moved = space.shift(test.styles[row : row + 1], invert([change]) if source == 0 else [change])
            drawn = torch.cat([test.reconstructions[row : row + 1].to(moved.device), model.synthesise(moved)])
            probability = model.classifier.probabilities(model.classify(drawn))[:, 1 - source].tolist()
            for picture, p in zip(drawn, probability, strict=True):
                cells.append(Cell(to_picture(picture), f"{names[1 - source]} {p:.2f}"))
            shown.append(
                {
                    "image": test.names[row],
                    "class": names[source],
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
