"""Files of tests: those that want the machine for themselves say so, and no two have one name."""

from __future__ import annotations

import re
from collections import Counter
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


def test_no_two_files_have_one_name() -> None:
    """They are modules of one namespace: all but the first could not be imported."""
    names = Counter(path.name for path in TESTS.glob("*/test_*.py"))
    assert [name for name, count in names.items() if count > 1] == []
