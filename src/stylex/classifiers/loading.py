"""One door for every classifier; a new kind is one more line in KINDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stylex.classifiers.architectures import TIMM, TORCHVISION
from stylex.classifiers.classifier import Activation, Classifier, Order
from stylex.classifiers.endpoint import from_endpoint, is_url
from stylex.classifiers.graphs import from_exported, from_torchscript, is_exported, is_torchscript
from stylex.classifiers.huggingface import from_transformers, is_transformers_folder
from stylex.classifiers.onnx_models import from_onnx
from stylex.classifiers.options import Backend, Hints, Layout, Outputs, as_hints, split
from stylex.classifiers.sources import PROBE_SIZES, from_factory, from_file, from_python
from stylex.classifiers.timm_zoo import from_timm, from_timm_folder, is_timm_folder
from stylex.classifiers.zoo import from_torchvision
from stylex.errors import ClassifierError

Source = str | Path | nn.Module | Callable[[Tensor], Any]

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

PYTORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle", ".pt2")


@dataclass(frozen=True)
class Kind:
    """A kind of source: how to recognise one, how to read it, and which special options suit it."""

    description: str
    recognises: Callable[[Any], bool]
    read: Callable[[Any, Hints], Classifier]
    takes: tuple[str, ...] = ()


def _path(recognises: Callable[[Path], bool]) -> Callable[[Any], bool]:
    """A test of files or folders as one of any source."""
    return lambda source: (
        isinstance(source, str | Path) and Path(source).exists() and recognises(Path(source))
    )


KINDS: tuple[Kind, ...] = (
    Kind(
        "a Python module or callable",
        lambda source: not isinstance(source, str | Path),
        from_python,
        takes=("outputs",),
    ),
    Kind(
        "an endpoint, http://… or https://…",
        is_url,
        from_endpoint,
        takes=("outputs", "batch", "rate", "timeout", "retries", "cache", "token"),
    ),
    Kind(
        f"{TORCHVISION}NAME@FILE",
        lambda source: isinstance(source, str) and source.startswith(TORCHVISION),
        from_torchvision,
        takes=("weights",),
    ),
    Kind(
        f"{TIMM}NAME@FILE",
        lambda source: isinstance(source, str) and source.startswith(TIMM),
        from_timm,
        takes=("weights", "outputs"),
    ),
    Kind(
        "a folder that transformers wrote",
        _path(is_transformers_folder),
        lambda source, hints: from_transformers(Path(source), hints),
        takes=("outputs",),
    ),
    Kind(
        "a folder of a timm model",
        _path(is_timm_folder),
        lambda source, hints: from_timm_folder(Path(source), hints),
        takes=("outputs",),
    ),
    Kind(
        "an ONNX file",
        _path(lambda path: path.suffix == ".onnx"),
        lambda source, hints: from_onnx(Path(source), hints),
        takes=("outputs", "layout", "backend"),
    ),
    Kind(
        "a program of torch.export",
        _path(is_exported),
        lambda source, hints: from_exported(Path(source), hints),
        takes=("outputs",),
    ),
    Kind(
        "a TorchScript file",
        _path(is_torchscript),
        lambda source, hints: from_torchscript(Path(source), hints),
        takes=("outputs",),
    ),
    Kind(
        "a file that 'stylex classifier train' wrote",
        _path(lambda path: path.is_file() and path.suffix not in PYTORCH_SUFFIXES),
        lambda source, hints: from_file(Path(source), hints),
    ),
    Kind(
        "package.module:factory",
        lambda source: isinstance(source, str) and FACTORY.fullmatch(source) is not None,
        from_factory,
        takes=("outputs",),
    ),
)
"""In order: the first kind that recognises a source reads it."""


def load(
    source: Source,
    *,
    class_names: Sequence[str] | None = None,
    input_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    activation: Activation | None = None,
    outputs: Outputs | None = None,
    weights: str | Path | None = None,
    channels: Literal[1, 3] | None = None,
    order: Order | None = None,
    range: tuple[float, float] | None = None,
    layout: Layout | None = None,
    backend: Backend | None = None,
) -> Classifier:
    """Load a classifier, frozen, and see that it gives logits; a module is frozen in place, on its device.

    Args:
        source: any of the kinds in `KINDS`, with options behind a '#' (`model.onnx#size=224,order=bgr`), or a
            YAML file of options with the source in it; in Python also a module or callable, images
            [N, C, H, W] → logits [N, K], or [N, 1] or [N] for 2 classes.
        class_names, input_size, channels, order, activation: as for `Classifier`; by default what the source
            says.
        range, mean, std: values v of black and white, and then (v − mean) / std, as the network wants them.
        outputs: "probabilities" if it returns those; they are turned into logits. "logits" says that numbers
            which look like probabilities are none.
        weights: the file for "torchvision:NAME" or "timm:NAME", a state dict as .safetensors or PyTorch file.
        layout, backend: of an ONNX file.

    Raises:
        ClassifierError: no known kind of source, or its outputs are not logits [N, K].
        CheckpointError: a file that is damaged, of another version, or holds code.
    """
    if isinstance(source, Classifier):
        return source.freeze()
    given: dict[str, Any] = {
        "class_names": None if class_names is None else tuple(class_names),
        "input_size": input_size,
        "mean": None if mean is None else tuple(mean),
        "std": None if std is None else tuple(std),
        "activation": activation,
        "outputs": outputs,
        "weights": None if weights is None else Path(weights),
        "channels": channels,
        "order": order,
        "range": range,
        "layout": layout,
        "backend": backend,
    }
    plain: Any = source
    hints = Hints(**given)
    if isinstance(source, str | Path):
        plain, options = split(str(source))
        hints = as_hints(options, given)
    for kind in KINDS:
        if kind.recognises(plain):
            needless = hints.only(*kind.takes)
            if needless:
                raise ClassifierError(
                    f"{source}: {needless[0]} means nothing for {kind.description}; leave it out"
                )
            classifier = kind.read(plain, hints).freeze()
            classifier.trusted = classifier.trusted or hints.outputs is not None
            classifier.check(_probe_images(classifier))
            return classifier
    raise ClassifierError(_not_recognised(str(plain)))


def _probe_images(classifier: Classifier) -> Tensor:
    """Two images [2, 3, S, S] on the classifier's device: grey, and a ramp from black to white."""
    size = classifier.input_size or PROBE_SIZES[0]
    ramp = torch.linspace(-1, 1, size, device=classifier.scale.device).expand(3, size, size)
    return torch.stack((torch.zeros_like(ramp), ramp))


def _not_recognised(source: str) -> str:
    path = Path(source)
    if path.suffix in PYTORCH_SUFFIXES and path.is_file():
        return (
            f"{source}: a PyTorch file says nothing of the network it belongs to and may hold code; "
            f"load weights of a torchvision or timm model as {TORCHVISION}NAME@{source} or "
            f"{TIMM}NAME@{source}, or save it as TorchScript or with torch.export"
        )
    what = "a directory" if path.is_dir() else "no such file"
    kinds = "; ".join(kind.description for kind in KINDS)
    return f"{source}: {what}; a classifier can be {kinds}"
