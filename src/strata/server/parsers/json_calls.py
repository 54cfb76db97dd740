"""Calls that are JSON objects with a name and arguments, for the formats that have them."""

from __future__ import annotations

import re

from strata.server.parsers.base import Reading, Tools
from strata.server.parsers.source import Source, nowhere

_NAMES = ("name", "tool_name")
_ARGUMENTS = ("arguments", "parameters")
_BARE = re.compile(r"[^\s,\]}\"]*")


def read_calls(source: Source, tools: Tools, *stops: str) -> Reading[bool]:
    """One object after another, or a list of them; whether a call has begun. What is none, behind
    the first, is kept as what was tried."""
    listed = yield from source.take("[")
    begun = False
    while True:
        yield from source.space()
        if not (yield from read_call(source, tools, *stops)):
            return begun
        source.end_call()
        begun = True
        yield from source.space()
        if (yield from source.take(",", ";")):
            yield from source.space()
        if not (yield from source.starts("{")):
            break
        source.try_call()
    if listed:
        yield from source.take("]")
    return True


def read_call(source: Source, tools: Tools, *stops: str) -> Reading[bool]:
    """An object of a name among ``tools`` and its arguments, an object or the text of one;
    whether a call has begun, which is still to be ended. One of ``stops`` ends it as well."""
    if not (yield from source.take("{")):
        return False
    name: str | None = None
    held = ""
    while True:
        yield from source.space()
        if (yield from source.take("}")):
            break
        key = yield from source.json_string()
        yield from source.space()
        if key is None or not (yield from source.take(":")):
            return False
        yield from source.space()
        if key in _NAMES:
            name = yield from source.json_string()
            if name not in tools:
                return False
        elif key not in _ARGUMENTS:
            yield from _value(source)
        elif name is None:
            value = yield from _held_object(source)
            if value is None:
                return False
            held = value
        elif (yield from source.starts("{")):
            source.begin_call(name)
            if (yield from source.json_value(source.argue, *stops)):
                yield from source.json_value(nowhere, *stops, depth=1)
            return True
        else:
            value = yield from _held_object(source)
            if value is None:
                return False
            held = value
        yield from source.space()
        if (yield from source.take("}")):
            break
        if not (yield from source.take(",")):
            return False
    if name is None:
        return False
    source.begin_call(name)
    source.argue(held)
    return True


def _held_object(source: Source) -> Reading[str | None]:
    """The text of an object, which may be that of a JSON string; empty for null."""
    if (yield from source.starts('"')):
        return (yield from source.json_string())
    if (yield from source.take("null")):
        return ""
    if not (yield from source.starts("{")):
        return None
    parts: list[str] = []
    return "".join(parts) if (yield from source.json_value(parts.append)) else None


def _value(source: Source) -> Reading[None]:
    if (yield from source.starts("{", "[", '"')):
        yield from source.json_value(nowhere)
    else:
        yield from source.run(_BARE)
