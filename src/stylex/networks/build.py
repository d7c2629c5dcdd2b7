"""Networks from settings: the one place that knows which widths a recipe means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from stylex.config import Recipe
from stylex.errors import ConfigError
from stylex.networks.evidence import Evidence
from stylex.networks.generator import Generator
from stylex.networks.mapping import Mapping
from stylex.networks.projected import ProjectedDiscriminator
from stylex.networks.residual import Discriminator, Encoder

MOST_CLASSES = 16
"""With evidence as condition: what finding components takes grows with the third power of the classes."""


@dataclass
class Networks:
    """The trainable parts of a model; encoder or mapping is None where the recipe has none."""

    generator: Generator
    discriminator: Discriminator | ProjectedDiscriminator
    encoder: Encoder | None
    mapping: Mapping | None

    def parts(self) -> dict[str, nn.Module]:
        """The parts that exist, by name."""
        parts = {
            "generator": self.generator,
            "encoder": self.encoder,
            "mapping": self.mapping,
            "discriminator": self.discriminator,
        }
        return {name: part for name, part in parts.items() if part is not None}


def build(recipe: Recipe, resolution: int, classes: int, seed: int = 0) -> Networks:
    """Networks with fresh weights for images of `resolution` and a classifier of `classes` classes.

    Weights depend on the seed alone; the global random state is left as it was.

    Raises:
        ConfigError: evidence as condition, and more classes than it is made for; or the network that a
            projected discriminator looks through is not installed.
    """
    settings = recipe.network
    if settings.condition == "evidence" and classes > MOST_CLASSES:
        raise ConfigError(
            f"network.condition: evidence is made for {MOST_CLASSES} classes at most, these are {classes}; "
            "train with --set network.condition=probabilities --set loss.evidence=0"
        )
    components = settings.evidence_components or 4 * classes
    condition = {"none": 0, "evidence": components}.get(settings.condition, classes)
    outputs = {"plain": 1, "classes": condition, "real+classes": condition + 1}[settings.discriminator]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        generator = Generator(settings.latent_features, condition, resolution, settings.channels(resolution))
        encoder = mapping = None
        if recipe.encodes:
            widths = settings.encoder_channels(resolution)
            encoder = Encoder(
                resolution,
                widths,
                settings.latent_features,
                hidden=settings.encoder_hidden,
                components=min(settings.encoder_components, settings.latent_features),
                evidence=Evidence(resolution, classes, condition)
                if settings.condition == "evidence"
                else None,
            )
        if recipe.samples:
            mapping = Mapping(settings.z_features, settings.latent_features, layers=settings.mapping_layers)
        discriminator: Discriminator | ProjectedDiscriminator
        if settings.discriminator_network == "projected":
            discriminator = _projected(resolution, outputs)
        else:
            discriminator = Discriminator(
                resolution,
                settings.discriminator_channels(resolution),
                outputs,
                deviation_group=settings.deviation_group,
            )
    return Networks(generator, discriminator, encoder, mapping)


def _projected(resolution: int, outputs: int) -> ProjectedDiscriminator:
    from stylex.perceptual import load_efficientnet

    with torch.device("cpu"):  # its weights are real ones, also where the others are only counted
        backbone = load_efficientnet()
    return ProjectedDiscriminator(backbone, backbone.CHANNELS[1:], resolution, outputs)
