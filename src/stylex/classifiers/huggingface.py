"""Folders of the package transformers: an image classifier as `save_pretrained` writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stylex.classifiers.architectures import TRANSFORMERS, Logits
from stylex.classifiers.classifier import Classifier
from stylex.classifiers.options import Hints
from stylex.classifiers.sources import square_size, wrapped
from stylex.errors import CheckpointError, ClassifierError
from stylex.extras import import_extra

PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")

PROBE_SIDE = 64
"""Pixels along a side of the images that a preprocessor is tried with."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def is_transformers_folder(folder: Path) -> bool:
    """Whether a folder has a config.json that names a model type."""
    return "model_type" in _read(folder / "config.json")


def from_transformers(folder: Path, hints: Hints) -> Classifier:
    """Load a folder with config.json, preprocessor_config.json and model.safetensors.

    Class names, softmax or labels (`problem_type`), input size, greyscale and normalisation are what the two
    configs say. Nothing is looked up elsewhere, and code of a model's own is never run.

    Raises:
        ClassifierError: transformers is missing, or the folder holds no image classifier of its own, or one
            of images that are not square.
        CheckpointError: there are no safetensors, or they do not fit.
    """
    if not any((folder / name).exists() for name in WEIGHTS):
        raise CheckpointError(f"{folder}: holds no {WEIGHTS[0]}; save it with model.save_pretrained(folder)")
    transformers = import_extra("transformers", str(folder))
    config = _read(folder / "config.json")
    quiet = transformers.utils.logging
    level = quiet.get_verbosity()
    quiet.set_verbosity_error()
    try:
        model, loaded = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except Exception as error:  # anything from a missing key to a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ClassifierError(f"{folder}: cannot be read as an image classifier ({reason})") from None
    finally:
        quiet.set_verbosity(level)
    lacking = sorted(loaded["missing_keys"])
    if lacking:
        raise CheckpointError(
            f"{folder}: the weights lack {len(lacking)} entries of its config, the first is '{lacking[0]}'; "
            "they belong to another head or model"
        )
    told = _preprocessor(folder)
    known = _known(told, model.config) | _seen(transformers, folder, model.config)
    if hints.input_size is None and "input_size" not in known:
        known |= square_size(folder, *_sides(told, config))
    name = f"{TRANSFORMERS}{config['model_type']}"
    return wrapped(Logits(model.eval().float()), name, hints, **known)


def _seen(transformers: Any, folder: Path, config: Any) -> dict[str, Any]:
    """Input size, order, mean and std as the folder's own preprocessor has them, seen by what it makes of
    black, white and red images; nothing where there is none, and for networks of grey images.

    Configs leave out what is a default of their kind: MobileViT's swaps channels and does not normalise,
    EfficientNet's divides by the deviation twice.
    """
    told = _preprocessor(folder)
    if not told or getattr(config, "num_channels", 3) != 3:
        return {}
    colours = np.zeros((3, PROBE_SIDE, PROBE_SIDE, 3), np.uint8)
    colours[1], colours[2, :, :, 0] = 255, 255
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        made = processor(images=[Image.fromarray(colour) for colour in colours], return_tensors="np")
        pixels = np.asarray(made["pixel_values"], np.float64)
    except Exception:  # of a kind that is not there, or for other inputs: what its config says must do
        return {}
    if pixels.ndim != 4 or pixels.shape[:2] != (3, 3) or pixels.shape[2] != pixels.shape[3]:
        return {}
    size = pixels.shape[2]
    black, white, red = pixels[:, :, size // 2, size // 2]
    width = white - black
    if not (width > 0).all():
        return {}
    sized = {"input_size": size} if told.get("do_resize", True) else {}
    return {
        **sized,
        "order": "bgr" if np.isclose(red[2], white[2]) else "rgb",
        "mean": tuple((-black / width).round(6).tolist()),
        "std": tuple((1 / width).round(9).tolist()),
    }


def _known(told: dict[str, Any], full: Any) -> dict[str, Any]:
    channels = int(getattr(full, "num_channels", 3))
    names = full.id2label
    found: dict[str, Any] = {
        "class_names": tuple(str(names[index]) for index in sorted(names)),
        "activation": "sigmoid" if full.problem_type == "multi_label_classification" else "softmax",
        "options": {**full.to_diff_dict(), "id2label": {str(key): name for key, name in names.items()}},
    }
    for needless in (
        "architectures",
        "transformers_version",
        "model_type",
        "_name_or_path",
        "dtype",
        "torch_dtype",
    ):
        found["options"].pop(needless, None)
    if channels in (1, 3):
        found["channels"] = channels
    return found | _normalisation(told, channels)


def _normalisation(told: dict[str, Any], channels: int) -> dict[str, Any]:
    """mean and std on the [0, 1] scale: (pixel · rescale_factor − image_mean) / image_std."""
    factor = 255 * float(told.get("rescale_factor") or 1 / 255) if told.get("do_rescale", True) else 255.0
    mean, std = [0.0] * channels, [1.0] * channels
    if told.get("do_normalize", bool(told)):
        mean = _each(told.get("image_mean"), channels, 0.5)
        std = _each(told.get("image_std"), channels, 0.5)
    elif not told:  # no preprocessor beside it: what most models of the package are trained with
        mean, std = [0.5] * channels, [0.5] * channels
    return {
        "mean": tuple(value / factor for value in mean),
        "std": tuple(value / factor for value in std),
    }


def _each(values: Any, channels: int, default: float) -> list[float]:
    if isinstance(values, int | float):
        return [float(values)] * channels
    found = [float(value) for value in values] if isinstance(values, list) else [default] * channels
    return found if len(found) == channels else [sum(found) / len(found)] * channels


def _sides(told: dict[str, Any], config: dict[str, Any]) -> tuple[int | None, int | None]:
    """Height and width of what the network sees: the crop where there is one, else the size."""
    for key in ("crop_size", "size") if told.get("do_center_crop") else ("size", "crop_size"):
        size = told.get(key)
        if isinstance(size, dict):
            edge = size.get("height") or size.get("shortest_edge")
            size = [edge, size.get("width") or edge]
        found = _pair(size)
        if found is not None:
            return found
    return _pair(config.get("image_size")) or (None, None)


def _pair(value: Any) -> tuple[int, int] | None:
    """One number, or the first and last of a list, as height and width."""
    sides = (value[0], value[-1]) if isinstance(value, list) and value else (value, value)
    return sides if all(isinstance(side, int) and side > 0 for side in sides) else None


def _preprocessor(folder: Path) -> dict[str, Any]:
    for name in PREPROCESSORS:
        found = _read(folder / name)
        if found:
            inner = found.get("image_processor")
            return inner if isinstance(inner, dict) else found
    return {}


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
