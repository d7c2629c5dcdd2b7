"""StyleGAN2-ADA's `.pkl` files, read without running anything in them.

Such a file is a Python pickle of whole objects, source code included. Here the code stays text, every
object becomes an inert container, and every storage goes through `torch.load(weights_only=True)`. A name
outside the short list below ends the reading.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylex.errors import CheckpointError, reason_of


@dataclass(frozen=True)
class ForeignNetwork:
    """What a file holds of one network.

    `tensors` are its parameters and buffers by name; `settings` the keyword arguments that built it, where
    the file tells them; `class_name` what its makers call it.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any] = field(default_factory=dict)
    class_name: str = ""


def read_pickle(path: Path) -> dict[str, ForeignNetwork]:
    """The networks in a StyleGAN2-ADA (or stylegan3 repository) pickle, by name: `G`, `D`, `G_ema`.

    Raises:
        CheckpointError: missing, damaged, without networks, or with a name that such files do not use (code).
    """
    try:
        with path.open("rb") as file:
            objects = _Unpickler(file, encoding="latin1").load()
        networks = {
            name: ForeignNetwork(
                dict(_entries(value.attributes)), _settings(value.attributes), value.class_name
            )
            for name, value in (objects.items() if isinstance(objects, dict) else ())
            if isinstance(name, str) and isinstance(value, Inert) and "_modules" in value.attributes
        }
    except _RefusedError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except Exception as error:  # a damaged pickle can fail in any way
        raise CheckpointError(
            f"{path}: damaged, or not a StyleGAN2-ADA pickle ({reason_of(error)})"
        ) from None
    if not networks:
        raise CheckpointError(f"{path}: a pickle without networks; expected a dictionary with G, D and G_ema")
    return networks


class Inert:
    """Stands for an object of a foreign class: its attributes as data, no behaviour."""

    attributes: dict[str, Any]
    class_name: str

    def __new__(cls, *_: object) -> Inert:
        made = super().__new__(cls)
        made.attributes, made.class_name = {}, ""
        return made

    def __init__(self, *_: object) -> None:
        """Takes whatever the foreign class took, and drops it."""

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}

    @classmethod
    def persistent(cls, meta: dict[str, Any]) -> Inert:
        """An object as NVIDIA's persistence layer writes it: one dict of class name, source and state."""
        made = cls()
        made.__setstate__(meta["state"])
        made.class_name = str(meta["class_name"])
        return made


def refused_name(error: pickle.UnpicklingError) -> str:
    """The global that `torch.load(weights_only=True)` stopped at; its own message advises to run the file."""
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    return named[1] if named else "not plain data"


class _RefusedError(Exception):
    """The file asks for something that only code needs."""


class _Sealed:
    """Holds a value of ours that the file may pass on and, if it is a function, call, but not change."""

    __slots__ = ("value",)
    value: Any

    def __init__(self, value: object) -> None:
        object.__setattr__(self, "value", value)

    def __call__(self, *arguments: object) -> object:
        return self.value(*arguments)

    def __setattr__(self, name: str, _: object) -> None:
        raise _RefusedError(f"tries to set '{name}' where no StyleGAN2-ADA pickle does; refused")

    def __setstate__(self, _: object) -> None:
        raise _RefusedError("tries to set attributes where no StyleGAN2-ADA pickle does; refused")


def _storage(content: object) -> _Sealed:
    """A storage from its bytes, through the weights-only door."""
    if not isinstance(content, bytes):
        raise _RefusedError("a storage is not made of bytes; refused")
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _RefusedError(
            f"a storage inside holds code or objects ({refused_name(error)}); refused, nothing in it was run"
        ) from None
    if not isinstance(loaded, torch.storage.TypedStorage):
        raise _RefusedError(f"a storage inside is a {type(loaded).__name__}; refused")
    return _Sealed(loaded)


def _tensor(sealed: _Sealed, offset: int, size: Any, stride: Any, *_: object) -> _Sealed:
    """A tensor that lies within its storage; as_strided raises where it would not."""
    storage = sealed.value
    whole = torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)
    return _Sealed(whole.as_strided(tuple(size), tuple(stride), offset).clone())


def _parameter(data: object, *_: object) -> object:
    return data


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("builtins", "dict"): dict,
    ("builtins", "set"): set,
    ("collections", "OrderedDict"): dict,
    ("dnnlib.util", "EasyDict"): dict,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _Sealed(Inert.persistent),
    ("torch._utils", "_rebuild_tensor_v2"): _Sealed(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Sealed(_parameter),
    ("torch.storage", "_load_from_bytes"): _Sealed(_storage),
    ("torch", "Size"): tuple,
    ("torch", "device"): Inert,
    ("numpy", "dtype"): Inert,
    ("numpy", "ndarray"): Inert,
    **{
        (f"numpy.{core}.multiarray", name): _Sealed(Inert)
        for core in ("core", "_core")
        for name in ("scalar", "_reconstruct")
    },
}
"""What a name in the file stands for here."""


class _Unpickler(pickle.Unpickler):
    """Knows the names in `ALLOWED` and, as inert objects, torch's modules and number types; no others."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if module.startswith("torch.nn.modules.") and "." not in name:
            return Inert
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return Inert
        raise _RefusedError(
            f"holds code or objects that StyleGAN2-ADA pickles do not have ({module}.{name}); "
            "refused, nothing in it was run"
        )


def _entries(attributes: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of a module and those below it, by dotted name."""
    passing = attributes.get("_non_persistent_buffers_set") or set()
    for kind in ("_parameters", "_buffers"):
        for name, value in attributes.get(kind, {}).items():
            if isinstance(value, _Sealed) and isinstance(value.value, Tensor) and name not in passing:
                yield f"{prefix}{name}", value.value
    for name, child in attributes.get("_modules", {}).items():
        if isinstance(child, Inert):
            yield from _entries(child.attributes, f"{prefix}{name}.")


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    found = attributes.get("_init_kwargs")
    return found if isinstance(found, dict) else {}
