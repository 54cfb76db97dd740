"""Some of the requests that `bench/fuzz_requests.py` sends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")
pytest.importorskip("uvicorn", reason="the extra strata-llm[server] is not installed")
pytestmark = pytest.mark.slow

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's accounts")
def test_requests_end_in_an_answer_or_an_error_of_the_clients(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    script = str(BENCH / "fuzz_requests.py")
    command = [sys.executable, script, "--requests", "600", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert out.exists(), done.stderr
    told = json.loads(out.read_text())
    assert told["not_allowed"] == []
    assert told["server_alive"]
    assert told["batches_that_do_not_end"] == 0
    assert told["statuses"]["200"] > 50
    assert told["statuses"]["400"] > 50
