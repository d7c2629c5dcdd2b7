"""The soak script in a short form; `python scripts/soak.py --kills 50` is the long one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "soak.py"


def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    soak = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = soak
    spec.loader.exec_module(soak)
    found = soak.soak(tmp_path, kills=3, recipe="fast", seed=7)
    assert found.failures == []
    assert (found.kills, found.identical) == (3, True)
    assert found.worst_lost_steps <= found.checkpoint_interval_steps
