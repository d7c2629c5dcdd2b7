"""The programs in scripts/, loaded as modules: they are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).parent.parent / "scripts"


def load_script(name: str) -> Any:
    """The module of scripts/NAME.py."""
    spec = importlib.util.spec_from_file_location(name, HOME / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
