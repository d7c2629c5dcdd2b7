"""Files of other projects: which networks they hold, and the StyleGAN2 among them as networks of ours."""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from stylex import networks
from stylex.errors import CheckpointError
from stylex.interop import labels, rosinality, stylegan2_ada
from stylex.interop.pickles import ForeignNetwork, read_pickle, refused_name

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""First bytes of the `.pt` files of PyTorch before 1.6."""

GENERATORS = {"synthesis.b4.const": "stylegan2-ada", "input.input": "rosinality"}
DISCRIMINATORS = {"b4.out.weight": "stylegan2-ada", "final_linear.1.weight": "rosinality"}
"""An entry that only this layout's generator or discriminator has."""


@dataclass(frozen=True)
class StyleGAN2:
    """A foreign model as networks of ours; `layout` is "stylegan2-ada" or "rosinality".

    `encoder` is there where the file is a StylEx in rosinality's layout, such as the study's checkpoint; its
    generator then reads w ⊕ condition and may have no mapping network. `label` is the class that a
    conditional StyleGAN2-ADA is always told.
    """

    generator: networks.Generator
    mapping: networks.Mapping | None
    discriminator: networks.Discriminator | None
    layout: str
    encoder: networks.Encoder | None = None
    label: int | None = None


def read_checkpoint(path: str | Path) -> dict[str, ForeignNetwork]:
    """The networks in a `.pkl`, `.pt` or `.safetensors` file, by the names that the file gives them.

    The content decides how it is read, not the file's ending. Entries that stand outside any network, like
    rosinality's `latent_avg`, come under the name "". In safetensors files the part of a name before the
    first dot is the network's name, unless the whole file is one network.

    Raises:
        CheckpointError: missing, damaged, of an unknown format, without tensors, or with code inside.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            begin = file.read(16)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    if begin[:4] == b"PK\x03\x04" or begin.startswith(LEGACY_MAGIC):
        found = _sections(_read_torch(path))
    elif begin[8:9] == b"{":
        found = _read_safetensors(path)
    elif begin[:1] == b"\x80":
        return read_pickle(path)
    else:
        raise CheckpointError(
            f"{path}: neither a .pt, a .safetensors nor a .pkl file; convert it to one of these"
        )
    if not found:
        raise CheckpointError(f"{path}: holds no tensors; is it a checkpoint of a model?")
    return {name: ForeignNetwork(tensors) for name, tensors in found.items()}


def load_stylegan2(path: str | Path, label: int | None = None) -> StyleGAN2:
    """The StyleGAN2 in a file, averaged weights preferred.

    Args:
        path: the file.
        label: class, from 0, that a conditional StyleGAN2-ADA is to draw (see `labels`).

    Raises:
        CheckpointError: as `read_checkpoint`; or the file holds no generator of a known layout, or one
            that does not fit, or a conditional one and there is no label.
        ConfigError: a label that the generator does not know, or for one that is told none.
    """
    found = read_checkpoint(path)
    generators = {name: layout for name, part in found.items() if (layout := _layout(part, GENERATORS))}
    if not generators:
        held = ", ".join(repr(name) for name in found)
        raise CheckpointError(
            f"{path}: no StyleGAN2 generator in the layout of stylegan2-ada-pytorch or rosinality; "
            f"it holds {held}"
        )
    name = max(generators, key=lambda candidate: "ema" in candidate.lower())
    layout = generators[name]
    scorers = _called(found, layout, ("d", "discriminator"))
    encoders = _called(found, layout, ("e_ema", "e", "encoder"))
    discriminator = encoder = None
    mapping: networks.Mapping | None
    state: Mapping[str, Tensor] = found[name].tensors
    try:
        labels.check_label(label, labels.classes_told(state))
        if layout == "stylegan2-ada":
            if label is not None:
                state = labels.unconditional_generator(state, label)
            generator, mapping = stylegan2_ada.convert_generator(state)
            if scorers:
                scorer: Mapping[str, Tensor] = scorers[0].tensors
                if label is not None and labels.classes_told(scorer):
                    scorer = labels.unconditional_discriminator(scorer, label)
                group = _deviation_group(scorers[0].settings)
                discriminator = stylegan2_ada.convert_discriminator(scorer, group)
        else:
            mean = found[""].tensors.get("latent_avg") if "" in found else None
            condition = 0
            if encoders:
                encoder = rosinality.convert_encoder(encoders[0].tensors)
                condition = _condition(state, encoder)
            generator, mapping = rosinality.convert_generator(state, mean, condition)
            if scorers:
                discriminator = rosinality.convert_discriminator(scorers[0].tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return StyleGAN2(generator, mapping, discriminator, layout, encoder, label)


def _called(found: Mapping[str, ForeignNetwork], layout: str, names: tuple[str, ...]) -> list[ForeignNetwork]:
    """Networks of a discriminator's layout by these names, in their order."""
    lowered = {key.lower(): part for key, part in found.items()}
    return [
        lowered[name]
        for name in names
        if name in lowered and _layout(lowered[name], DISCRIMINATORS) == layout
    ]


def _condition(state: Mapping[str, Tensor], encoder: networks.Encoder) -> int:
    """Numbers that the generator reads beside those of the encoder."""
    read = state["conv1.conv.modulation.weight"].shape[1]
    given = encoder.output.weight.shape[0]
    if given > read:
        raise CheckpointError(f"the encoder gives {given} numbers, the generator reads {read}")
    return int(read - given)


def _read_torch(path: Path) -> Any:
    """A `.pt` file through the weights-only door, `argparse.Namespace` (rosinality's settings) allowed."""
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: damaged, or holds code or objects besides tensors ({refused_name(error)}); refused, "
            "nothing in it was run; save the state dicts alone"
        ) from None
    except Exception:  # a damaged file can fail in any way
        raise CheckpointError(f"{path}: damaged, not a whole .pt file; copy or download it again") from None


def _read_safetensors(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        flat = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file ({error})") from None
    if not flat or any(marker in flat for marker in (*GENERATORS, *DISCRIMINATORS)):
        return {"": flat} if flat else {}
    found: dict[str, dict[str, Tensor]] = {}
    for key, value in flat.items():
        name, dot, rest = key.partition(".")
        found.setdefault(name if dot else "", {})[rest if dot else key] = value
    return found


def _sections(content: Any) -> dict[str, dict[str, Tensor]]:
    """State dicts by name; tensors that stand alone under ""."""
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            found.setdefault("", {})[str(name)] = value
        elif (
            isinstance(value, Mapping)
            and value
            and all(isinstance(entry, Tensor) for entry in value.values())
        ):
            found[str(name)] = {str(key): entry for key, entry in value.items()}
    return found


def _layout(part: ForeignNetwork, markers: Mapping[str, str]) -> str | None:
    return next((layout for key, layout in markers.items() if key in part.tensors), None)


def _deviation_group(settings: Mapping[str, Any]) -> int:
    """Group of the minibatch standard deviation; there "None" means the whole batch, and 4 is the default."""
    epilogue = settings.get("epilogue_kwargs")
    group = epilogue.get("mbstd_group_size", 4) if isinstance(epilogue, dict) else 4
    return group if isinstance(group, int) else sys.maxsize
