"""JSON from untrusted files: one object, no duplicate keys, no NaN, no absurd depth or numbers."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from strata.formats.errors import (
    HeaderTooLargeError,
    JsonDepthError,
    JsonDuplicateKeyError,
    JsonNumberError,
    JsonSyntaxError,
    JsonTypeError,
    shown,
)

# Converting digits to a number takes quadratic time in their count; 2^64 has 20 digits.
_LONGEST_NUMBER = 64
# Whoever walks through a value may do so by recursion.
_MAX_DEPTH = 64


def parse_object(raw: bytes, where: str, most_values: int | None = None) -> dict[str, Any]:
    """The JSON object that `raw` is; `where` opens the message of the error.

    More than `most_values` values are refused before any of them is made.
    """
    if most_values is not None:
        # Marks within strings count as well: that only makes the bound a little tighter.
        values = 1 + sum(raw.count(mark) for mark in (b",", b"[", b"{"))
        if values > most_values:
            raise HeaderTooLargeError(
                f"{where}: the JSON has about {values} values; at most {most_values} are read"
            )

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(items)
        if len(found) != len(items):
            twice = Counter(key for key, _ in items).most_common(1)[0][0]
            raise JsonDuplicateKeyError(f"{where}: the key {shown(twice)} appears twice")
        return found

    def whole(text: str) -> int:
        if len(text) > _LONGEST_NUMBER:
            raise JsonNumberError(f"{where}: the number {shown(text, 40)} is absurdly long")
        return int(text)

    def real(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise JsonNumberError(f"{where}: {shown(text, 40)} is not a finite number")
        return value

    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=pairs,
            parse_int=whole,
            parse_float=real,
            parse_constant=real,
        )
    except UnicodeDecodeError as error:
        raise JsonSyntaxError(f"{where}: byte {error.start} of the JSON is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise JsonSyntaxError(
            f"{where}: this is not JSON ({error.msg} at character {error.pos})"
        ) from None
    except RecursionError:
        raise JsonDepthError(f"{where}: the JSON is nested too deeply to be a real file") from None
    if not isinstance(value, dict):
        raise JsonTypeError(f"{where}: the JSON is a {type(value).__name__}, not an object")
    if _deeper_than(_MAX_DEPTH, value):
        raise JsonDepthError(f"{where}: the JSON is nested too deeply to be a real file")
    return value


def _deeper_than(depth: int, value: Any) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True
