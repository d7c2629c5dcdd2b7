"""Figure 2: images and their reconstructions, chosen at random, with figures that no picture gives."""

from __future__ import annotations

import numpy as np

from stylex.config import load_recipe
from stylex.counterfactuals import to_picture
from stylex.errors import ConfigError
from stylex.evaluation.intervals import bootstrap_mean, wilson
from stylex.evaluation.measure import same_class
from stylex.model import load_model
from stylex.reproduce.sheets import Cell, Item, draw_sheet
from stylex.reproduce.workshop import Workshop

COLUMNS = 8


def check(shop: Workshop) -> None:
    """Raise ConfigError, before any training, for a recipe that reconstructs nothing."""
    recipe = shop.stylex_recipe
    if not load_recipe(recipe, shop.assignments).encodes:
        raise ConfigError(f"figure-2 shows reconstructions; recipe '{recipe}' has none")


def make(shop: Workshop) -> Item:
    """Test images above, reconstructions below; which ones a seed decides, so that nobody picks."""
    model = load_model(shop.run(shop.stylex_recipe), shop.hardware)
    test, names = shop.test_images(model), model.class_names
    random = np.random.default_rng(shop.seed)
    rows = random.permutation(len(test.names))[:COLUMNS].tolist()
    kept = same_class(test.logits_original, test.logits, model.classifier.activation)
    above = [
        Cell(to_picture(test.images[row]), names[int(test.logits_original[row].argmax())]) for row in rows
    ]
    below = [
        Cell(to_picture(test.reconstructions[row]), names[int(test.logits[row].argmax())]) for row in rows
    ]
    file = shop.home / "figure-2.png"
    draw_sheet(
        file, f"Reconstructions, {shop.experiment.title}", [("image", above), ("reconstruction", below)]
    )
    apart = (test.images.to(test.reconstructions.device) - test.reconstructions).abs().mean(dim=(1, 2, 3))
    agreement = wilson(int(kept.sum()), len(kept))
    content = {
        "images": [test.names[row] for row in rows],
        "agreement": agreement.to_json(),
        "l1": bootstrap_mean(apart.double().cpu().numpy(), resamples=999).to_json()
        if len(apart) > 1
        else None,
    }
    text = (
        f"## Figure 2: {shop.experiment.title}\n\n![reconstructions]({file.name})\n\n"
        f"{agreement.estimate:.1%} of {agreement.n} test images keep their class ({agreement.low:.1%} to "
        f"{agreement.high:.1%}); the {len(rows)} shown were drawn by seed {shop.seed}."
    )
    return Item("figure-2", shop.experiment.name, text, content, [file])
