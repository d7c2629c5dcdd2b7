"""The replication study again (Bosch et al. 2022): one module a table or figure, one command an item."""

from __future__ import annotations
