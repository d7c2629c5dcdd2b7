"""Is the explanation true? Flip rates, intervals, image quality, ground truth."""

from __future__ import annotations
