"""``python -m strata`` is the ``strata`` command."""

from __future__ import annotations

# Modules that Python itself has begun with: an interrupt here would be a traceback.
import os
import sys


def run() -> None:
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
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue
    if guarded := sys.modules.get("strata.guard.nursery"):
        guarded.nursery().close()
    os._exit(code)


if __name__ == "__main__":
    run()
