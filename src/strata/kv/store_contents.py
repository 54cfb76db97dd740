"""What lies in a directory of KV: for people, who may pin it, delete it and bring it elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK
from strata.errors import UsageError
from strata.formats.errors import shown
from strata.kv.store import Entry, PrefixStore, block_keys, header_of
from strata.kv.store_directory import StoreDirectory, StoreError, StoreFile
from strata.records import dataclass
from strata.sizes import format_size

_LEAST_ID = 4
"""Letters of an id that a person has to type."""

_FILE_BYTES, _BLOCK_BYTES = 2000, 1200
"""Of what is known of a file, and of a block: its tokens, its header's bytes, keys and digests."""


@dataclass(frozen=True)
class Kept:
    """A file: ``tokens`` of one text from position ``first`` on, of the model and KV type that
    ``label`` names. ``first`` is None where what comes before is not there: layers with a window or
    a state do without, others cannot use it."""

    id: str
    label: str
    first: int | None
    tokens: int
    file: StoreFile

    @property
    def compressed(self) -> bool:
        """Whether it takes less room than it did."""
        return self.file.name.endswith(".kvz")

    @property
    def age_s(self) -> int:
        """Seconds since it was used."""
        return max(0, round(time.time() - self.file.used))


class StoreContents:
    """What was there when it was looked at, of all models or of those with ``identities``. Files
    that are not right are left to those who use them."""

    def __init__(
        self, directory: StoreDirectory, identities: Collection[bytes] | None = None
    ) -> None:
        self._directory = directory
        self._of = identities
        self._stores: dict[tuple[bytes, int], PrefixStore] = {}
        self._entries: dict[str, tuple[PrefixStore, Entry, StoreFile]] = {}
        self._where: dict[bytes, tuple[str, int]] = {}
        self._identities: dict[str, dict[bytes, None]] = {}
        """By label: one for each kind of layers."""
        for file in directory.files():
            try:
                self._read(file)
            except (OSError, StoreError):
                continue

    def _read(self, file: StoreFile) -> None:
        identity, nbytes, _ = header_of(self._directory, file.name)
        if self._of is not None and identity not in self._of:
            return
        store = self._stores.setdefault(
            (identity, nbytes), PrefixStore(self._directory, identity, nbytes)
        )
        entry = store.check(file.name)
        self._entries[file.name] = store, entry, file
        self._identities.setdefault(entry.label, {})[identity] = None
        for number, key in enumerate(entry.keys):
            self._where.setdefault(key, (file.name, number))

    def kept(self) -> list[Kept]:
        """All of it, the longest unused first."""
        out = []
        for name, (_, entry, file) in self._entries.items():
            text = self._text(name)
            first = sum(map(len, text[:-1])) if text else None
            out.append(Kept(_id(entry), entry.label, first, KV_BLOCK * len(entry.keys), file))
        return out

    def _text(self, name: str) -> list[NDArray[np.int32]]:
        """Tokens up to the end of a file, of each file those that are read; none where what comes
        before is gone."""
        parts, seen, end = list[NDArray[np.int32]](), set[str](), None
        while name not in seen:
            seen.add(name)
            store, entry, _ = self._entries[name]
            parts.append(entry.tokens[:end])
            if entry.parent == store.identity:
                return parts[::-1]
            if entry.parent not in self._where:
                break
            name, number = self._where[entry.parent]
            end = (number + 1) * KV_BLOCK
        return []

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
        """These files and those without which they are of no use: what their texts begin with, and
        what other layers keep of the same texts."""
        out: dict[str, None] = {}
        for name in names:
            if name in out:
                continue
            label, text = self._entries[name][1].label, self._text(name)
            tokens = np.concatenate(text).tolist() if text else []
            for identity in self._identities[label]:
                for key in block_keys(identity, tokens):
                    if key in self._where:
                        out[self._where[key][0]] = None
            out[name] = None
        return list(out)

    def lookup(self, tokens: Sequence[int]) -> dict[str, int]:
        """How many of ``tokens``, from the first, are kept, by label; of layers with a window or a
        state the label has what the others keep. None where there is nothing."""
        out: dict[str, int] = {}
        for label, identities in self._identities.items():
            for identity in identities:
                count = 0
                for key in block_keys(identity, tokens):
                    if key not in self._where:
                        break
                    count += KV_BLOCK
                if count:
                    out[label] = max(count, out.get(label, 0))
        return out

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

    def compress(
        self, names: Iterable[str], going_on: Callable[[], bool] = lambda: True
    ) -> list[str]:
        """Have files take less room, one after the other while ``going_on``; those that do now, by
        the names that they have then. StoreError where one is damaged."""
        done = []
        for name in names:
            if not going_on():
                break
            store, entry, file = self._entries[name]
            new = name
            with suppress(FileNotFoundError):
                new = store.compress(entry)
            if new == name:
                continue
            del self._entries[name]
            found = {f.name: f for f in self._directory.files()}
            self._entries[new] = store, store.check(new), found.get(new, file)
            for number, key in enumerate(entry.keys):
                self._where[key] = new, number
            done.append(new)
        return done

    def clear(self, names: Iterable[str], *, everything: bool = False) -> list[str]:
        """Delete files, or ``everything`` that the store has written; which are gone."""
        names = list(names)
        if everything:
            self._directory.clear()
        for name in names:
            self._directory.delete(name)
        left = {file.name for file in self._directory.files()}
        return [name for name in names if name not in left]

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
                target.pin(self._named(name, target), True)
            self._directory.delete(name)
            done.append(name)
        # In the order in which they were used here: beginnings are not the first to go.
        done.sort(key=lambda name: self._entries[name][2].used, reverse=True)
        target.touch([self._named(name, target) for name in done])
        return done

    def _named(self, name: str, target: StoreDirectory) -> str:
        store, entry, _ = self._entries[name]
        return entry.name_in(target, store.identity)


def contents_bytes(directory: StoreDirectory, identities: Collection[bytes]) -> int:
    """Of memory that StoreContents of these take at most."""
    total = 0
    for file in directory.files():
        with suppress(OSError, StoreError):
            identity, _, count = header_of(directory, file.name)
            total += _FILE_BYTES + count * _BLOCK_BYTES * (identity in identities)
    return total


def _id(entry: Entry) -> str:
    return entry.keys[-1].hex()[:12]
