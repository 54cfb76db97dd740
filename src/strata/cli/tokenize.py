"""``strata tokenize``: text to token ids. No weights are read."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from strata.cli.console import print_json, printable, progress_bars
from strata.cli.engine_options import read_text
from strata.cli.options import json_option, model_argument, quiet_option
from strata.errors import UsageError


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
    from strata.text import load_tokenizer

    with progress_bars(silent=quiet) as progress:
        path = resolve(model, progress=progress)
    with open_model(path) as opened:
        tokenizer = load_tokenizer(opened)
    ids = tokenizer.encode(text, add_special=add_special, parse_special=parse_special)
    # A token may hold half a character: its bytes are shown as \xNN.
    shown = [
        tokenizer.token_bytes(i, special=True).decode("utf-8", "backslashreplace") for i in ids
    ]
    if as_json:
        print_json({"ids": ids, **({"pieces": shown} if pieces else {})})
    elif pieces:
        for id, piece in zip(ids, shown, strict=True):
            click.echo(f"{id:>7}  {printable(piece)}")
    else:
        click.echo(" ".join(map(str, ids)))
