"""A machine for processes that tests start: one measured while busy decides other Plans.

Waking threads that share their cores takes many times as long. A Plan then prefers large steps to
weights that stay, and what streams in a budget changes from one probe to the next.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from strata.backends.cpu.host import available_isas
from strata.machine import probe
from strata.machine.doubts import Doubts

MACHINE = Path(__file__).resolve().parent / "machines" / "server.json"


def know_a_machine(monkeypatch: pytest.MonkeyPatch, home: Path, model: Path) -> None:
    """Children of this process take ``MACHINE`` for the one that they run on."""
    machine = replace(probe.load_machine(MACHINE), isa=available_isas()[0], cores=2)
    monkeypatch.setenv("STRATA_HOME", str(home))
    # However far from it runs are.
    probe._remember(probe._fingerprint(model), machine, Doubts(settled=True))
    assert probe.known_machine(model) is not None
