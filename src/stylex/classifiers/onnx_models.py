"""ONNX files: converted to PyTorch, with gradients; where that fails, run by onnxruntime without them."""

from __future__ import annotations

import ast
import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from stylex.classifiers.classifier import Classifier
from stylex.classifiers.graphs import Graph, file_hash, in_batches
from stylex.classifiers.options import Hints, Layout
from stylex.classifiers.sources import PROBE_SIZES, Around, square_size, wrapped
from stylex.errors import CheckpointError, ClassifierError, reason_of
from stylex.extras import import_extra

log = logging.getLogger(__name__)

OPSETS = (17, 13)
"""Versions of the operators that a file is translated to where the converter lacks the file's own."""

PIXEL_FORMATS: dict[str, dict[str, Any]] = {
    "gray8": {"channels": 1},
    "rgb8": {"channels": 3, "order": "rgb"},
    "bgr8": {"channels": 3, "order": "bgr"},
}
PIXEL_RANGES = {
    "nominalrange_0_255": (0.0, 255.0),
    "normalized_0_1": (0.0, 1.0),
    "normalized_1_1": (-1.0, 1.0),
    "nominalrange_16_235": (16.0, 235.0),
}
"""What the metadata `Image.BitmapPixelFormat` and `Image.NominalPixelRange` say (onnx, MetadataProps.md)."""

NAMES = ("class_names", "classes", "labels", "names")
"""Metadata under which exporters keep class names: a list, or a mapping from numbers to names."""

TOLERANCE = 0.01
"""How far a conversion's answers may be from onnxruntime's, as a share of the largest of these.

float16 within a file makes a few thousandths, an operator that is translated wrongly far more."""

LEAVES_OUT = "attfind, explain, evaluate and report run on it, train uses a distilled student in its place"


class Runtime(nn.Module):
    """An ONNX graph run by onnxruntime: images [N, C, H, W] → its first output, without gradients."""

    differentiable = False

    def __init__(self, path: Path, fingerprint: str, batch: int | None) -> None:
        super().__init__()
        runtime = import_extra("onnxruntime", str(path))
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what fails is raised
        try:
            self.session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of a type of its own for every reason
            raise CheckpointError(f"{path}: onnxruntime cannot run it ({reason_of(error)})") from None
        self.input = self.session.get_inputs()[0].name
        self.output = _logits_name(self.session)
        self.fingerprint = fingerprint
        self.batch = batch

    def train(self, mode: bool = True) -> Self:
        """Graphs have no training mode."""
        self.training = False
        return self

    def forward(self, images: Tensor) -> Tensor:
        if self.batch is not None:
            return in_batches(self._run, images, self.batch)
        return self._run(images)

    def _run(self, images: Tensor) -> Tensor:
        pixels = np.ascontiguousarray(images.detach().float().cpu().numpy())
        found = self.session.run([self.output], {self.input: pixels})[0]
        return torch.from_numpy(np.asarray(found)).to(images.device)


class ChannelsLast(Around):
    """A network that takes images [N, H, W, C], as one that takes [N, C, H, W]."""

    def forward(self, images: Tensor) -> Any:
        return self.network(images.permute(0, 2, 3, 1))


def from_onnx(path: Path, hints: Hints) -> Classifier:
    """Load an ONNX file; size, channels, order, range and class names are what its input and metadata tell.

    onnx2torch turns it into a network with gradients. Where an operator is missing there, or the answers to
    two images are not those of onnxruntime, onnxruntime runs the file: a warning then says what that leaves
    out. `backend=torch` or `onnxruntime` insists on one.

    Raises:
        ClassifierError: a package is missing; the file takes other inputs than one batch of square images;
            or `backend=torch`, and it cannot be converted.
        CheckpointError: the file is damaged.
    """
    onnx = import_extra("onnx", str(path))
    try:
        model = onnx.load(str(path), load_external_data=False)
        beside = _files_beside(model)
        onnx.load_external_data_for_model(model, str(path.parent))
        onnx.checker.check_model(model)
    except Exception as error:  # the parser's own types
        raise CheckpointError(f"{path}: not a whole ONNX file ({reason_of(error)})") from None
    batch, known, layout = _input(onnx, model, path)
    layout = hints.layout or layout
    fingerprint = _fingerprint(path, beside)
    network: Any = None
    if hints.backend != "onnxruntime":
        try:
            network = _converted(onnx, model, path, fingerprint, batch)
            _compare(network, path, _probes(known, hints, layout))
        except _UnconvertibleError as error:
            if hints.backend == "torch":
                raise ClassifierError(
                    f"{path}: {error}; leave backend=torch out to run it by onnxruntime"
                ) from None
            log.warning("%s: %s; onnxruntime runs it, without gradients: %s", path, error, LEAVES_OUT)
            network = None
    network = network or Runtime(path, fingerprint, batch)
    if layout == "nhwc":
        network = ChannelsLast(network)
    return wrapped(network, f"onnx {path.name}", hints, **known)


class _UnconvertibleError(Exception):
    """The file has no equivalent in PyTorch here; the message says why."""


def _converted(onnx: Any, model: Any, path: Path, fingerprint: str, batch: int | None) -> Graph:
    converter = import_extra("onnx2torch", str(path))
    reason = ""
    for opset in (None, *OPSETS):
        try:
            tried = model if opset is None else onnx.version_converter.convert_version(model, opset)
            return Graph(converter.convert(tried).eval(), fingerprint, batch)
        except Exception as error:  # NotImplementedError and whatever the translation raises
            reason = reason or reason_of(error)
    raise _UnconvertibleError(f"cannot be converted to PyTorch ({reason})")


