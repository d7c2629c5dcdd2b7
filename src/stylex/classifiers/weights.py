"""Files of weights that other programs wrote: a state dict, read without running any code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from stylex.errors import CheckpointError

NESTED = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts put the weights."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or from a PyTorch file that holds tensors only.

    Raises:
        CheckpointError: missing, damaged, or with anything but tensors in it; no code in it is run.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        try:
            content: Any = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError):
            raise CheckpointError(f"{path}: not a whole safetensors file") from None
        return _without_wrapper(content)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{path}: damaged, or holds code rather than weights alone; "
            f"save model.state_dict() and give that file"
        ) from None
    for key in NESTED:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no state dict; save model.state_dict() and give that file")
    return _without_wrapper(content)


def _without_wrapper(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights without the prefix that DataParallel puts before every name."""
    return {str(key).removeprefix("module."): value for key, value in weights.items()}
