"""One door for every classifier; a new kind is one more line in KINDS."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylex.classifiers.architectures import TORCHVISION
from stylex.classifiers.classifier import Activation, Classifier
from stylex.classifiers.sources import PROBE_SIZES, Hints, Outputs, from_factory, from_file, from_python
from stylex.classifiers.zoo import from_torchvision
from stylex.errors import ClassifierError

Source = str | Path | nn.Module | Callable[[Tensor], Any]

FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")

PYTORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")


@dataclass(frozen=True)
class Kind:
    """A kind of source: how to recognise one, how to read it, and whether `weights` or `outputs` suit it."""

    description: str
    recognises: Callable[[Any], bool]
    read: Callable[[Any, Hints], Classifier]
    takes: tuple[str, ...] = ()


KINDS: tuple[Kind, ...] = (
    Kind(
        "a Python module or callable",
        lambda source: not isinstance(source, str | Path),
        from_python,
        takes=("outputs",),
    ),
    Kind(
        f"{TORCHVISION}NAME@FILE",
        lambda source: isinstance(source, str) and source.startswith(TORCHVISION),
        from_torchvision,
        takes=("weights",),
    ),
    Kind(
        "a file that 'stylex classifier train' wrote",
        lambda source: Path(source).is_file() and Path(source).suffix not in PYTORCH_SUFFIXES,
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
    outputs: Outputs = "logits",
    weights: str | Path | None = None,
) -> Classifier:
    """Load a classifier, frozen, and see that it gives logits; a module is frozen in place, on its device.

    Args:
        source: a file that `Classifier.save` wrote; "torchvision:NAME@FILE"; "package.module:factory"; in
            Python a module or callable, images [N, 3, H, W] → logits [N, K], or [N, 1] or [N] for 2 classes.
        class_names, input_size, mean, std, activation: as for `Classifier`; by default what the source says.
        outputs: "probabilities" if Python code returns those; they are turned into logits.
        weights: the file for "torchvision:NAME", a state dict as .safetensors or PyTorch file.

    Raises:
        ClassifierError: no known kind of source, or its outputs are not logits [N, K].
        CheckpointError: a file that is damaged, of another version, or holds code.
    """
    if isinstance(source, Classifier):
        return source.freeze()
    hints = Hints(
        class_names=None if class_names is None else tuple(class_names),
        input_size=input_size,
        mean=None if mean is None else tuple(mean),
        std=None if std is None else tuple(std),
        activation=activation,
        outputs=outputs,
        weights=None if weights is None else Path(weights),
    )
    for kind in KINDS:
        if kind.recognises(source):
            given = {"weights": weights is not None, "outputs": outputs != "logits"}
            needless = [name for name, is_given in given.items() if is_given and name not in kind.takes]
            if needless:
                raise ClassifierError(
                    f"{source}: {needless[0]} means nothing for {kind.description}; leave it out"
                )
            classifier = kind.read(source, hints).freeze()
            classifier.check(_probe_images(classifier))
            return classifier
    raise ClassifierError(_not_recognised(str(source)))


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
            f"load weights of a torchvision model as {TORCHVISION}NAME@{source}"
        )
    what = "a directory" if path.is_dir() else "no such file"
    kinds = "; ".join(kind.description for kind in KINDS)
    return f"{source}: {what}; a classifier can be {kinds}"
