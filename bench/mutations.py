"""Changes of what a file or a request says, as the fuzzers make them."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from strata.formats.errors import WriteError
from strata.formats.gguf_writer import TensorSource, write_gguf

NUMBERS = [0, 1, -1, 2, 3, 7, 64, 255, 65535, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64]
NUMBERS += [10**40, 0.0, 0.5, -0.5, 1e-300, 1e-6, 1e6, 1e30, 1e308, 1.0000001]
STRINGS = ["", "a", "\x00", "\x1b[2J", "\ud800", "x" * 70_000, "default", "yarn", "longrope"]
STRINGS += ["llama3", "linear", "dynamic", "<|end|>", "\u2581", "\u00e9" * 300, "../x", "true"]
RAW = ["NaN", "Infinity", "1e999", "-0", "1" * 5000, "[" * 3000, '{"a":1,"a":2}', '"\\ud800"']


def nasty(rng: random.Random) -> Any:
    """A value that a file may hold and no model has."""
    kind = rng.randrange(8)
    if kind < 3:
        return rng.choice(NUMBERS)
    if kind < 5:
        return rng.choice(STRINGS)
    flat = [None, True, False, [], {}, [[]], [None], [1, "a"], {"": {}}, {"content": None}]
    if kind == 5:
        return rng.choice(flat)
    if kind == 6:
        return [rng.choice(NUMBERS + STRINGS) for _ in range(rng.choice((1, 2, 8, 1000)))]
    deep: Any = 0
    for _ in range(rng.choice((10, 70, 200))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    return deep


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    found: list[tuple[Any, Any]] = []
    left = [value]
    while left:
        now = left.pop()
        keys = list(now) if isinstance(now, dict) else range(len(now))
        found += [(now, key) for key in keys]
        left += [now[key] for key in keys if isinstance(now[key], (dict, list))]
    return found


def change(value: dict[str, Any], rng: random.Random) -> None:
    """One change of a JSON value, in place; the outer keys as often as all others."""
    places = [(value, key) for key in value] if rng.random() < 0.5 else _places(value)
    if not places:
        return
    where, key = rng.choice(places)
    kind = rng.randrange(6)
    if kind == 0:
        del where[key]
    elif kind == 1 and isinstance(where, dict):
        where[rng.choice(STRINGS)] = where[key]
    elif kind == 2:
        other, there = rng.choice(places)
        try:
            where[key] = copy.deepcopy(other[there])
        except (KeyError, IndexError, RecursionError):
            where[key] = None
    else:
        where[key] = nasty(rng)


def change_bytes(raw: bytes, rng: random.Random) -> bytes:
    """A bit, a cut, a copy or a word."""
    out = bytearray(raw)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(5)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.randrange(1, 60)]
        elif kind == 2:
            out[at:at] = out[at : at + rng.randrange(1, 200)]
        elif kind == 3:
            out[at:at] = rng.choice(RAW).encode("utf-8", "replace")
        else:
            del out[at:]
    return bytes(out)


def change_metadata(metadata: dict[str, Any], prefix: str, rng: random.Random) -> None:
    """Changes of some of the keys that begin with ``prefix``, in place."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        key = rng.choice([key for key in metadata if key.startswith(prefix)])
        kind = rng.randrange(8)
        value = metadata[key]
        if kind == 0 and len(metadata) > 1:
            del metadata[key]
        elif kind == 1:
            metadata[key] = [value, value] if isinstance(value, (str, int, float)) else []
        elif kind == 2 and isinstance(value, list) and value:
            value = list(value)
            value[rng.randrange(len(value))] = rng.choice(STRINGS[:8] + STRINGS[9:])
            metadata[key] = value
        elif kind == 3 and isinstance(value, np.ndarray):
            metadata[key] = np.resize(value, rng.choice((0, 1, len(value) // 2, len(value) * 3)))
        elif kind == 4:
            metadata[key] = rng.choice([float("nan"), float("inf"), -float("inf"), 1e-300, -1.0])
        elif kind == 5:
            metadata[key] = rng.choice([n for n in NUMBERS if isinstance(n, float) or n < 2**64])
        elif kind == 6:
            metadata[key] = rng.choice(["\udcff\udcfe", *STRINGS[:4], *STRINGS[5:]])
        else:
            metadata[key] = rng.choice([True, False, [True] * 9, ["a"] * 300, [1.0] * 300, [-1]])


def write_changed(
    path: Path, metadata: dict[str, Any], tensors: list[tuple[str, Any, Any]], rng: random.Random
) -> Path:
    """A GGUF file; its header is sometimes changed once more."""
    sources = [TensorSource(n, i.shape, i.type, _once(raw)) for n, i, raw in tensors]
    try:
        write_gguf(path, metadata, sources)
    except WriteError:  # changes of one key that together are nothing that GGUF can hold
        metadata = {k: v for k, v in metadata.items() if not isinstance(v, list)}
        write_gguf(path, metadata, sources)
    if rng.random() < 0.15:
        # Within the header: a byte of a weight only makes another model.
        raw = path.read_bytes()
        size = len(raw) - sum(len(r) for _, _, r in tensors)
        path.write_bytes(change_bytes(raw[:size], rng) + raw[size:])
    return path


def _once(raw: Any) -> Callable[[], Any]:
    return lambda: iter([raw])
