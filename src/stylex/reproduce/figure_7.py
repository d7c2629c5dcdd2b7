"""Figure 7: images that StyleGAN2 generates (AFHQ in the study)."""

from __future__ import annotations

from stylex.counterfactuals import to_picture
from stylex.model import load_model
from stylex.reproduce.sheets import Cell, Item, draw_sheet
from stylex.reproduce.workshop import STYLEGAN2, Workshop

EXPERIMENT = "study-afhq"
"""In which the study draws it."""

ROWS, COLUMNS = 3, 8


def make(shop: Workshop, item: str = "figure-7") -> Item:
    """Samples of recipe stylegan2, none chosen, with the class that the classifier gives each."""
    run = shop.run(STYLEGAN2)
    model = load_model(run, shop.hardware)
    images = model.synthesise(model.styles(model.sample(ROWS * COLUMNS, shop.seed)))
    classes = [model.class_names[index] for index in model.classify(images).argmax(dim=1).tolist()]
    cells = [Cell(to_picture(image), name) for image, name in zip(images, classes, strict=True)]
    file = shop.home / f"{item}.png"
    rows = [("", cells[first : first + COLUMNS]) for first in range(0, len(cells), COLUMNS)]
    draw_sheet(file, f"StyleGAN2 samples, {shop.experiment.title}", rows)
    counts = {name: classes.count(name) for name in model.class_names}
    text = (
        f"## {item.replace('-', ' ').capitalize()}: {shop.experiment.title}\n\n![samples]({file.name})\n\n"
        f"{len(cells)} samples by seed {shop.seed}, none chosen."
    )
    return Item(item, shop.experiment.name, text, {"classes": counts, "seed": shop.seed}, [file])
