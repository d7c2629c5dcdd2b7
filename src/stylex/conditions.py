"""What a generator is told of an image's class beside the latent w."""

from __future__ import annotations

from torch import Tensor

from stylex.classifiers import Classifier
from stylex.networks import Encoder


def told(
    kind: str, classifier: Classifier, logits: Tensor, images: Tensor, encoder: Encoder | None
) -> Tensor | None:
    """The condition [N, K] of images, by the recipe's `network.condition`; None where there is none.

    Args:
        kind: "probabilities", "logits", "evidence" or "none".
        logits: the classifier's, of the images.
        images: [N, 3, R, R]; only evidence is found in the images themselves.
        encoder: holds the evidence, where that is the kind.
    """
    if kind == "evidence":
        assert encoder is not None
        return encoder.told(images)
    return {"probabilities": classifier.probabilities(logits), "logits": logits, "none": None}[kind]
