"""What a classifier was understood to be, and what it answers on a few images: seen before training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stylex.classifiers.classifier import Classifier
from stylex.errors import ClassifierError

if TYPE_CHECKING:
    from stylex.data.images import ImageSet

IMAGES = 64
"""Images that are looked at."""

VARIANTS: dict[str, dict[str, Any]] = {
    "ImageNet's mean and std": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "values from -1 to 1 (range=-1:1)": {"mean": (0.5,), "std": (0.5,)},
    "values from 0 to 1 (range=0:1)": {"mean": (0.0,), "std": (1.0,)},
    "values from 0 to 255 (range=0:255)": {"mean": (0.0,), "std": (1 / 255,)},
    "the channels in the other order (order=)": {},
}
"""Other ways to feed a network, tried where labels tell which is right."""

BETTER = 0.1
"""How much more accurate another way must be to be spoken of."""


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a classifier is, and what it does on `names`: probabilities [N, K], labels or None.

    `accuracy` is on images whose label is one of the classes; `alternatives` other ways to feed the network
    that are plainly more accurate, with their accuracy.
    """

    settings: dict[str, Any]
    names: tuple[str, ...]
    pictures: npt.NDArray[np.uint8]
    probabilities: npt.NDArray[np.float32]
    labels: tuple[str, ...] | None
    accuracy: float | None
    alternatives: dict[str, float]
    images_per_second: float
    warnings: tuple[str, ...]

    def answer(self, number: int) -> tuple[str, float]:
        """The class of image `number` and its probability."""
        row = self.probabilities[number]
        best = int(row.argmax())
        return self.settings["class_names"][best], float(row[best])

    def to_json(self) -> dict[str, Any]:
        return {
            "classifier": self.settings,
            "images": [
                {
                    "name": name,
                    "label": None if self.labels is None else self.labels[number],
                    "answer": self.answer(number)[0],
                    "probabilities": [float(value) for value in self.probabilities[number]],
                }
                for number, name in enumerate(self.names)
            ],
            "accuracy": self.accuracy,
            "alternatives": self.alternatives,
            "images_per_second": self.images_per_second,
            "warnings": list(self.warnings),
        }


def describe(classifier: Classifier) -> dict[str, Any]:
    """What a classifier was understood to be, as plain values."""
    black = [(0.0 - mean) / std for mean, std in zip(classifier.mean, classifier.std, strict=True)]
    white = [(1.0 - mean) / std for mean, std in zip(classifier.mean, classifier.std, strict=True)]
    return {
        "architecture": classifier.architecture,
        "class_names": list(classifier.class_names),
        "input_size": classifier.input_size,
        "channels": classifier.channels,
        "order": classifier.order if classifier.channels == 3 else None,
        "mean": [round(value, 6) for value in classifier.mean],
        "std": [round(value, 6) for value in classifier.std],
        "black": [round(value, 4) for value in black],
        "white": [round(value, 4) for value in white],
        "activation": classifier.activation,
        "single_logit": classifier.single_logit,
        "gradients": classifier.differentiable,
        "features": classifier.exposes_features,
        "travels_with_a_run": classifier.can_be_saved,
    }


def inspect(classifier: Classifier, images: ImageSet) -> Inspection:
    """Look at a classifier's answers on images, and try other ways to feed it where there are labels.

    Raises:
        ClassifierError: there are no images; the classifier fails on them, gives NaN, or is constant.
    """
    if not len(images):
        raise ClassifierError("there are no images to look at the classifier with")
    chosen = images.select(
        np.unique(np.linspace(0, len(images) - 1, min(IMAGES, len(images))).astype(np.int64))
    )
    batch = chosen.batch(slice(None)).to(classifier.scale.device)
    begin = time.perf_counter()
    logits = classifier.check(batch)  # the first time: an endpoint remembers its answers
    seconds = max(time.perf_counter() - begin, 1e-9)
    probabilities = classifier.probabilities(logits).float().cpu()
    labels = None
    if chosen.labels is not None and chosen.class_names is not None:
        labels = tuple(chosen.class_names[index] for index in chosen.labels)
    accuracy = _accuracy(classifier, probabilities, labels)
    tries = accuracy is not None and classifier.differentiable  # an endpoint takes images, not numbers
    alternatives = {} if accuracy is None or not tries else _alternatives(classifier, batch, labels, accuracy)
    return Inspection(
        settings=describe(classifier),
        names=chosen.names,
        pictures=np.asarray(chosen.images),
        probabilities=probabilities.numpy(),
        labels=labels,
        accuracy=accuracy,
        alternatives=alternatives,
        images_per_second=len(chosen) / seconds,
        warnings=tuple(_warnings(classifier, batch, probabilities, labels, accuracy, alternatives)),
    )


