"""Chains of tokens whose blocks' right content follows from the tokens, for tests of the store.

Run as a program it writes random chains into a directory until it is killed.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from strata.backends.base import KV_BLOCK
from strata.kv.store import Buffer, PrefixStore, block_keys
from strata.kv.store_directory import StoreDirectory

NBYTES = 700
IDENTITY = hashlib.sha256(b"model").digest()


def store(directory: Path, limit: int = 1 << 30, identity: bytes = IDENTITY) -> PrefixStore:
    return PrefixStore(StoreDirectory(directory, limit), identity, NBYTES)


def chain(word: str) -> list[int]:
    """A full block of tokens for each letter."""
    return [ord(c) * (i % 3 + 1) for c in word for i in range(KV_BLOCK)]


def content(tokens: Sequence[int], nbytes: int = NBYTES) -> list[Buffer]:
    """What the blocks of ``tokens`` hold: noise seeded with all tokens up to each block's end."""
    out = []
    for key in block_keys(IDENTITY, tokens):
        generator = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
        out.append(generator.integers(0, 256, nbytes, dtype=np.uint8))
    return out


def save(where: PrefixStore, word: str, first: int = 0) -> None:
    """Keep the blocks of a chain from number ``first`` on."""
    data = content(chain(word))

    def get(number: int, out: Buffer) -> None:
        out[:] = data[number]

    where.save(chain(word), first, len(word) - first, get)


def load(where: PrefixStore, keys: Sequence[bytes]) -> list[Buffer]:
    """The blocks of ``keys`` that come back, from the first."""
    buffers: dict[int, Buffer] = {}

    def put(number: int, data: Buffer) -> None:
        assert number not in buffers
        buffers[number] = data.copy()

    return [buffers[number] for number in range(where.load(keys, put))]


def loaded(where: PrefixStore, word: str) -> int:
    """How many blocks of a chain are there; what comes back is what it should be."""
    tokens = chain(word)
    keys = block_keys(where.identity, tokens)
    found = where.find(keys)
    buffers = load(where, keys[:found])
    for buffer, right in zip(buffers, content(tokens), strict=False):
        assert buffer.tobytes() == right.tobytes()
    return len(buffers)


def random_word(generator: np.random.Generator) -> str:
    """Of a few letters, so that chains begin alike."""
    letters = generator.integers(0, 3, generator.integers(1, 9))
    return "".join("abc"[i] for i in letters)


if __name__ == "__main__":
    target = store(Path(sys.argv[1]), limit=40 * 8192)
    random = np.random.default_rng(int(sys.argv[2]))
    print("ready", flush=True)
    while True:
        save(target, random_word(random))
