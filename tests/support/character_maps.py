"""Sentencepiece's compiled character maps, made simply: a block of 256 units for each node."""

from __future__ import annotations

import struct
from collections.abc import Mapping


def character_map(replacements: Mapping[str, str]) -> bytes:
    """The table of these; see ``strata.text.unigram.CharacterMap``."""
    ends = b"".join(text.encode() + b"\0" for text in replacements.values())
    blocks: list[list[int]] = [[0] * 256]
    places: dict[bytes, tuple[int, int]] = {b"": (0, 0)}  # of each prefix: block and its unit
    blocks[0][0] = 256 << 10  # the root's children are in the block after it
    base = {b"": 256}
    blocks.append([0] * 256)
    value = 0
    for key, text in replacements.items():
        data = key.encode()
        for length in range(1, len(data) + 1):
            prefix, before = data[:length], data[: length - 1]
            if prefix in base:
                continue
            at = base[before] ^ data[length - 1]
            base[prefix] = 256 * len(blocks)
            blocks.append([0] * 256)
            blocks[at // 256][at % 256] = (at ^ base[prefix]) << 10 | data[length - 1]
            places[prefix] = (at // 256, at % 256)
        block, unit = places[data]
        blocks[block][unit] |= 1 << 8
        blocks[base[data] // 256][0] = value | 1 << 31
        value += len(text.encode()) + 1
    units = [unit for block in blocks for unit in block]
    return struct.pack(f"<I{len(units)}I", 4 * len(units), *units) + ends
