"""Figure 9: the four most important coordinates by Wu et al., with plain StyleGAN2."""

from __future__ import annotations

from stylex.baselines import rank_wu
from stylex.reproduce.attribute_sheets import random_sheet
from stylex.reproduce.sheets import Item
from stylex.reproduce.workshop import STYLEGAN2, Workshop

EXPERIMENT = "study-ffhq-age"
"""In which the study draws it."""

COUNT = 4


def make(shop: Workshop) -> Item:
    """The ranking for the first class, inverted for images of that class, as the study has it.

    Raises:
        DataError: fewer than two sampled images show the first class with the probability asked for.
    """
    explainer = shop.explainer(STYLEGAN2)
    discovery, model = explainer.discovery, explainer.model
    changes = rank_wu(
        discovery.space.searchable(discovery.styles).cpu().numpy(),
        model.classifier.probabilities(discovery.logits).cpu().numpy(),
        0,
        shop.study.wu_threshold,
        count=COUNT,
    )
    title = f"Wu et al. with StyleGAN2, {shop.experiment.title}"
    return random_sheet(shop, "figure-9", title, explainer, changes)
