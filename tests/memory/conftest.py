"""Paths to what other rooms' tests share: runs of whole models, and tiny ones."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT / "tools"), str(_ROOT / "tests" / "models")]
