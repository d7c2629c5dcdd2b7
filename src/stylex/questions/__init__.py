"""Questions that people bring: does it use this, for whom, why does it err, what changed between versions?"""

from __future__ import annotations
