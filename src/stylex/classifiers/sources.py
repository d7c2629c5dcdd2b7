"""The kinds of classifier that need no other project's conventions: a file of ours, and Python code."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stylex.classifiers.architectures import build
from stylex.classifiers.classifier import KIND, Activation, Classifier, device_advice
from stylex.classifiers.options import Hints
from stylex.errors import CheckpointError, ClassifierError, reason_of
from stylex.run import read_tensors

log = logging.getLogger(__name__)

FIELDS = (
    "class_names",
    "input_size",
    "mean",
    "std",
    "channels",
    "order",
    "activation",
    "single_logit",
    "temperature",
    "architecture",
    "options",
    "report",
    "data_fingerprint",
)
"""Entries of a file's header that go to the constructor as they are."""

EARLIER = {"channels": 3, "order": "rgb"}
"""What a file without an entry means: those were not written before."""

PROBE_SIZES = (64, 224)
"""Sizes at which a network that names none is tried."""


def from_file(path: Path, hints: Hints) -> Classifier:
    """Read what `Classifier.save` wrote."""
    try:
        tensors, header = read_tensors(path)
    except (KeyError, ValueError):
        raise CheckpointError(f"{path}: the header is damaged; train or copy the classifier again") from None
    if header.get("kind") != KIND:
        raise CheckpointError(f"{path}: holds {header.get('kind', 'something else')}, not a classifier")
    try:
        classes = 1 if header["single_logit"] else len(header["class_names"])
        network = build(header["architecture"], classes, header["options"])
        written = {name: header[name] for name in FIELDS if name in header or name not in EARLIER}
        classifier = Classifier(network, **{**EARLIER, **written, **hints.given()})
        network.load_state_dict(tensors)
    except ClassifierError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except KeyError as error:
        raise CheckpointError(
            f"{path}: the header lacks {error}; train or copy the classifier again"
        ) from None
    except (TypeError, RuntimeError, AttributeError):
        raise CheckpointError(
            f"{path}: header and weights do not fit together; copy the classifier again"
        ) from None
    return classifier


class Function(nn.Module):
    """A callable that is no module, as one without weights."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.name = name_of(function)

    def forward(self, images: Tensor) -> Any:
        return self.function(images)

    def extra_repr(self) -> str:
        return self.name


class Around(nn.Module):
    """A network with something before or behind it; what is said of the network holds for the whole."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.differentiable = bool(getattr(network, "differentiable", True))
        self.full_precision = bool(getattr(network, "full_precision", False))
        self.fingerprint = getattr(network, "fingerprint", None)


class FromProbabilities(Around):
    """Probabilities to logits: ln p for classes that exclude each other, ln p − ln(1 − p) for others.

    Probabilities are kept 1e-7 away from 0 and 1, so that logits and their gradients stay finite. NaN passes
    (`Classifier.check` names it); numbers that can be no probabilities raise ClassifierError.
    """

    def __init__(self, network: nn.Module, activation: Activation) -> None:
        super().__init__(network)
        self.activation = activation

    def forward(self, images: Tensor) -> Any:
        output = self.network(images)
        if not isinstance(output, Tensor):
            return output
        if not torch.is_grad_enabled() and output.numel() and _outside(output):
            raise ClassifierError(
                f"probabilities were promised, but values go from {float(output.min()):.3g} to "
                f"{float(output.max()):.3g}; say outputs=logits, or leave it out"
            )
        shares = output.float().clamp(1e-7, 1 - 1e-7)
        exclusive = self.activation == "softmax" and shares.ndim == 2 and shares.shape[1] > 1
        return shares.log() if exclusive else torch.logit(shares)


def _outside(values: Tensor) -> bool:
    """Whether some finite value can be no probability."""
    return bool(((values < -1e-3) | (values > 1.001)).any())


def from_python(network: nn.Module | Callable[[Tensor], Any], hints: Hints) -> Classifier:
    """Wrap a module or a callable; how many classes it has is found by running it on two images.

    Without `mean` and `std` it gets images in [-1, 1]; without `input_size` in the size they have, or
    of 224 px if it cannot work on others.
    """
    name = name_of(network)
    module = (network if isinstance(network, nn.Module) else Function(network)).eval()
    return wrapped(module, name, hints)


