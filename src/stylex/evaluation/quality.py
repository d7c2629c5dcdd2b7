"""Quality of what the generator draws: how near reconstructions are, and how real reconstructed, swapped and
sampled images look as a set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.classifiers import Classifier
from stylex.errors import DataError
from stylex.evaluation.distributions import Realism, realism
from stylex.evaluation.extractors import Extractor
from stylex.evaluation.intervals import Interval, bootstrap_mean, wilson
from stylex.evaluation.measure import TestImages, judge_logits, same_class
from stylex.model import Model
from stylex.perceptual import Distance

_SEED_OFFSET = 2_000_003  # latents sampled here are neither those of discovery nor those of the flip curves


@dataclass(frozen=True)
class Fidelity:
    """How near reconstructions are to their images, image by image.

    Attributes:
        images: how many.
        l1: mean absolute difference of a pixel, images in [-1, 1].
        perceptual: mean distance by the network called `perceptual_network`.
        agreement: share of images whose class by the classifier that is explained survives.
        judge_agreement: the same by an independently trained classifier; None without one.
    """

    images: int
    l1: Interval
    perceptual_network: str
    perceptual: Interval
    agreement: Interval
    judge_agreement: Interval | None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "images": self.images,
            "l1": self.l1.to_json(),
            "perceptual_network": self.perceptual_network,
            "perceptual": self.perceptual.to_json(),
            "agreement": self.agreement.to_json(),
            "judge_agreement": None if self.judge_agreement is None else self.judge_agreement.to_json(),
        }


@dataclass(frozen=True)
class Quality:
    """Image quality of a model on test images.

    Attributes:
        fidelity: of reconstructions; None for a model without an encoder.
        realism: against the test images, by kind of generated image: "reconstructions"; "swapped", test
            images drawn with the condition of another one; "sampled", from the mapping network. Kinds that
            a model cannot make are missing.
    """

    fidelity: Fidelity | None
    realism: dict[str, Realism]

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "fidelity": None if self.fidelity is None else self.fidelity.to_json(),
            "realism": {kind: found.to_json() for kind, found in self.realism.items()},
        }


def measure_quality(
    model: Model,
    reals: Tensor,
    test: TestImages,
    *,
    extractor: Extractor,
    perceptual: tuple[str, Distance],
    judge: Classifier | None = None,
    seed: int = 0,
    on_progress: Callable[[str], None] | None = None,
) -> Quality:
    """Fidelity of the reconstructions and realism of every kind of image that the model makes.

    As many images are swapped and sampled as there are real ones, so that figures of the kinds compare.

    Args:
        reals: test images [N, 3, R, R] in [-1, 1].
        test: what `measure.prepare` made of the same images (of a model without an encoder: samples, of which
            nothing is used here).
        extractor: of the features for FID, KID, precision and recall; on the model's device.
        perceptual: name and network of the perceptual distance; on the model's device.
        judge: an independently trained classifier of the same classes.
        seed: of who is swapped with whom, of sampled latents, and of the subsets of KID.

    Raises:
        DataError: too few test images (four at least).
    """
    say = on_progress or (lambda stage: None)
    if len(reals) < 4:
        raise DataError(f"{len(reals)} test images are too few for figures of a distribution; give 4 or more")
    fidelity = None
    if model.encoder is not None:
        say("fidelity of reconstructions")
        fidelity = measure_fidelity(model, test, perceptual=perceptual, judge=judge)
    say(f"features of test images ({extractor.name})")
    real = extractor.extract(reals)
    found: dict[str, Realism] = {}
    for kind, images in _generated(model, reals, test, seed).items():
        say(f"realism of {kind}")
        found[kind] = realism(extractor.name, real, extractor.extract(images()), seed)
    return Quality(fidelity, found)


def measure_fidelity(
    model: Model, test: TestImages, *, perceptual: tuple[str, Distance], judge: Classifier | None = None
) -> Fidelity:
    """How near the reconstructions of test images are; intervals of means by the bootstrap over images."""
    name, distance = perceptual
    l1, apart = [], []
    with torch.inference_mode():
        for first in range(0, len(test.images), model.batch_size):
            part = slice(first, first + model.batch_size)
            images = test.images[part].to(model.hardware.device)
            others = test.reconstructions[part].to(model.hardware.device)
            l1.append((images - others).abs().mean(dim=(1, 2, 3)))
            apart.append(distance(others, images).float())
    kept = same_class(test.logits_original, test.logits, model.classifier.activation)
    judged = None
    if judge is not None:
        before, after = (judge_logits(judge, model, images) for images in (test.images, test.reconstructions))
        same = same_class(before, after, judge.activation)
        judged = wilson(int(same.sum()), len(same))
    return Fidelity(
        len(test.images),
        bootstrap_mean(_numbers(l1)),
        name,
        bootstrap_mean(_numbers(apart)),
        wilson(int(kept.sum()), len(kept)),
        judged,
    )


def swapped(model: Model, images: Tensor, seed: int) -> Tensor:
    """Images drawn from their own w with the condition of another image: [N, 3, R, R].

    The others are a random cyclic order of the images, so that none keeps its own condition; what is asked
    for is the class of the other image, with everything else kept.

    Raises:
        DataError: fewer than two images, or a model without condition or encoder.
    """
    width = model.generator.condition_features
    if len(images) < 2 or not width or model.encoder is None:
        raise DataError("swapping needs two images or more, an encoder and a condition")
    latents, _ = model.encode(images)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(images)))
    other = torch.empty_like(order)
    other[order] = order.roll(1)
    mixed = torch.cat([latents[:, :-width], latents[other.to(latents.device), -width:]], dim=1)
    return model.synthesise(model.styles(mixed))


def _generated(model: Model, reals: Tensor, test: TestImages, seed: int) -> dict[str, Callable[[], Tensor]]:
    """Kind → what draws the images of that kind, one kind at a time so that no two are held."""
    kinds: dict[str, Callable[[], Tensor]] = {}
    if model.encoder is not None:
        kinds["reconstructions"] = lambda: test.reconstructions
        if model.generator.condition_features:
            kinds["swapped"] = lambda: swapped(model, reals, seed)
    if model.mapping is not None:
        kinds["sampled"] = lambda: model.synthesise(
            model.styles(model.sample(len(reals), seed + _SEED_OFFSET))
        )
    return kinds


def _numbers(parts: list[Tensor]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = torch.cat(parts).double().cpu().numpy()
    return found
