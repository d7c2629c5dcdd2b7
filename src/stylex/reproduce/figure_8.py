"""Figure 8: images that StyleGAN2 generates (FFHQ in the study)."""

from __future__ import annotations

from stylex.reproduce import figure_7
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import Workshop

EXPERIMENT = "study-ffhq-age"
"""In which the study draws it."""


def make(shop: Workshop) -> Item:
    """As figure 7."""
    return figure_7.make(shop, "figure-8")