def wrapped(module: nn.Module, name: str, hints: Hints, **known: Any) -> Classifier:
    """A network as a classifier; what neither the hints nor `known` tell is found by running it.

    Args:
        module: images [N, C, H, W] → logits or probabilities [N, K], [N, 1] or [N].
        name: for messages, and the classifier's architecture unless `known` has one.
        hints: what the user said; it wins over `known`.
        known: arguments of `Classifier` that the source tells.
    """
    told = {"architecture": name, **known, **hints.given()}
    if hints.outputs == "probabilities":
        module = FromProbabilities(module, told.get("activation", "softmax"))
        told["architecture"] = f"probabilities of {name}"  # which no file of ours can hold
    columns, size, channels, device = _probe(module, name, told.get("input_size"), told.get("channels"))
    told |= {"input_size": size, "channels": channels, "single_logit": columns == 1}
    names = told.get("class_names")
    numbered = tuple(f"class {index}" for index in range(max(columns, 2)))
    if names is None:
        told["class_names"] = numbered
    elif hints.class_names is None and len(names) not in (columns, max(columns, 2)):
        found = f"{len(names)} class names where {len(numbered)} are expected"
        log.warning("%s: holds %s; give classes=, or they are called class 0, class 1 …", name, found)
        told["class_names"] = numbered
    return Classifier(module, **told).to(device)


def square_size(source: object, height: int | None, width: int | None) -> dict[str, int]:
    """`input_size` of a network that takes images of one size; nothing where a side may vary.

    Raises:
        ClassifierError: the sides differ.
    """
    if not height or not width:
        return {}
    if height != width:
        raise ClassifierError(f"{source}: takes {width} × {height} pixels; only square inputs are supported")
    return {"input_size": height}


def from_factory(path: str, hints: Hints) -> Classifier:
    """Call `package.module:factory`, the one place where a name given by the user runs code.

    The factory takes no arguments and returns a Classifier, a module or a callable; the name may also be that
    of a module that is there already. The working directory is searched too.
    """
    module_name, _, attribute = path.partition(":")
    with _working_directory_importable():
        try:
            made: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                made = getattr(made, part)
            if not isinstance(made, nn.Module):
                made = made()
        except (Exception, SystemExit) as error:  # whatever the user's code raises
            reason = reason_of(error)
            raise ClassifierError(
                f"{path}: could not be called ({type(error).__name__}: {reason})"
            ) from error
    if isinstance(made, Classifier):
        return made
    if not callable(made):
        raise ClassifierError(f"{path}: returned {type(made).__name__}; a module or a callable is expected")
    return from_python(made, hints)


def name_of(network: object) -> str:
    """Module and name of a function, or of the class of anything else."""
    named = network if hasattr(network, "__qualname__") else type(network)
    return f"{named.__module__}.{named.__qualname__}"


def _probe(
    network: nn.Module, name: str, input_size: int | None, channels: int | None
) -> tuple[int, int | None, int, torch.device]:
    """Number of columns that a network returns, size and channels that it insists on, and its device."""
    tensor = next(chain(network.parameters(), network.buffers()), None)
    device = tensor.device if tensor is not None else torch.device("cpu")
    sizes = (input_size,) if input_size else PROBE_SIZES
    reason = ""
    for count in (channels,) if channels else (3, 1):
        for size in sizes:
            try:
                with torch.no_grad():
                    output = network(torch.zeros(2, count, size, size, device=device))
            except ClassifierError:
                raise
            except Exception as error:  # whatever the user's code raises
                reason = reason or reason_of(error)
                continue
            if not isinstance(output, Tensor) or output.ndim not in (1, 2) or len(output) != 2:
                found = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
                raise ClassifierError(
                    f"classifier '{name}' returned {found} for 2 images, expected logits [2, K]"
                )
            columns = 1 if output.ndim == 1 else output.shape[1]
            return columns, input_size if size == PROBE_SIZES[0] else size, count, device
    tried = " and ".join(f"{size} px" for size in sizes)
    of = f"{channels} channels and " if channels else ""
    advice = device_advice(reason, device) or "give its input_size"
    if "channels" in reason:
        wanted = f"{channels} channels" if channels else "3 channels, or of 1"
        advice = f"it must take images of {wanted}; wrap or export it so"
    raise ClassifierError(f"classifier '{name}' fails on images of {of}{tried} ({reason}); {advice}")


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
