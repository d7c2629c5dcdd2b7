"""Tiny models whose explanation is known: a linear one solved by hand, and random StyleGAN2s of 16 px."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

import training_problems
from stylex.classifiers import Classifier
from stylex.config import AttFindSettings, NetworkSettings, Recipe, RunConfig, TrainingSettings
from stylex.evaluation.extractors import Extractor
from stylex.model import Model
from stylex.networks import StyleLayer, SynthesisState, build
from stylex.run import Run, write_tensors
from stylex.stylespace import StyleSpace
from stylex.training.checkpoint import model_header
from stylex.training.schedule import total_images

LAYOUT = (
    StyleLayer("4px.conv1", "conv", 4, 0, 3, 0),
    StyleLayer("4px.rgb", "rgb", 4, 3, 2, 1),
    StyleLayer("8px.conv0", "conv", 8, 5, 3, 1),
)
"""Searchable coordinates 0 to 5 are styles 0, 1, 2, 5, 6, 7."""

SCALE = 0.1
"""Of a pixel to its style; small, so that pixels stay within [-1, 1]."""

WEIGHTS = (0.5, 0.0, -2.0, 9.0, 9.0, 3.0, 0.0, 1.0)
"""The linear classifier's weight of each style: coordinate 3 (style 5) counts most of the searchable."""


class LinearSynthesis(nn.Module):
    """Style t is pixel t of an image [3, 4, 4], times SCALE; every other pixel is 0."""

    layout = LAYOUT

    def forward(self, styles: Tensor, noise: str = "none") -> Tensor:
        return self.finish(SynthesisState(0, styles.new_zeros(len(styles), 3, 4, 4), None), styles, noise)

    def states(self, styles: Tensor, noise: str = "none") -> Iterator[SynthesisState]:
        state = SynthesisState(0, styles.new_zeros(len(styles), 3, 4, 4), None)
        yield state
        for _ in self.layout:
            state = self._step(state, styles)
            yield state

    def finish(self, state: SynthesisState, styles: Tensor, noise: str = "none") -> Tensor:
        while state.layer < len(self.layout):
            state = self._step(state, styles)
        assert state.image is not None
        return state.image

    def _step(self, state: SynthesisState, styles: Tensor) -> SynthesisState:
        place = self.layout[state.layer]
        pixels = state.features.flatten(1).clone()
        pixels[:, place.slice] = SCALE * styles[:, place.slice]
        image = pixels.reshape(-1, 3, 4, 4)
        return SynthesisState(state.layer + 1, image, image)


class LinearGenerator(nn.Module):
    """The latent is the style vector."""

    def __init__(self) -> None:
        super().__init__()
        self.synthesis = LinearSynthesis()
        self.register_buffer("nothing", torch.zeros(1))
        self.condition_features = 0

    def styles(self, latents: Tensor) -> Tensor:
        return latents


