"""What verbs over many texts share: where these come from, and the Plan that is made for them."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from strata.cli.engine_options import read_text
from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.engine.texts import TextWorkload
    from strata.memory import Ledger
    from strata.plan import Workload
    from strata.text import Tokenizer

MOST_PARALLEL = 8
"""Texts that share a step: the weights are read once for all of them."""

Command = Callable[..., None]
Encode = Callable[["Tokenizer", str, "Ledger"], "array[int]"]

file_option: Callable[[Command], Command] = click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take each line of a file as a text.",
)


def asked_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """Those of the command line, else lines of a file, else of standard input."""
    if texts and file is not None:
        raise UsageError("give texts or --file, not both")
    asked = list(texts)
    if not asked:
        if file is None and sys.stdin.isatty():
            raise UsageError("give texts, --file, or lines on standard input")
        asked = read_text(file).splitlines()
    if not asked:
        raise UsageError("there is no text")
    if empty := [number for number, text in enumerate(asked, 1) if not text.strip()]:
        raise UsageError(f"text {empty[0]} is empty")
    return asked


class Encoded:
    """Ids of texts, made once: before the weights are there where a Plan is made for them.
    ``beside`` is a text that is encoded with each of them."""

    def __init__(self, texts: Sequence[str], encode: Encode, beside: str = "") -> None:
        self._texts, self._encode, self._beside = texts, encode, beside
        self._ids: list[array[int]] = []

    def ids(self, tokenizer: Tokenizer, ledger: Ledger) -> list[array[int]]:
        """Of all texts in turn."""
        if not self._ids:
            self._ids = [self._encode(tokenizer, text, ledger) for text in self._texts]
        return self._ids

    def workload(self) -> TextWorkload:
        """What a Plan is made for: no text has an answer."""
        from strata.engine.texts import TextWorkload, most_tokens

        most = [
            most_tokens(len((text + self._beside).encode("utf-8", "replace")))
            for text in self._texts
        ]

        def made(tokenizer: Tokenizer, ledger: Ledger) -> Workload:
            return _workload([len(each) for each in self.ids(tokenizer, ledger)])

        return TextWorkload(_workload(most), made)


def _workload(tokens: Sequence[int]) -> Workload:
    from strata.plan import Workload

    held = sum(tokens) * array("i").itemsize
    return Workload(max(tokens), answer_tokens=0, text_bytes=held)


def progress_line(quiet: bool) -> Callable[[int, int], None] | None:
    """Tells a terminal how many of the texts are done."""
    return None if quiet or not sys.stderr.isatty() else _show_progress


def _show_progress(done: int, count: int) -> None:
    click.echo(f"\r[{done}/{count}]\x1b[K", nl=done == count, err=True)
