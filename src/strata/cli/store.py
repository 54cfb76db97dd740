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

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command("store")
@click.argument(
    "action", type=click.Choice(["list", "pin", "unpin", "clear", "move"]), default="list"
)
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
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def command(
    action: str,
    entries: tuple[str, ...],
    kv_store: Path | None,
    to: Path | None,
    kv_store_size: int,
    yes: bool,
    as_json: bool,
) -> None:
    """List what --kv-store keeps of prompts, have it stay, delete it, or bring it elsewhere.

    An ENTRY is an id of the list, or the beginning of one; without any all are meant. What is
    pinned stays when others are deleted for want of room, with what its text begins with. Servers
    that run on the store see what changes.
    """
    from strata.hub.downloads import strata_home
    from strata.kv.store_contents import StoreContents
    from strata.kv.store_directory import StoreDirectory

    where = strata_home() / "kv" if kv_store in (None, Path("default")) else kv_store
    assert where is not None
    if (to is not None) != (action == "move"):
        raise UsageError("--to is where `strata store move` brings entries")
    if not where.is_dir():
        raise UsageError(f"there is no KV store at {where}")
    directory = StoreDirectory(where, 0)
    contents = StoreContents(directory)
    chosen = contents.chosen(entries)
    if action == "list":
        _list(contents, set(chosen), as_json)
        return
    if action == "pin":
        done = contents.pin(contents.with_beginnings(chosen), True)
    elif action == "unpin":
        done = contents.pin(chosen, False)
    elif action == "clear":
        _ask(contents, chosen, yes)
        done = contents.clear(chosen, everything=not entries)
    else:
        assert to is not None
        done = contents.move(contents.with_beginnings(chosen), StoreDirectory(to, kv_store_size))
    names = set(done)
    changed = [k for k in contents.kept() if k.file.name in names]
    nbytes = sum(k.file.nbytes for k in changed)
    if as_json:
        print_json({"action": action, "entries": [k.id for k in changed], "bytes": nbytes})
        return
    what = {"pin": "pinned", "unpin": "unpinned", "clear": "deleted", "move": "moved"}[action]
    click.echo(f"{what} {len(changed)} entries, {format_size(nbytes)}")


def _list(contents: StoreContents, chosen: set[str], as_json: bool) -> None:
    kept = [k for k in contents.kept() if k.file.name in chosen]
    if as_json:
        print_json({"entries": [_said(k) for k in kept]})
        return
    print_table(
        ("ID", "MODEL", "TOKENS", "SIZE", "USED", "PINNED"),
        [
            (
                k.id,
                k.label or "-",
                "no beginning" if k.first is None else f"{k.first}-{k.first + k.tokens}",
                format_size(k.file.nbytes),
                _time(k)[:16].replace("T", " "),
                "yes" if k.file.pinned else "-",
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
        "pinned": kept.file.pinned,
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
