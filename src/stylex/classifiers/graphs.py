"""TorchScript files and programs of `torch.export`: graphs that run without any Python of theirs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylex.classifiers.classifier import Classifier
from stylex.classifiers.options import Hints, Options, as_hints
from stylex.classifiers.sources import square_size, wrapped
from stylex.config import validate
from stylex.errors import CheckpointError, ClassifierError, ConfigError, reason_of

ABOUT = re.compile(r"(.+/)?extra(_files)?/stylex\.json")
"""The extra file of an archive that says what its network takes and gives, with the keys of `Options`."""

FORCE_WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
"""PyTorch's switch that makes every `torch.load` refuse code, also those within `torch.export.load`."""

HARMLESS = re.compile(r"[\w\s+*/().,<>=!-]*")
"""A symbolic size: names, numbers, arithmetic and comparisons."""

SIZE_WORDS = re.compile(
    r"(s|u|f|z|zf)\d+|Symbol|Integer|Max|Min|Mod|FloorDiv|CeilDiv|PythonMod|Eq|Ne|Lt|Le|Gt|Ge|"
    r"And|Or|Not|Add|Mul|Pow|True|False|true|false|positive|integer|int_oo|oo|Where|ModularIndexing"
)
"""The names that occur in symbolic sizes."""


class Graph(nn.Module):
    """A loaded graph as a module: always in evaluation mode, in batches of the size that it was made for.

    Args:
        module: images [B, C, H, W] → logits.
        fingerprint: SHA-256 of its file.
        batch: images that the graph takes at once; None for any number. The last batch is filled up.
    """

    full_precision = True

    def __init__(self, module: Any, fingerprint: str, batch: int | None = None) -> None:
        super().__init__()
        self.module = module
        self.fingerprint = fingerprint
        self.batch = batch

    def train(self, mode: bool = True) -> Self:
        """Graphs have no training mode."""
        self.training = False
        return self

    def forward(self, images: Tensor) -> Any:
        if self.batch is None:
            return first(self.module(images))
        return in_batches(self.module, images, self.batch)


def first(output: Any) -> Any:
    """The logits in what a graph returns: itself, its attribute or entry `logits`, or its first part."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        return output["logits"] if "logits" in output else next(iter(output.values()), None)
    found = getattr(output, "logits", None)
    if found is not None:
        return found
    return output[0] if isinstance(output, tuple | list) and output else output


def in_batches(function: Any, images: Tensor, batch: int) -> Tensor:
    """Results for any number of images from a function that takes `batch` of them at once."""
    parts = []
    for part in torch.split(images, batch):
        missing = batch - len(part)
        filled = F.pad(part, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else part
        parts.append(first(function(filled))[: len(part)])
    return torch.cat(parts)


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive (weights alone are zip files too)."""
    return any(re.fullmatch(r"[^/]+/constants\.pkl", name) for name in _members(path))


def is_exported(path: Path) -> bool:
    """Whether a file holds a program of `torch.export.save`."""
    return any(
        re.fullmatch(r"([^/]+/)?(models/[^/]+\.json|serialized_exported_program\.json)", name)
        for name in _members(path)
    )


