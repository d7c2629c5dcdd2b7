"""Figure 6: the two most important attributes found with plain StyleGAN2, on sampled images."""

from __future__ import annotations

from stylex.reproduce.attribute_sheets import attfind_sheet
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import STYLEGAN2, Workshop

COUNT = 2


def make(shop: Workshop) -> Item:
    """With recipe stylegan2."""
    return attfind_sheet(shop, "figure-6", "StyleGAN2", STYLEGAN2, COUNT)
