"""Paths to what other rooms' tests share."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "tests" / part) for part in ("memory", "models")]
