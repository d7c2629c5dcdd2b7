"""The soak script in a short form; `python scripts/soak.py --kills 50` is the long one."""

from __future__ import annotations

from pathlib import Path

from script_files import load_script


def test_three_kills_lose_nothing(tmp_path: Path) -> None:
    soak = load_script("soak")
    found = soak.soak(tmp_path, kills=3, recipe="fast", seed=7)
    assert found.failures == []
    assert (found.kills, found.identical) == (3, True)
    assert found.worst_lost_steps <= found.checkpoint_interval_steps