def from_torchscript(path: Path, hints: Hints) -> Classifier:
    """Load a TorchScript file (`torch.jit.save`); its code is TorchScript, which cannot reach the system.

    Raises:
        CheckpointError: damaged. ClassifierError: its outputs are no logits, or as for `about`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that TorchScript gives way to torch.export
            module = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            module.eval()
    except Exception as error:  # a damaged archive can fail in any way
        raise CheckpointError(f"{path}: not a whole TorchScript file ({reason_of(error)})") from None
    return _told(Graph(module, file_hash(path)), f"torchscript {path.name}", path, hints)


def from_exported(path: Path, hints: Hints) -> Classifier:
    """Load a program of `torch.export.save` (.pt2); a fixed batch and input size are taken from it.

    Every pickle inside is read with `weights_only`, symbolic sizes must be plain arithmetic.

    Raises:
        CheckpointError: damaged, or with code inside. ClassifierError: its inputs are no square images, or
            its outputs no logits, or as for `about`.
    """
    _check_sizes(path)
    try:
        with _weights_only():
            program = torch.export.load(str(path))
        module = program.module()
    except Exception as error:  # a damaged archive can fail in any way
        reason = reason_of(error)
        hint = "it holds code rather than a graph and weights" if "eights" in reason else reason
        raise CheckpointError(f"{path}: cannot be read as a program of torch.export ({hint})") from None
    shape = _input_shape(program)
    known: dict[str, Any] = {}
    batch = None
    if shape is not None:
        batch, channels, height, width = shape
        if channels in (1, 3):
            known["channels"] = channels
        elif channels is not None:
            raise ClassifierError(f"{path}: takes images of {channels} channels; expected 3 or 1")
        known |= square_size(path, height, width)
    graph = Graph(module, file_hash(path), batch)
    return _told(graph, f"torch.export {path.name}", path, hints, **known)


def about(path: Path) -> Hints:
    """What an archive says of its network in an extra file `stylex.json`; nothing where it has none.

    `torch.jit.save(…, _extra_files=…)` and `torch.export.save(…, extra_files=…)` put it there. The keys are
    those of a YAML file of options.

    Raises:
        ClassifierError: it is no JSON object, or has a key that is unknown or means nothing here, or a value
            out of range.
    """
    name = next(filter(ABOUT.fullmatch, _members(path)), None)
    if name is None:
        return Hints()
    where = f"{path}: stylex.json within"
    try:
        with zipfile.ZipFile(path) as archive:
            content = json.loads(archive.read(name))
    except Exception as error:  # a damaged archive can fail in any way
        raise ClassifierError(f"{where}: not readable as JSON ({reason_of(error)})") from None
    if not isinstance(content, dict):
        raise ClassifierError(f"{where}: is a {type(content).__name__}; expected an object of options")
    try:
        told = as_hints(validate(Options, content, where), {})
    except ConfigError as error:
        raise ClassifierError(str(error)) from None
    needless = [*(["source"] if "source" in content else []), *told.only("outputs")]
    if needless:
        raise ClassifierError(f"{where}: {needless[0]} means nothing there; leave it out")
    return told


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _told(graph: Graph, name: str, path: Path, hints: Hints, **known: Any) -> Classifier:
    """A graph as a classifier: the hints win over what its file says of it, this over `known`."""
    said = about(path)
    if hints.range is not None:  # mean and std of the file are in the units of its own range
        said = replace(said, mean=None, std=None)
    own = {field.name: getattr(hints, field.name) for field in fields(hints)}
    if said.class_names is not None:  # the file's: a wrong number of them is no mistake of the user's
        known["class_names"] = said.class_names
    merged = replace(said, class_names=None)
    merged = replace(merged, **{key: value for key, value in own.items() if value is not None})
    classifier = wrapped(graph, name, merged, **known)
    classifier.trusted = merged.outputs is not None
    return classifier


def _input_shape(program: Any) -> tuple[int | None, ...] | None:
    """Sizes of the one input, None for those that may vary."""
    wanted = program.graph_signature.user_inputs
    found = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.op == "placeholder" and node.name in wanted
    ]
    if len(found) != 1 or len(found[0]) != 4:
        raise ClassifierError(
            f"the exported program takes {len(found)} inputs, expected one of images [N, C, H, W]; export a "
            "module that takes images alone"
        )
    return tuple(size if isinstance(size, int) else None for size in found[0])


def _check_sizes(path: Path) -> None:
    """Symbolic sizes go through sympy, which would evaluate anything that is written there."""
    try:
        with zipfile.ZipFile(path) as archive:
            graphs = [json.loads(archive.read(name)) for name in archive.namelist() if name.endswith(".json")]
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise CheckpointError(f"{path}: not a whole program of torch.export ({reason_of(error)})") from None
    for written in _expressions(graphs):
        text = re.sub(r"'([suzf]+\d+)'", r"\1", written)  # the name of a symbol
        words = re.findall(r"[A-Za-z_]\w*", text)
        if not HARMLESS.fullmatch(text) or not all(SIZE_WORDS.fullmatch(word) for word in words):
            raise CheckpointError(
                f"{path}: a size in it is code rather than arithmetic ({text[:40]!r}); refused"
            )


def _expressions(content: Any) -> Iterator[str]:
    """Every value of a key `expr_str` in nested JSON."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key == "expr_str":
                yield str(value)
            else:
                yield from _expressions(value)
    elif isinstance(content, list):
        for value in content:
            yield from _expressions(value)


@contextmanager
def _weights_only() -> Iterator[None]:
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    os.environ[FORCE_WEIGHTS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FORCE_WEIGHTS_ONLY]
        else:
            os.environ[FORCE_WEIGHTS_ONLY] = before


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return []