class LinearEncoder(nn.Module):
    """The exact inverse of the generator."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : len(WEIGHTS)] / SCALE


class LinearNetwork(nn.Module):
    """Logits [N, K] = styles of the image times a matrix [8, K], plus a bias."""

    def __init__(self, matrix: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, : len(self.matrix)] / SCALE @ self.matrix + self.bias


def linear_classifier(
    matrix: Sequence[Sequence[float]],
    bias: Sequence[float],
    names: Sequence[str],
    activation: Any = "softmax",
) -> Classifier:
    network = LinearNetwork(torch.tensor(matrix), torch.tensor(bias))
    return Classifier(network, class_names=names, input_size=None, activation=activation).freeze()


class PooledPixels(Extractor):
    """Features [N, 12]: the mean colour of each quarter of an image."""

    name = "pooled pixels"
    num_features = 12

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def two_classes(bias: float = 0.0) -> Classifier:
    """Log-odds of "yes" = WEIGHTS · styles + bias."""
    return linear_classifier([[-w / 2, w / 2] for w in WEIGHTS], [-bias / 2, bias / 2], ("no", "yes"))


def linear_model(classifier: Classifier | None = None, batch_size: int = 4) -> Model:
    recipe = Recipe(
        name="linear",
        network=NetworkSettings(condition="none", discriminator="plain"),
        training=TrainingSettings(noise="none", schedule=("encode",)),
    )
    parts: Any = (LinearGenerator(), LinearEncoder(), None, None)
    return Model(*parts, classifier or two_classes(), recipe, training_problems.HARDWARE, 1, batch_size)


def wide_model(weights: Sequence[float], batch_size: int = 64) -> Model:
    """As `linear_model` with up to 48 styles, all searchable; log-odds of "yes" = weights · styles."""
    count = len(weights)

    class Synthesis(LinearSynthesis):
        layout = (StyleLayer("4px.conv1", "conv", 4, 0, count, 0),)

    class Encoder(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :count] / SCALE

    model = linear_model(
        linear_classifier([[-w / 2, w / 2] for w in weights], [0, 0], ("no", "yes")), batch_size
    )
    model.generator.synthesis = Synthesis()
    return replace(model, encoder=Encoder())


def unit_space(low: float = -1.0, high: float = 1.0) -> StyleSpace:
    """Every coordinate of the linear generator from `low` to `high`."""
    return StyleSpace(LAYOUT, torch.full((6,), low), torch.full((6,), high))


def linear_styles(rows: Sequence[Sequence[float]]) -> Tensor:
    """Styles [N, 8] from values of the six searchable coordinates; toRGB styles are 0."""
    found = torch.zeros(len(rows), 8)
    found[:, [0, 1, 2, 5, 6, 7]] = torch.tensor(rows, dtype=torch.float32)
    return found


def everything(**changes: Any) -> AttFindSettings:
    """Search settings without the filter of unstable images, which tiny models all are."""
    return AttFindSettings(**{"unstable_threshold": None, "images_per_class": 3, "count": 6} | changes)


def tiny_model(name: str = "fast", assignments: Sequence[str] = ()) -> Model:
    """A StyleGAN2 of 16 px with random weights and its classifier, balanced on what the generator makes."""
    recipe = training_problems.recipe(name, assignments)
    classifier = training_problems.classifier()
    parts = build(recipe, training_problems.RESOLUTION, 2, seed=1)
    for part in parts.parts().values():
        part.eval().requires_grad_(False)
    for place in parts.generator.synthesis.layers:
        if hasattr(place, "noise_strength"):
            place.noise_strength.fill_(0.1)
    training_problems.some_evidence(parts.encoder)
    model = Model(
        parts.generator,
        parts.encoder,
        parts.mapping,
        parts.discriminator,
        classifier,
        recipe,
        training_problems.HARDWARE,
        1,
    )
    with torch.no_grad():
        for _ in range(3):  # the condition hangs on the classifier, which is being changed
            latents = _latents(model)
            logits = model.classify(model.synthesise(model.styles(latents)))
            margin = logits[:, 1] - logits[:, 0]
            classifier.network.head.bias[1] -= margin.median() - 1e-3
            classifier.network.head.weight.mul_(2 / margin.std())
            classifier.network.head.bias.mul_(2 / margin.std())
    return model


def _latents(model: Model) -> Tensor:
    if model.encoder is None:
        return model.sample(24, 0)
    return model.encode(training_problems.images(24).batch(range(24)))[0]


def save_tiny_run(path: Path, model: Model, data: str = "none", config: RunConfig | None = None) -> Run:
    """A run directory that holds a model as training leaves it; with a config, at the end of its training."""
    images = 16 if config is None else total_images(config.recipe)
    settings = everything(count=4)
    config = config or RunConfig(
        experiment="tiny",
        data=data,
        classifier="none",
        resolution=training_problems.RESOLUTION,
        recipe=model.recipe,
        attfind=settings,
    )
    run = Run.create(path, config)
    parts = {
        "generator": model.generator,
        "encoder": model.encoder,
        "mapping": model.mapping,
        "discriminator": model.discriminator,
    }
    tensors = {
        f"{name}/{key}": value
        for name, part in parts.items()
        if part is not None
        for key, value in part.state_dict().items()
    }
    write_tensors(run.model_file, tensors, model_header(config, 1, images, model.class_names))
    explained = model.classifier
    explained.options = {"widths": [4, 4, 8, 8]}
    explained.save(run.classifier_file)
    return run


def save_images(folder: Path, count: int = 8) -> Path:
    """A folder of PNGs with the three sets as sub-folders, `count` pictures each."""
    for number, split in enumerate(("training", "discovery", "test")):
        (folder / split).mkdir(parents=True)
        for name, picture in enumerate(training_problems.images(count, seed=number).images):
            Image.fromarray(picture).save(folder / split / f"{name:03d}.png")
    return folder
