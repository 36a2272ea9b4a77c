"""The cache of windows that `hear_orders` writes and `make_order_data` reads: JSON lines that a kill may cut off."""

from __future__ import annotations

import json
from pathlib import Path


def read_cache(path: Path) -> list[dict]:
    """The whole lines of a cache, [] where there is none; a line that a kill cut off is left out."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
