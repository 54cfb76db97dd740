"""A server in a memory control group of its budget: whatever is asked, it lives and keeps it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from at_the_bounds import ANSWERS, CHAT, PATH, REQUESTS, ask, ask_together, encoded
from cgroups import group, why_not

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")

REASON = why_not()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
@pytest.mark.parametrize("megabytes", [300, 360])
def test_eight_clients_at_the_bounds(smollm2_path: Path, megabytes: int) -> None:
    sizes = ("--memory", f"{megabytes}MB", "--context", "2048", "--parallel", "2")
    command = [sys.executable, "-m", "strata", "serve", str(smollm2_path), "--alias", "it"]
    with group(megabytes * 10**6) as made:
        process = made.start([*command, "--port", "0", "--threads", "2", *sizes])
        try:
            assert process.stderr is not None
            lines = [process.stderr.readline()]
            while lines[-1] and not lines[-1].startswith("listening at http://"):
                lines.append(process.stderr.readline())
            assert lines[-1], lines
            url = lines[-1].split()[2]
            for path, body in REQUESTS:
                data = encoded(body)
                answers = ask_together(url, path, data)
                assert process.poll() is None, f"killed by {path} of {len(data)} bytes"
                assert set(answers) <= ANSWERS, (path, len(data), answers)
            peak = vm_peak(process.pid)
            # What is asked last is served as ever.
            assert ask(url, PATH, encoded(CHAT)) == 200
        finally:
            process.terminate()
            process.communicate(timeout=60)
        assert peak <= megabytes * 10**6


def vm_peak(pid: int) -> int:
    """The most bytes that were ever resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
