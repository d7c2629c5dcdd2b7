"""Models of the package timm by name, with a file of weights, or a folder as a model hub has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from stylex.classifiers.architectures import TIMM, build
from stylex.classifiers.classifier import Classifier
from stylex.classifiers.options import Hints
from stylex.classifiers.sources import wrapped
from stylex.classifiers.weights import read_weights
from stylex.errors import ClassifierError
from stylex.extras import import_extra


def from_timm(source: str, hints: Hints) -> Classifier:
    """Load `timm:NAME@FILE`, or `timm:NAME` with the file in the hints.

    Classes and input channels are read off the weights; input size, mean and std are those that timm has for
    the model.

    Raises:
        ClassifierError: timm is missing, has no such model, or the weights are another model's.
        CheckpointError: the file is damaged or holds code.
    """
    name, _, file = source.removeprefix(TIMM).partition("@")
    path = Path(file) if file else hints.weights
    if path is None:
        raise ClassifierError(f"{source}: needs a file of weights, as {TIMM}{name}@FILE")
    if path.is_dir():
        return from_timm_folder(path, hints)
    return _load(name, read_weights(path), path, hints, {})


def is_timm_folder(folder: Path) -> bool:
    """Whether a folder is laid out as timm's models on a hub are: config.json with `architecture`."""
    return isinstance(_config(folder).get("architecture"), str)


def from_timm_folder(folder: Path, hints: Hints) -> Classifier:
    """Load a folder with `config.json` (architecture, pretrained_cfg, label_names) and its weights."""
    config = _config(folder)
    name = config.get("architecture")
    if not isinstance(name, str):
        raise ClassifierError(f"{folder}: its config.json names no architecture of timm")
    told = config.get("pretrained_cfg")
    labels = config.get("label_names")
    known: dict[str, Any] = {} if not isinstance(labels, list) else {"class_names": tuple(map(str, labels))}
    files = [folder / file for file in ("model.safetensors", "pytorch_model.bin") if (folder / file).exists()]
    if not files:
        raise ClassifierError(f"{folder}: holds no model.safetensors")
    weights = read_weights(files[0])
    return _load(name, weights, files[0], hints, known, told if isinstance(told, dict) else {})


def _load(
    name: str,
    weights: Mapping[str, Tensor],
    path: Path,
    hints: Hints,
    known: dict[str, Any],
    config: Mapping[str, Any] | None = None,
) -> Classifier:
    timm = import_extra("timm", f"{TIMM}{name}")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5])
        raise ClassifierError(f"timm has no model '{name}'" + (f"; near it are {near}" if near else ""))
    default = dict(timm.get_pretrained_cfg(name).to_dict()) | dict(config or {})
    classes, channels = _read_off(default, weights)
    options = {} if channels == 3 else {"in_chans": channels}
    network = build(TIMM + name, classes, options).eval()
    _load_weights(network, weights, name, path)
    mean, std = default.get("mean", (0.5,) * 3), default.get("std", (0.5,) * 3)
    if channels == 1 and len(mean) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    known = {
        "mean": tuple(mean),
        "std": tuple(std),
        "channels": channels,
        "input_size": int(default.get("input_size", (3, 224, 224))[-1]),
        "architecture": TIMM + name,
        "options": options,
        **known,
    }
    return wrapped(network, TIMM + name, hints, **known)


def _read_off(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[int, int]:
    """Classes and input channels of a state dict, by the layers that timm says are the last and the first."""
    classes = _sizes(config.get("classifier"), weights, 0)
    channels = _sizes(config.get("first_conv"), weights, 1)
    return classes or 1000, channels or 3


def _sizes(layer: Any, weights: Mapping[str, Tensor], axis: int) -> int | None:
    names = [layer] if isinstance(layer, str) else list(layer or ())
    for name in names:
        weight = weights.get(f"{name}.weight")
        if weight is not None and weight.ndim > axis:
            return int(weight.shape[axis])
    return None


def _load_weights(network: nn.Module, weights: Mapping[str, Tensor], name: str, path: Path) -> None:
    expected = network.state_dict()
    strange = sorted(expected.keys() ^ weights.keys())
    if strange:
        raise ClassifierError(
            f"{path}: no weights of timm's {name}; {len(strange)} entries differ, the first is '{strange[0]}'"
        )
    for key, value in expected.items():
        if weights[key].shape != value.shape:
            raise ClassifierError(
                f"{path}: no weights of timm's {name}; '{key}' is {list(weights[key].shape)}, "
                f"not {list(value.shape)}"
            )
    network.load_state_dict(dict(weights))


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
