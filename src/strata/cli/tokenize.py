"""``strata tokenize``: text to token ids. No weights are read."""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import click

from strata.cli.console import printable, progress_bars
from strata.cli.engine_options import read_text
from strata.cli.options import json_option, model_argument, quiet_option
from strata.errors import UsageError
from strata.sizes import format_size

_TOGETHER = 1 << 12


@click.command("tokenize")
@model_argument
@click.argument("text", required=False)
@click.option(
    "--file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the text from a file.",
)
@click.option("--add-special", is_flag=True, help="Add the tokens that begin and end a prompt.")
@click.option("--parse-special", is_flag=True, help="Read names of special tokens as tokens.")
@click.option("--pieces", is_flag=True, help="Show the text of every token too.")
@quiet_option
@json_option
def command(
    model: str,
    text: str | None,
    file: Path | None,
    add_special: bool,
    parse_special: bool,
    pieces: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Print the token ids of TEXT, of a file, or of standard input (also for -), just as it is."""
    if text is not None and file is not None:
        raise UsageError("give a text or --file, not both")
    if text is None or text == "-":
        if file is None and sys.stdin.isatty():
            raise UsageError("give a text, --file, or text on standard input")
        text = read_text(file)

    from strata.formats import open_model
    from strata.hub.references import resolve
    from strata.memory import process_memory
    from strata.memory.limits import memory_available
    from strata.text import load_tokenizer

    with progress_bars(silent=quiet) as progress:
        path = resolve(model, progress=progress)
    with open_model(path) as opened:
        tokenizer = load_tokenizer(opened)
    # A stretch that cannot be cut takes many times what it is long, and here is no budget.
    working = tokenizer.working_bytes(text)
    free = memory_available() - process_memory().total
    if working > free > 0:
        raise UsageError(
            f"a stretch of the text that cannot be cut takes {format_size(working)} to encode, and "
            f"{format_size(free)} are free: break it into lines or words"
        )
    # A long text has many tokens: they are printed as they come, and not held.
    parts = tokenizer.encode_parts(text, add_special=add_special, parse_special=parse_special)
    ids = chain.from_iterable(parts)

    def shown(id: int) -> str:
        # A token may hold half a character: its bytes are shown as \xNN.
        return tokenizer.token_bytes(id, special=True).decode("utf-8", "backslashreplace")

    if as_json:
        # All of them first: an error must not come in the middle of the object.
        held = array("i", ids)
        _print_list('{"ids": ', held, int)
        if pieces:
            _print_list(', "pieces": ', held, shown)
        click.echo("}")
    elif pieces:
        for id in ids:
            click.echo(f"{id:>7}  {printable(shown(id))}")
    else:
        for number, id in enumerate(ids):
            click.echo(f" {id}" if number else str(id), nl=False)
        click.echo()


def _print_list(before: str, ids: Sequence[int], shown: Callable[[int], Any]) -> None:
    """Print a list as JSON does, some of it at a time."""
    click.echo(f"{before}[", nl=False)
    for start in range(0, len(ids), _TOGETHER):
        part = json.dumps([shown(id) for id in ids[start : start + _TOGETHER]])
        click.echo(f"{', ' if start else ''}{part[1:-1]}", nl=False)
    click.echo("]", nl=False)
