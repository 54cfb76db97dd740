"""The ``strata`` command: runs one verb and turns every ending into an exit code and one line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from strata.cli.failures import report
from strata.cli.verbs import root


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's own) and return its exit code.

    0 done; 1 the work failed; 2 wrong usage; 130 interrupted; 141 the reader of standard output
    went away; 143 terminated, where a command works for long. A failure is one line on standard
    error; with ``--json`` it is also one object ``{"error": {"type", "message"}}`` on standard
    output.
    """
    _open_standard_streams()
    if "_STRATA_COMPLETE" in os.environ:
        root.main(prog_name="strata")
    # Not list(): once that verb is imported, the name `list` in this package is its module.
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    try:
        with root.make_context("strata", arguments[:]) as context:
            root.invoke(context)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        return report(error, as_json="--json" in arguments)
    return 0


def _open_standard_streams() -> None:
    # Python has None for a stream that the caller closed. All three are opened, in the order of
    # their numbers: a file opened later would get the number, and with it what is meant for them.
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            nothing = os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8")
            setattr(sys, name, nothing)
