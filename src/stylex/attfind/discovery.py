"""The images that a search stands on: encoded, or sampled, until there are enough of every class."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.attfind.attributes import in_class, sought
from stylex.config import AttFindSettings
from stylex.data import ImageSet
from stylex.errors import DataError
from stylex.model import Model
from stylex.stylespace import StyleSpace

logger = logging.getLogger("stylex")

POOL_FACTOR = 4
"""Images encoded at once for each that is wanted."""

SAMPLED_POOL = 4000
"""Latents sampled for a model without an encoder, from which the images of each class are taken."""


@dataclass(frozen=True, eq=False)
class Discovery:
    """The images that a search stands on, as the generator sees them.

    latents [N, W], styles [N, T], logits [N, K] of the reconstructions, and the names of the images.
    """

    latents: Tensor
    styles: Tensor
    logits: Tensor
    names: tuple[str, ...]
    space: StyleSpace


@dataclass(frozen=True, eq=False)
class Latents:
    """Latents [N, W] to search on in place of images, with their names."""

    latents: Tensor
    names: tuple[str, ...]


SearchSource = ImageSet | Latents | None
"""What a search stands on: images, latents, or what a model without an encoder samples."""


def discover(model: Model, images: SearchSource, settings: AttFindSettings, seed: int = 0) -> Discovery:
    """Encode discovery images (or sample latents) until there are `images_per_class` of every class.

    Images are encoded in a random order, the same for a seed, in parts of POOL_FACTOR times the number that
    is wanted; the next part only while a class lacks images. No more than a batch of the model's is held as
    pixels. Latents are taken in the order given. Fewer of a class are taken where there are no more. The
    class is the argmax of the classifier on the reconstruction (notebook). Ranges are taken over exactly
    these images.

    Of a class that no image counts as nothing is searched; that is said.

    Raises:
        DataError: no class has images that count as it and others that do not, so nothing can be explained.
    """
    missing = np.full(len(model.class_names), settings.images_per_class)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    names: list[str] = []
    seen = 0
    for latents, called in _pools(model, images, settings, seed):
        styles = model.styles(latents)
        logits = torch.cat(
            [model.classify(model.synthesise(few)).cpu() for few in torch.split(styles, model.batch_size)]
        )
        seen += len(called)
        chosen: set[int] = set()
        for target in range(len(missing)):
            members = np.flatnonzero(in_class(logits.numpy(), target, model.classifier.activation))
            taken = members[: missing[target]].tolist()
            missing[target] -= len(taken)
            chosen.update(taken)
        order = sorted(chosen)
        kept.append((latents[order], styles[order], logits[order]))
        names += [called[number] for number in order]
        if not missing.any():
            break
    latents, styles, logits = (torch.cat(parts) for parts in zip(*kept, strict=True))
    _check_classes(model, logits.numpy(), seen)
    space = StyleSpace.from_styles(model.generator.synthesis.layout, styles, settings.range_quantile)
    return Discovery(latents, styles, logits, tuple(names), space)


def _check_classes(model: Model, logits: npt.NDArray[np.float32], seen: int) -> None:
    """Say which classes no image counts as; an error where that leaves nothing to explain."""
    activation = model.classifier.activation
    empty = [
        f"'{name}'"
        for target, name in enumerate(model.class_names)
        if not in_class(logits, target, activation).any()
    ]
    if not empty:
        return
    more = f" and {len(empty) - 5} more classes" if len(empty) > 5 else ""
    said = f"none of {seen} reconstructed discovery images counts as {', '.join(empty[:5])}{more}"
    if not sought(logits, activation):
        raise DataError(f"{said}; the classifier or the reconstruction ignores that class")
    logger.warning("%s; nothing is searched for what leads there", said)


def sample_latents(model: Model, seed: int) -> Latents:
    """SAMPLED_POOL latents of the model's mapping network.

    Raises:
        RunError: it has none.
    """
    latents = model.sample(SAMPLED_POOL, seed)
    return Latents(latents, tuple(f"sample {number}" for number in range(len(latents))))


def _pools(
    model: Model, images: SearchSource, settings: AttFindSettings, seed: int
) -> Iterator[tuple[Tensor, list[str]]]:
    """Latents [n, W] with their names, part after part; see `discover`."""
    size = POOL_FACTOR * settings.images_per_class * len(model.class_names)
    if model.encoder is None and not isinstance(images, Latents):
        images = sample_latents(model, seed)
    if isinstance(images, Latents):
        for first in range(0, len(images.names), size):
            yield images.latents[first : first + size], list(images.names[first : first + size])
        return
    if images is None or not len(images):
        raise DataError("there are no discovery images to search on")
    order = np.random.default_rng(seed).permutation(len(images))  # sources are often sorted by class
    for first in range(0, len(order), size):
        part = order[first : first + size]
        few = [part[begin : begin + model.batch_size] for begin in range(0, len(part), model.batch_size)]
        latents = torch.cat([model.encode(images.batch(numbers))[0] for numbers in few])
        yield latents, [images.names[number] for number in part]
