"""``python -m strata`` is the ``strata`` command."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn


def run() -> NoReturn:
    """Run the command and end the process: all is closed by then, and taking a vocabulary and its
    merges apart object by object would only delay the prompt of the shell."""
    try:
        from strata.cli import main

        code = main()
    except KeyboardInterrupt:
        # Before or after the command had its turn to say so.
        code = 130
    for stream in (sys.stdout, sys.stderr):
        # Whoever has read enough was answered by the exit code; a closed stream is None.
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    run()
