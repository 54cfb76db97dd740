"""``strata store``: what is kept of KV on disk."""

from __future__ import annotations

import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from strata.cli.console import print_json, print_table
from strata.cli.options import SIZE, json_option
from strata.errors import StrataError, UsageError
from strata.sizes import format_size

if TYPE_CHECKING:
    from strata.kv.store_contents import Kept, StoreContents

_ACTIONS = ("list", "lookup", "pin", "unpin", "compress", "clear", "move")
_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("store")
@click.argument("action", type=click.Choice(_ACTIONS), default="list")
@click.argument("entries", nargs=-1, metavar="[ENTRY]...")
@click.option("--kv-store", type=_FOLDER, help="The store (default: kv in Strata's own folder).")
@click.option("--to", type=_FOLDER, help="The store to move entries to.")
@click.option(
    "--kv-store-size",
    type=SIZE,
    default="4GiB",
    show_default=True,
    help="Most disk space for the store of --to.",
)
@click.option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The text to look up, a file in UTF-8.",
)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def command(
    action: str,
    entries: tuple[str, ...],
    kv_store: Path | None,
    to: Path | None,
    kv_store_size: int,
    text: Path | None,
    yes: bool,
    as_json: bool,
) -> None:
    """List what --kv-store keeps of prompts, have it stay, take less room, go, or lie elsewhere.

    An ENTRY is an id of the list, or the beginning of one; without any all are meant. What is
    pinned stays when others are deleted for want of room, with what its text begins with. What is
    compressed is the same to the bit, and takes longer to load. Servers that run on the store see
    what changes.

    `strata store lookup MODEL --text FILE` says how much of a text is kept, as a prompt that begins
    with it and, where the model has a chat template, as a chat.
    """
    from strata.hub.downloads import strata_home
    from strata.kv.store_contents import StoreContents
    from strata.kv.store_directory import StoreDirectory

    where = strata_home() / "kv" if kv_store in (None, Path("default")) else kv_store
    assert where is not None
    if (to is not None) != (action == "move"):
        raise UsageError("--to is where `strata store move` brings entries")
    if (text is not None) != (action == "lookup"):
        raise UsageError("--text is what `strata store lookup MODEL` looks for")
    if not where.is_dir():
        raise UsageError(f"there is no KV store at {where}")
    directory = StoreDirectory(where, 0)
    contents = StoreContents(directory)
    if text is not None:
        if len(entries) != 1:
            raise UsageError("give the model whose tokens the text is made of")
        _lookup(contents, entries[0], text, as_json)
        return
    chosen = contents.chosen(entries)
    if action == "list":
        _list(contents, set(chosen), as_json)
        return
    if action == "pin":
        done = contents.pin(contents.with_beginnings(chosen), True)
    elif action == "unpin":
        done = contents.pin(chosen, False)
    elif action == "compress":
        before = {k.id: k.file.nbytes for k in contents.kept()}
        done = contents.compress(chosen)
    elif action == "clear":
        _ask(contents, chosen, yes)
        done = contents.clear(chosen, everything=not entries)
    else:
        assert to is not None
        done = contents.move(contents.with_beginnings(chosen), StoreDirectory(to, kv_store_size))
    names = set(done)
    changed = [k for k in contents.kept() if k.file.name in names]
    nbytes = sum(k.file.nbytes for k in changed)
    saved = sum(before[k.id] for k in changed) - nbytes if action == "compress" else 0
    if as_json:
        found: dict[str, Any] = {"action": action, "entries": [k.id for k in changed]}
        found |= {"bytes": nbytes, **({"saved_bytes": saved} if action == "compress" else {})}
        print_json(found)
        return
    what = {"pin": "pinned", "unpin": "unpinned", "clear": "deleted", "move": "moved"}
    click.echo(
        f"{what.get(action, 'compressed')} {len(changed)} entries, {format_size(nbytes)}"
        + (f", {format_size(saved)} less" if action == "compress" else "")
    )


def _lookup(contents: StoreContents, model: str, text: Path, as_json: bool) -> None:
    from strata.cli.engine_options import read_text
    from strata.engine.texts import chat_ids, prompt_ids
    from strata.formats import open_model
    from strata.hub.references import resolve
    from strata.memory import Ledger
    from strata.text import load_tokenizer

    said = read_text(text)
    with open_model(resolve(model)) as opened:
        tokenizer = load_tokenizer(opened)
    ways = {"text": prompt_ids(tokenizer, said, Ledger()).tolist()}
    if tokenizer.chat_templates:
        # As `strata run -f` has it.
        asked = [{"role": "user", "content": said.rstrip("\r\n")}]
        ways["chat"] = chat_ids(tokenizer, asked, Ledger()).tolist()
    found: list[dict[str, Any]] = [
        {"model": label, "as": way, "tokens": len(ids), "kept": kept}
        for way, ids in ways.items()
        for label, kept in contents.lookup(ids).items()
    ]
    if as_json:
        print_json({"found": found})
        return
    print_table(
        ("MODEL", "AS", "KEPT"),
        [(f["model"] or "-", f["as"], f"{f['kept']} of {f['tokens']} tokens") for f in found],
    )


def _list(contents: StoreContents, chosen: set[str], as_json: bool) -> None:
    kept = [k for k in contents.kept() if k.file.name in chosen]
    if as_json:
        print_json({"entries": [_said(k) for k in kept]})
        return
    print_table(
        ("ID", "MODEL", "TOKENS", "SIZE", "USED", "PINNED", "COMPRESSED"),
        [
            (
                k.id,
                k.label or "-",
                "no beginning" if k.first is None else f"{k.first}-{k.first + k.tokens}",
                format_size(k.file.nbytes),
                _time(k)[:16].replace("T", " "),
                "yes" if k.file.pinned else "-",
                "yes" if k.compressed else "-",
            )
            for k in kept
        ],
    )


def _said(kept: Kept) -> dict[str, Any]:
    return {
        "id": kept.id,
        "model": kept.label,
        "first": kept.first,
        "tokens": kept.tokens,
        "bytes": kept.file.nbytes,
        "used": _time(kept),
        "age_s": kept.age_s,
        "pinned": kept.file.pinned,
        "compressed": kept.compressed,
    }


def _time(kept: Kept) -> str:
    return datetime.fromtimestamp(kept.file.used, tz=timezone.utc).isoformat(timespec="seconds")


def _ask(contents: StoreContents, chosen: list[str], yes: bool) -> None:
    if yes or not chosen:
        return
    names = set(chosen)
    nbytes = sum(k.file.nbytes for k in contents.kept() if k.file.name in names)
    what = f"{len(chosen)} entries ({format_size(nbytes)})"
    if not sys.stdin.isatty():
        raise UsageError(f"this deletes {what}; say --yes to do it")
    if not click.confirm(f"delete {what}?", err=True):
        raise StrataError("nothing was deleted")