def _compare(network: Graph, path: Path, probes: Iterable[Tensor]) -> None:
    """Raise _UnconvertibleError where a conversion answers the first probe that the file takes otherwise."""
    reason = ""
    for images in probes:
        try:
            wanted = Runtime(path, network.fingerprint, network.batch)(images).float()
        except (
            Exception
        ) as error:  # the package is missing, other sizes or channels, or a file that onnxruntime cannot run
            reason = reason or reason_of(error)
            continue
        try:
            with torch.no_grad():
                found = network(images).float()
        except Exception as error:  # whatever the translation raises
            raise _UnconvertibleError(f"its conversion to PyTorch fails ({reason_of(error)})") from None
        if found.shape != wanted.shape:
            raise _UnconvertibleError(
                f"its conversion to PyTorch gives shape {list(found.shape)}, onnxruntime {list(wanted.shape)}"
            )
        gap, largest = float((found - wanted).abs().max()), float(wanted.abs().max())
        if not gap <= TOLERANCE * largest:
            raise _UnconvertibleError(
                f"its conversion to PyTorch differs from onnxruntime by {gap:.3g} in up to {largest:.3g}"
            )
        return
    log.warning("%s: its conversion to PyTorch was not compared with onnxruntime (%s)", path, reason)


def _probes(known: dict[str, Any], hints: Hints, layout: Layout) -> Iterator[Tensor]:
    """Two images of noise as the file wants them, for each size and number of channels that it may take."""
    told = hints.given() | known
    black, white = ((p - (told.get("mean") or (0.5,))[0]) / (told.get("std") or (0.5,))[0] for p in (0, 1))
    generator = torch.Generator().manual_seed(0)
    for channels in (told["channels"],) if "channels" in told else (3, 1):
        for size in (told["input_size"],) if "input_size" in told else PROBE_SIZES:
            noise = torch.rand(2, channels, size, size, generator=generator)
            images = black + noise * (white - black)
            yield images.permute(0, 2, 3, 1) if layout == "nhwc" else images


def _files_beside(model: Any) -> list[str]:
    """Names of the files that hold weights of a model (exporters put large ones into NAME.onnx.data)."""
    attributes = [attribute.t for node in model.graph.node for attribute in node.attribute]
    tensors = [*model.graph.initializer, *attributes]
    return sorted(
        {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    )


def _fingerprint(path: Path, beside: list[str]) -> str:
    """SHA-256 of a file; with weights beside it, of the hashes of all files."""
    hashes = [file_hash(file) for file in (path, *(path.parent / name for name in beside))]
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if beside else hashes[0]


def _input(onnx: Any, model: Any, path: Path) -> tuple[int | None, dict[str, Any], Layout]:
    """Fixed batch size or None, what the input's shape tells, and its layout."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        raise ClassifierError(f"{path}: takes {len(inputs)} inputs, expected one batch of images")
    kind = inputs[0].type.tensor_type
    shape = [size.dim_value if size.HasField("dim_value") else 0 for size in kind.shape.dim]
    if len(shape) != 4 or kind.elem_type != onnx.TensorProto.FLOAT:
        name = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise ClassifierError(
            f"{path}: its input is {name} of shape {shape}, expected FLOAT [N, 3, H, W]; "
            "export the network alone"
        )
    layout: Layout = "nhwc" if shape[3] in (1, 3) and shape[1] not in (1, 3) else "nchw"
    channels, height, width = shape[1:] if layout == "nchw" else (shape[3], shape[1], shape[2])
    known: dict[str, Any] = {}
    if channels in (1, 3):
        known["channels"] = channels
    elif channels:
        raise ClassifierError(f"{path}: takes images of {channels} channels; expected 3 or 1")
    known |= square_size(path, height, width)
    return shape[0] or None, known | _metadata(model), layout


def _metadata(model: Any) -> dict[str, Any]:
    """Arguments of `Classifier` that the file's metadata tell."""
    told = {entry.key.lower(): entry.value for entry in model.metadata_props}
    known = dict(PIXEL_FORMATS.get(told.get("image.bitmappixelformat", "").lower(), {}))
    low, high = PIXEL_RANGES.get(told.get("image.nominalpixelrange", "").lower(), (0.0, 0.0))
    if low < high:
        known |= {"mean": (-low / (high - low),), "std": (1 / (high - low),)}
    names = next((found for key in NAMES if (found := _names(told.get(key, "")))), None)
    return known if names is None else known | {"class_names": names}


def _names(text: str) -> tuple[str, ...] | None:
    """Class names written as a list or a mapping, in JSON or as Python prints them; None for all else."""
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    if isinstance(found, dict):
        ordered = [found.get(number, found.get(str(number))) for number in range(len(found))]
        found = ordered
    if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
        return tuple(found)
    return None


def _logits_name(session: Any) -> str:
    """The output called logits, else the first with two axes, else the first."""
    outputs = session.get_outputs()
    named = [value.name for value in outputs if "logits" in value.name.lower()]
    flat = [value.name for value in outputs if len(value.shape or ()) == 2]
    return str((named or flat or [outputs[0].name])[0])
