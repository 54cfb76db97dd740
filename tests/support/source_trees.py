"""What the modules of the package say, parsed once for the tests that look at all of them."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src" / "strata"


@cache
def trees() -> dict[Path, ast.Module]:
    """By the path of the module."""
    return {path: ast.parse(path.read_text()) for path in sorted(SOURCE.rglob("*.py"))}