def _accuracy(classifier: Classifier, probabilities: Tensor, labels: Sequence[str] | None) -> float | None:
    known = [number for number, label in enumerate(labels or ()) if label in classifier.class_names]
    if labels is None or not known:
        return None
    answers = [classifier.class_names[int(probabilities[number].argmax())] for number in known]
    return float(np.mean([answer == labels[number] for answer, number in zip(answers, known, strict=True)]))


def _alternatives(
    classifier: Classifier, batch: Tensor, labels: Sequence[str] | None, accuracy: float
) -> dict[str, float]:
    """Other ways to feed the network whose accuracy is higher by more than BETTER."""
    found = {}
    for name, settings in VARIANTS.items():
        if not settings and classifier.channels == 1:
            continue
        order = classifier.order if settings else ("bgr" if classifier.order == "rgb" else "rgb")
        mean, std = settings.get("mean", classifier.mean), settings.get("std", classifier.std)
        if classifier.channels == 1 and len(mean) == 3:
            mean, std = (sum(mean) / 3,), (sum(std) / 3,)
        other = Classifier(
            classifier.network,
            class_names=classifier.class_names,
            input_size=classifier.input_size,
            mean=mean,
            std=std,
            channels=classifier.channels,
            order=order,
            activation=classifier.activation,
            single_logit=classifier.single_logit,
            temperature=classifier.temperature,
        ).to(batch.device)
        with torch.no_grad():
            share = _accuracy(other, other.probabilities(other.eval()(batch)).cpu(), labels)
        if share is not None and share > accuracy + BETTER:
            found[name] = share
    classifier.eval()
    return dict(sorted(found.items(), key=lambda entry: -entry[1]))


def _warnings(
    classifier: Classifier,
    batch: Tensor,
    probabilities: Tensor,
    labels: Sequence[str] | None,
    accuracy: float | None,
    alternatives: dict[str, float],
) -> list[str]:
    said = []
    if alternatives:
        name, share = next(iter(alternatives.items()))
        said.append(f"with {name} it is right on {share:.0%} of the images, as it is on {accuracy:.0%}")
    elif labels is not None and accuracy is None:
        said.append(
            f"no label of the images ({', '.join(sorted(set(labels))[:4])} …) is one of its classes "
            f"({', '.join(classifier.class_names[:4])} …); classes= names them"
        )
    elif accuracy is not None and len(batch) >= 16 and accuracy < 1 / classifier.classes + BETTER:
        said.append(f"it is right on {accuracy:.0%} of the images, hardly more than by chance")
    answers = probabilities.argmax(dim=1)
    if len(batch) >= 16 and classifier.activation == "softmax" and bool((answers == answers[0]).all()):
        name = classifier.class_names[int(answers[0])]
        said.append(f"all {len(batch)} images count as '{name}'; AttFind needs images of every class")
    if not classifier.differentiable:
        said.append("it gives no gradients: training goes around a distilled student")
    elif not _reaches_images(classifier, batch[:4]):
        said.append("no gradient reaches the images; training cannot learn from it")
    return said


def _reaches_images(classifier: Classifier, images: Tensor) -> bool:
    pixels = images.clone().requires_grad_()
    with torch.enable_grad():
        try:
            torch.autograd.backward((classifier(pixels).square().sum(),))
        except RuntimeError:
            return False
    return pixels.grad is not None and bool((pixels.grad != 0).any())
