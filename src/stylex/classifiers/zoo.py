"""Torchvision's models by name, with a file of weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

from stylex.classifiers.architectures import TORCHVISION, build, torchvision_names
from stylex.classifiers.classifier import Classifier
from stylex.classifiers.options import Hints
from stylex.classifiers.weights import read_weights
from stylex.errors import ClassifierError


def from_torchvision(source: str, hints: Hints) -> Classifier:
    """Load `torchvision:NAME@FILE`, or `torchvision:NAME` with the file in the hints.

    The number of classes is read off the weights; input size and normalisation are those that torchvision
    documents for the model, and class names ImageNet's where the number fits, else "class 0" and so on.

    Raises:
        ClassifierError: no such model, no file, or weights of another model.
        CheckpointError: the file is damaged or holds code.
    """
    name, _, file = source.removeprefix(TORCHVISION).partition("@")
    if name not in torchvision_names():
        raise ClassifierError(f"torchvision has no model '{name}'; it has {', '.join(torchvision_names())}")
    published = get_model_weights(name).DEFAULT
    path = Path(file) if file else hints.weights
    if path is None:
        raise ClassifierError(
            f"{source}: needs a file of weights, as {TORCHVISION}{name}@FILE; "
            f"ImageNet's are at {published.url}"
        )
    weights = read_weights(path)
    classes = _count_classes(name, weights, path)
    network = build(TORCHVISION + name, classes, {})
    network.load_state_dict(weights)
    preset = published.transforms()
    categories = tuple(_distinct(published.meta["categories"]))
    names = categories if len(categories) == classes else tuple(f"class {i}" for i in range(max(classes, 2)))
    settings: dict[str, Any] = {
        "class_names": names,
        "input_size": int(preset.crop_size[0]),
        "mean": preset.mean,
        "std": preset.std,
        **hints.given(),
    }
    return Classifier(network, single_logit=classes == 1, architecture=TORCHVISION + name, **settings)


def _count_classes(name: str, weights: Mapping[str, Tensor], path: Path) -> int:
    """The classes of a state dict; the last layer may differ from the published model in that number."""
    with torch.device("meta"):
        model: nn.Module = get_model(name, weights=None)
    expected = model.state_dict()
    strange = sorted(expected.keys() ^ weights.keys())
    if strange:
        raise ClassifierError(
            f"{path}: no weights of torchvision's {name}; {len(strange)} entries differ, "
            f"the first is '{strange[0]}'"
        )
    classes = 1000
    for key, value in expected.items():
        found = weights[key].shape
        if found == value.shape:
            continue
        if not found or value.shape[0] != 1000 or found[1:] != value.shape[1:]:
            raise ClassifierError(
                f"{path}: no weights of torchvision's {name}; "
                f"'{key}' is {list(found)}, not {list(value.shape)}"
            )
        classes = found[0]
    return classes


def _distinct(names: list[str]) -> list[str]:
    """Names with a number behind those that came before: ImageNet has two cranes and two maillots."""
    seen: dict[str, int] = {}
    distinct = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        distinct.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return distinct
