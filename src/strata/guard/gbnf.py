"""Escapes of llama.cpp's GBNF in a form that llguidance's converter to Lark reads rightly.

``\\xHH``, ``\\uHHHH`` and ``\\UHHHHHHHH`` name a character by its number there (llama.cpp,
grammars/README.md). In literals it is written out; in character classes what is not ASCII is.
"""

from __future__ import annotations

import re

_PART = re.compile(
    r"#[^\n]*"
    r'|"(?P<literal>(?:[^"\\\n]|\\.)*)"'
    r"|\[(?P<set>(?:[^\]\\\n]|\\.)*)\]"
)
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|.)", re.DOTALL)
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t", '"': '\\"', "\\": "\\\\"}


def spelt(grammar: str) -> str:
    """``grammar`` with such escapes replaced; what names no character stays as it is."""

    def part(found: re.Match[str]) -> str:
        if found["literal"] is not None:
            return '"' + _ESCAPE.sub(_in_literal, found["literal"]) + '"'
        if found["set"] is not None:
            return "[" + _ESCAPE.sub(_in_set, found["set"]) + "]"
        return found[0]

    return _PART.sub(part, grammar)


def _character(found: re.Match[str]) -> str | None:
    digits = found[1] or found[2] or found[3]
    if digits is None:
        return None
    number = int(digits, 16)
    return None if number > 0x10FFFF or 0xD800 <= number < 0xE000 else chr(number)


def _in_literal(found: re.Match[str]) -> str:
    character = _character(found)
    if character is None:
        return found[0]
    if character in _NAMED:
        return _NAMED[character]
    # Lark's strings know no other escape for those that are not seen.
    return character if character >= " " else found[0]


def _in_set(found: re.Match[str]) -> str:
    character = _character(found)
    if character is None:
        return found[0]
    return f"\\x{ord(character):02X}" if character < "\x80" else character
