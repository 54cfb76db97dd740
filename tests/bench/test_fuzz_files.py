"""Some of the attacks on the files beside the weights that `bench/fuzz_files.py` makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's accounts")
def test_attacks_end_in_an_answer_or_a_named_error(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, str(BENCH / "fuzz_files.py"), "--attacks", "40", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr
    told = json.loads(out.read_text())
    assert told["not_allowed"] == []
    assert told["endings"]["answer"] > 2
    assert told["endings"]["error"] > 10
