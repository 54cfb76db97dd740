"""Long tests that want the machine for themselves say so, or they would disturb each other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
QUIET = re.compile(r"^from (cgroups|support\.browser) import ", re.MULTILINE)
"""Control groups of a size, and a browser."""


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(TESTS.glob("*/test_*.py")) if QUIET.search(path.read_text())],
    ids=lambda path: str(path.stem),
)
def test_groups_and_browsers_are_alone(path: Path) -> None:
    assert "pytest.mark.alone" in path.read_text(), f"{path} lacks the mark 'alone'"
