"""Figure 6: the two most important attributes found with plain StyleGAN2, on sampled images."""

from __future__ import annotations

from stylex.reproduce.attribute_sheets import attribute_sheet
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import STYLEGAN2, Workshop

COUNT = 2


def make(shop: Workshop) -> Item:
    """AttFind's first two of the merged ranking, with recipe stylegan2."""
    explainer = shop.explainer(STYLEGAN2)
    title = f"AttFind with StyleGAN2, {shop.experiment.title}"
    changes = explainer.findings.merged[:COUNT]
    return attribute_sheet(shop, "figure-6", title, explainer, shop.test_images(explainer.model), changes)
