"""What a ward may take, and how it is told to the system."""

from __future__ import annotations

import contextlib
import math
import resource
import signal
from pathlib import Path

TEMPLATE_BYTES = 16 << 20
TEMPLATE_BYTES_LEAST = 8 << 20
TEMPLATE_BYTES_EACH = 8
"""Memory for rendering a template, the least of it where there is little, and more for each byte of
what it is given."""

TEMPLATE_CHARACTERS = 1 << 18
"""Characters that a template may write beyond ``TEMPLATE_BYTES_EACH`` for each byte that it is
given."""

TEMPLATE_S = 2.0
"""Processor time of a rendering."""

GRAMMAR_BYTES = 6 << 20
"""Memory of a compiled grammar with all answers that obey it."""

FORCED_BYTES = 1 << 14
"""Of a text that a grammar forces, which is encoded in this process."""

FORCED_TOKENS = 32
"""Of a text that a grammar forces, told with a mask to guess by."""

COMPILE_S = 1.0
MASK_S = 0.1
"""Processor time for compiling a grammar, and for a step of it."""

MASKS_S = 0.5
MASK_EACH_S = 0.005
"""Processor time for all steps of a grammar, and more for each: a step of the engine waits for
those of all its requests."""

GRAMMARS = 4
"""Compiled grammars that there may be at once."""

PATIENCE = 50
"""A ward is ended when a job takes so many times its processor time, which the system holds it to:
the machine may be busy, and wards come after all others."""


NURSERY = 7_500_000
"""Bytes of the process that forks wards: an interpreter. What follows was measured as anonymous
memory and that of files which no other process of ours maps, with a tenth or more for margin."""

TEMPLATES = 6_000_000
"""What it takes more from the first template on: jinja2."""

TEMPLATE_WARD = 5_000_000
GRAMMAR_WARD = 3_500_000
"""What a ward copies of the nursery, beside what it may take by itself."""

LIBRARY = 7_000_000
LIBRARY_TOKEN = 540
"""What the nursery takes more from the first grammar on: the library, and for each token of a
vocabulary (1.05 times what it keeps, which is what building takes at most)."""


def vocabulary_bytes(tokens: int) -> int:
    """What the nursery takes for grammars over a vocabulary."""
    return LIBRARY + LIBRARY_TOKEN * tokens


def template_bytes(size: int, most: int = TEMPLATE_BYTES) -> int:
    """Memory for rendering a template that is given ``size`` bytes, where ``most`` are those for
    a short conversation."""
    return most + TEMPLATE_BYTES_EACH * size


def template_characters(size: int) -> int:
    """Characters that it may write."""
    return TEMPLATE_CHARACTERS + TEMPLATE_BYTES_EACH * size


_held_at_first: int | None = None


def confine(nbytes: int) -> None:
    """Let this process take ``nbytes`` more memory than it has, and nothing of the disk."""
    global _held_at_first
    _held_at_first = _data_bytes()
    _lower(resource.RLIMIT_FSIZE, 0)
    allow_memory(nbytes)


def allow_memory(nbytes: int) -> None:
    """Let this process have ``nbytes`` more than it had when it was confined."""
    if _held_at_first is not None:
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        most = _held_at_first + nbytes
        if hard != resource.RLIM_INFINITY:
            most = min(most, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (most, hard))


def allow_time(seconds: float) -> None:
    """End this process when it has computed for ``seconds`` more."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    # Should the timer be caught by somebody: the system ends the process by itself.
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _lower(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (value, value))


def _data_bytes() -> int | None:
    """Private writable memory of this process, as RLIMIT_DATA counts it (Linux)."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return None
    lines = (line for line in text.splitlines() if line.startswith("VmData:"))
    return next((int(line.split()[1]) * 1024 for line in lines), None)
