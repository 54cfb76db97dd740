"""A command line of Strata: in this process, which is quick, or in one of its own."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from unittest.mock import patch

from strata.cli import main


def strata(*args: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Where memory is counted, in a process of its own: this one has that of other tests."""
    if "--memory" in args:
        command = [sys.executable, "-m", "strata", *args]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=240)
    given = io.TextIOWrapper(io.BytesIO(stdin.encode()))
    out, err = (io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2))
    with patch.object(sys, "stdin", given), redirect_stdout(out), redirect_stderr(err):
        code = main(args)
    said = [stream.buffer.getvalue().decode() for stream in (out, err)]  # type: ignore[attr-defined]
    return subprocess.CompletedProcess(args, code, *said)
