"""What lies in a directory of KV: for people, who may pin it, delete it and bring it elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from strata.backends.base import KV_BLOCK
from strata.errors import UsageError
from strata.formats.errors import shown
from strata.kv.store import Entry, PrefixStore, header_of
from strata.kv.store_directory import StoreDirectory, StoreError, StoreFile
from strata.sizes import format_size

_LEAST_ID = 4
"""Letters of an id that a person has to type."""


@dataclass(frozen=True)
class Kept:
    """A file: ``tokens`` of one text from position ``first`` on (None where what comes before is
    gone, so that it is of no use), of the model and KV type that ``label`` names."""

    id: str
    label: str
    first: int | None
    tokens: int
    file: StoreFile


class StoreContents:
    """What was there when it was looked at. Files that are not right are left to those who use
    them."""

    def __init__(self, directory: StoreDirectory) -> None:
        self._directory = directory
        self._stores: dict[tuple[bytes, int], PrefixStore] = {}
        self._entries: dict[str, tuple[PrefixStore, Entry, StoreFile]] = {}
        self._where: dict[bytes, tuple[str, int]] = {}
        for file in directory.files():
            try:
                self._read(file)
            except (OSError, StoreError):
                continue

    def _read(self, file: StoreFile) -> None:
        identity, nbytes = header_of(self._directory, file.name)
        store = self._stores.setdefault(
            (identity, nbytes), PrefixStore(self._directory, identity, nbytes)
        )
        entry = store.check(file.name)
        self._entries[file.name] = store, entry, file
        for number, key in enumerate(entry.keys):
            self._where.setdefault(key, (file.name, number))

    def kept(self) -> list[Kept]:
        """All of it, the longest unused first."""
        return [
            Kept(_id(entry), entry.label, self._first(name), KV_BLOCK * len(entry.keys), file)
            for name, (_, entry, file) in self._entries.items()
        ]

    def _before(self, name: str) -> tuple[str, int] | None:
        """The file, and the block in it, behind which a file goes on; None where it begins a text
        or what comes before is gone."""
        _, entry, _ = self._entries[name]
        return self._where.get(entry.parent)

    def _first(self, name: str) -> int | None:
        first, seen = 0, {name}
        while (before := self._before(name)) is not None and before[0] not in seen:
            name, number = before
            first += number + 1
            seen.add(name)
        store, entry, _ = self._entries[name]
        return KV_BLOCK * first if entry.parent == store.identity else None

    def chosen(self, ids: Sequence[str]) -> list[str]:
        """Names of the files with these ids, or beginnings of them; all for none. UsageError."""
        if not ids:
            return list(self._entries)
        out = []
        for wanted in ids:
            found = [n for n, (_, e, _) in self._entries.items() if _id(e).startswith(wanted)]
            if len(wanted) < _LEAST_ID or len(found) != 1:
                how = "is not enough to tell" if found else "is of none"
                raise UsageError(
                    f"{shown(wanted)} {how} of the {len(self._entries)} entries: `strata store "
                    "list` has their ids"
                )
            out += found
        return list(dict.fromkeys(out))

    def with_beginnings(self, names: Iterable[str]) -> list[str]:
        """These files and those that their texts begin with, without which they are of no use."""
        out: dict[str, None] = {}
        for name in names:
            chain, at = [name], self._before(name)
            while at is not None and at[0] not in chain and at[0] not in out:
                chain.append(at[0])
                at = self._before(at[0])
            out.update(dict.fromkeys(reversed(chain)))
        return list(out)

    def pin(self, names: Iterable[str], pinned: bool) -> list[str]:
        """Have files stay, or no longer; those that it was done with."""
        return [name for name in names if self._tried(name, pinned)]

    def _tried(self, name: str, pinned: bool) -> bool:
        try:
            self._directory.pin(name, pinned)
        except FileNotFoundError:
            return False
        store, entry, file = self._entries[name]
        self._entries[name] = store, entry, replace(file, pinned=pinned)
        return True

    def clear(self, names: Iterable[str]) -> list[str]:
        """Delete files; their names. With all of them goes whatever else the store has written."""
        out = list(names)
        if out == list(self._entries):
            self._directory.clear()
        for name in out:
            self._directory.delete(name)
        return out

    def move(self, names: Iterable[str], target: StoreDirectory) -> list[str]:
        """Bring files to another directory and delete them here; those that are there now.
        StoreError where one is damaged or the other directory has no room."""
        done, names = [], list(names)
        if os.path.samefile(self._directory.path, target.path):
            raise UsageError(f"{target.path} is where they are")
        # Together, so that none is deleted there for the next one.
        nbytes = sum(self._entries[name][2].nbytes for name in names)
        pinned = sum(file.nbytes for file in target.files() if file.pinned)
        full = StoreError(
            f"{target.path} has no room for {format_size(nbytes)} more in "
            f"{format_size(target.limit)}: give a larger --kv-store-size"
        )
        if nbytes + pinned > target.limit:
            raise full
        for name in names:
            store, entry, file = self._entries[name]
            if not store.copy(entry, target):
                raise full
            if file.pinned:
                target.pin(entry.name_in(target, store.identity), True)
            self._directory.delete(name)
            done.append(name)
        return done


def _id(entry: Entry) -> str:
    return entry.keys[-1].hex()[:12]
