"""Figure 5: the four most important attributes found with StylEx FFHQ."""

from __future__ import annotations

from stylex.reproduce.attribute_sheets import attfind_sheet
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import Workshop

EXPERIMENT = "study-ffhq-age"
"""In which the study draws it."""

COUNT = 4


def make(shop: Workshop) -> Item:
    """With the experiment's recipe."""
    recipe = shop.stylex_recipe
    return attfind_sheet(shop, "figure-5", f"StylEx (recipe {recipe})", recipe, COUNT)
