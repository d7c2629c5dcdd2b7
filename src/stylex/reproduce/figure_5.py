"""Figure 5: the four most important attributes found with StylEx FFHQ."""

from __future__ import annotations

from stylex.reproduce.attribute_sheets import attribute_sheet
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import Workshop

EXPERIMENT = "study-ffhq-age"
"""In which the study draws it."""

COUNT = 4


def make(shop: Workshop) -> Item:
    """AttFind's first four of the merged ranking, with the experiment's recipe."""
    explainer = shop.explainer(shop.stylex_recipe)
    title = f"AttFind with StylEx (recipe {shop.stylex_recipe}), {shop.experiment.title}"
    changes = explainer.findings.merged[:COUNT]
    return attribute_sheet(shop, "figure-5", title, explainer, shop.test_images(explainer.model), changes)
