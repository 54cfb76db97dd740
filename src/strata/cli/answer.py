"""Printing an answer while it comes."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from strata.cli.console import counted, remark
from strata.cli.engine_options import memory_report
from strata.cli.word_wrap import WordWrap
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.answers import Chunk, Output
    from strata.decode import SamplingParams
    from strata.llm import LLM

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
    on_terminal = out.isatty()
    wrap = None
    if on_terminal and os.environ.get("TERM", "dumb") != "dumb":
        wrap = WordWrap(shutil.get_terminal_size().columns)
    try:
        for chunk in chunks:
            output = chunk.output
            if chunk.text and not silent:
                printed = chunk.text.translate(_CONTROL) if on_terminal else chunk.text
                out.write(wrap.feed(printed) if wrap is not None else printed)
                out.flush()
    finally:
        if not silent and (printed or output) and not printed.endswith("\n"):
            out.write("\n")
            out.flush()
    assert output is not None, "an answer has a last chunk"
    return output


def why_cut(llm: LLM, params: SamplingParams) -> str:
    """A line on an answer that was cut for its length."""
    if params.max_tokens is not None:
        return f"(cut off after {counted(params.max_tokens, 'token')}, as --max-tokens says)"
    return f"(cut off: the context of {llm.context} positions is full; see --context)"


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
