"""A trained model with its classifier, ready to explain: images → latents → styles → images → logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from stylex import classifiers
from stylex.classifiers import Classifier
from stylex.conditions import told
from stylex.config import Recipe, RunConfig, validate
from stylex.errors import CheckpointError, RunError
from stylex.hardware import Hardware, place
from stylex.networks import (
    Discriminator,
    Encoder,
    Generator,
    Mapping,
    ProjectedDiscriminator,
    build,
    conditional_score,
)
from stylex.networks.generator import Noise
from stylex.run import Run, read_tensors


@dataclass(frozen=True, eq=False)
class Model:
    """Networks with averaged weights, frozen and placed; every method runs in batches without gradients.

    The discriminator must not let an image's score hang on its neighbours in a batch: its minibatch standard
    deviation is set to groups of one.
    """

    generator: Generator
    encoder: Encoder | None
    mapping: Mapping | None
    discriminator: Discriminator | ProjectedDiscriminator | None
    classifier: Classifier
    recipe: Recipe
    hardware: Hardware
    step: int
    batch_size: int = 64

    def __post_init__(self) -> None:
        if self.discriminator is not None:
            self.discriminator.deviation_group = min(1, self.discriminator.deviation_group)

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.classifier.class_names

    @property
    def noise(self) -> Noise:
        """How synthesis treats its noise inputs: the stored maps where training drew noise, else none."""
        return "none" if self.recipe.training.noise == "none" else "fixed"

    def condition(self, images: Tensor, logits: Tensor) -> Tensor | None:
        """What the generator is told of the images' classes: [N, K] or None."""
        return told(self.recipe.network.condition, self.classifier, logits, images, self.encoder)

    @torch.inference_mode()
    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, 3, R, R] in [-1, 1] → latents w ⊕ condition [N, W] and the images' logits [N, K].

        Raises:
            RunError: the model has no encoder (recipe stylegan2); sample latents in its place.
        """
        if self.encoder is None:
            raise RunError(f"recipe '{self.recipe.name}' has no encoder; its images are sampled, not encoded")
        latents, logits = [], []
        for part in self._parts(images):
            found = self.classifier(part)
            condition = self.condition(part, found)
            w = self.encoder(part)
            latents.append(w if condition is None else torch.cat([w, condition], dim=1))
            logits.append(found)
        return torch.cat(latents), torch.cat(logits)

    @torch.inference_mode()
    def sample(self, count: int, seed: int, truncation: float = 1.0) -> Tensor:
        """Latents [count, W] from z ~ N(0, 1); conditions, where there are any, uniform over the classes.

        Raises:
            RunError: the model has no mapping network.
        """
        if self.mapping is None:
            raise RunError(f"recipe '{self.recipe.name}' has no mapping network; latents cannot be sampled")
        random = torch.Generator().manual_seed(seed)
        z = torch.randn(count, self.mapping.z_features, generator=random).to(self.hardware.device)
        w: Tensor = self.mapping(z, truncation)
        classes = self.generator.condition_features
        if not classes:
            return w
        labels = torch.randint(classes, (count,), generator=random)
        return torch.cat([w, nn.functional.one_hot(labels, classes).to(w)], dim=1)

    @torch.inference_mode()
    def styles(self, latents: Tensor) -> Tensor:
        """Latents [N, W] → styles [N, T]."""
        return self.generator.styles(latents.to(self.hardware.device))

    @torch.inference_mode()
    def synthesise(self, styles: Tensor) -> Tensor:
        """Styles [N, T] → images [N, 3, R, R], float32, in [-1, 1]."""
        images = [self.generator.synthesis(part, self.noise) for part in self._parts(styles)]
        return torch.cat(images).clamp(-1, 1)

    @torch.inference_mode()
    def classify(self, images: Tensor) -> Tensor:
        """Images → logits [N, K]."""
        return torch.cat([self.classifier(part) for part in self._parts(images)])

    @torch.inference_mode()
    def scores(self, images: Tensor, logits: Tensor) -> Tensor:
        """The discriminator's score of images [N, 3, R, R], conditioned as in training: [N].

        On what the logits [N, K] say; with evidence, on what is found in the images themselves.

        Raises:
            RunError: the model came without a discriminator.
        """
        if self.discriminator is None:
            raise RunError("this model has no discriminator")
        plain = self.recipe.network.discriminator == "plain"
        found = []
        for part, part_logits in zip(self._parts(images), self._parts(logits), strict=True):
            condition = None if plain else self.condition(part, part_logits)
            found.append(conditional_score(self.discriminator(part), condition))
        return torch.cat(found)

    def _parts(self, tensor: Tensor) -> Iterator[Tensor]:
        """Batches on the device; one empty batch of an empty tensor, so that results have the right shape."""
        for first in range(0, max(1, len(tensor)), self.batch_size):
            yield tensor[first : first + self.batch_size].to(self.hardware.device)


def load_model(run: Run, hardware: Hardware) -> Model:
    """The trained model of a run.

    Raises:
        RunError: the run has no trained model yet.
        CheckpointError: the file is damaged or does not fit the run's recipe.
        ClassifierError: the classifier cannot be loaded.
    """
    if not run.model_file.exists():
        raise RunError(f"{run.path}: no trained model yet; 'stylex train' writes it")
    source: str | Path = run.classifier_file if run.classifier_file.exists() else run.config.classifier
    student = classifiers.load(run.student_file) if run.student_file.exists() else None
    return read_model(run.model_file, classifiers.load(source), hardware, trained_around=student)


def read_model(
    file: Path, classifier: Classifier, hardware: Hardware, *, trained_around: Classifier | None = None
) -> Model:
    """The model in a file that training or `stylex convert` wrote; errors as for `load_model`.

    `trained_around` is the student that stood in for a classifier without gradients. A file without a
    discriminator gives a model without one.
    """
    tensors, header = read_tensors(file)
    if not {"config", "class_names"} <= set(header):
        raise CheckpointError(f"{file}: no model; 'stylex train' writes one")
    config = validate(RunConfig, header["config"], str(file))
    if tuple(header["class_names"]) != classifier.class_names:
        raise CheckpointError(
            f"{file}: trained for the classes {', '.join(header['class_names'])}, "
            f"the classifier has {', '.join(classifier.class_names)}"
        )
    if header.get("classifier") not in (None, (trained_around or classifier).fingerprint):
        raise CheckpointError(f"{file}: trained around another classifier of the same classes; give that one")
    networks = build(config.recipe, config.resolution, classifier.classes)
    for name, part in networks.parts().items():
        prefix = f"{name}/"
        found = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if name == "discriminator" and not found:
            continue
        try:
            part.load_state_dict(found)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{file}: {name} does not fit the recipe ({reason[:200]})") from None
        part.eval().requires_grad_(False)
        place(part, hardware)
    place(classifier.freeze(), hardware)
    return Model(
        networks.generator,
        networks.encoder,
        networks.mapping,
        networks.discriminator if any(key.startswith("discriminator/") for key in tensors) else None,
        classifier,
        config.recipe,
        hardware,
        int(header["step"]),
    )
