"""Printing an answer while it comes."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from strata.cli.console import counted, remark
from strata.cli.engine_options import memory_report
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.llm import LLM, Chunk, Output

# Control characters but for tab and newline: a model's words must not steer the terminal.
_CONTROL = {c: None for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"}


def print_answer(chunks: Iterator[Chunk], *, silent: bool = False) -> Output:
    """Print text as it comes and a newline at the end, also when interrupted; ``silent``: nothing.

    Returns the whole answer.
    """
    printed = ""
    output: Output | None = None
    out = sys.stdout
    if isinstance(out, io.TextIOWrapper):
        # A terminal that cannot show a character shows a question mark.
        out.reconfigure(errors="replace")
    try:
        for chunk in chunks:
            output = chunk.output
            if chunk.text and not silent:
                printed = chunk.text.translate(_CONTROL) if out.isatty() else chunk.text
                out.write(printed)
                out.flush()
    finally:
        if not silent and (printed or output) and not printed.endswith("\n"):
            out.write("\n")
            out.flush()
    assert output is not None, "an answer has a last chunk"
    return output


def print_stats(llm: LLM, answer: Output) -> None:
    """One line about an answer on standard error."""
    timings = answer.timings
    remark(
        f"prompt {counted(answer.prompt_tokens, 'token')}{_rate(timings.prefill_tok_s)}, "
        f"answer {counted(len(answer.token_ids), 'token')}{_rate(timings.decode_tok_s)}, "
        f"first token after {timings.ttft_s or 0:.2f} s, loaded in {llm.load_s:.2f} s, "
        f"peak memory {format_size(memory_report()['peak_bytes'])}"
    )


def _rate(tok_s: float | None) -> str:
    return "" if tok_s is None else f" at {tok_s:.1f} tok/s"
