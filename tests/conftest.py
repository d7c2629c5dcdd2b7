"""One thread a process: tests run beside each other, and threads would wait for each other."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Iterator

import pytest
import torch

from browsing import browser, visit

torch.set_num_threads(1)

__all__ = ["browser", "visit"]
"""Fixtures for all tests."""

collect_ignore = ["make_tensorflow_models.py"]
"""Made the test data once; it needs TensorFlow."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Choosing hardware sets the threads for the whole process; results depend on them bit for bit."""
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)
