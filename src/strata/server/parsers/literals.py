"""Values that are nearly JSON, given as JSON: those of Python, and Gemma's."""

from __future__ import annotations

import json
import re
import sys

from strata.records import dataclass
from strata.server.parsers.base import Reading
from strata.server.parsers.source import Give, Source

_CLOSING = {"{": "}", "[": "]", "(": "]"}
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
_WORDS = {
    **{word: word for word in ("true", "false", "null")},
    **{"True": "true", "False": "false", "None": "null"},
}
_ESCAPED = {"n": "\\n", "t": "\\t", "r": "\\r", "b": "\\b", "f": "\\f", "\n": ""}
_LENGTHS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9a-fA-F]+")
_NAME = re.compile(r"[^\s=,()\[\]{}'\"]*")


@dataclass(frozen=True)
class Style:
    """``quotes`` stand around strings, in which a backslash escapes if ``escapes``; ``word`` is
    what stands without quotes, any number of times a character."""

    quotes: tuple[str, ...]
    escapes: bool
    word: re.Pattern[str]


PYTHON = Style(("'", '"'), True, re.compile(r"[^\s,:()\[\]{}'\"<]*"))
GEMMA = Style(('<|"|>',), False, re.compile(r"[^,:\[\]{}<]*"))


def json_text(text: str) -> str:
    """What stands for ``text`` inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def read_literal(source: Source, style: Style, give: Give) -> Reading[bool]:
    """Give a value as JSON while it comes; False if the text ends before it, or what comes cannot
    go on with one."""
    closings: list[str] = []
    comma = colon = False
    while True:
        yield from source.space()
        mark = yield from source.take(*style.quotes, "{", "[", "(", "}", "]", ")", ",", ":")
        if mark in ("}", "]", ")"):
            if not closings:
                return False
            give(closings.pop())
        elif mark in (",", ":"):
            if not closings:
                return False
            comma, colon = mark == ",", mark == ":"
            if colon:
                give(": ")
            continue
        else:
            if comma:
                give(", ")
            if mark in _CLOSING:
                give("[" if mark == "(" else mark)
                closings.append(_CLOSING[mark])
            elif mark is not None:
                if not (yield from _string(source, style, mark, give)):
                    return False
            else:
                word = (yield from source.run(style.word)).strip()
                if not word or source.exhausted:
                    return False
                is_key = closings[-1:] == ["}"] and not colon
                give(json.dumps(word, ensure_ascii=False) if is_key else _word(word))
        comma = colon = False
        if not closings:
            return True


def python_as_json(text: str) -> str | None:
    """The JSON of a list or a dictionary as Python writes it; None if ``text`` is none."""
    source, parts = Source(), list[str]()
    source.feed(text)
    source.ended = True
    complete = False
    reading = read_literal(source, PYTHON, parts.append)
    try:
        # All of the text is there: it pauses nowhere.
        next(reading)
    except StopIteration as end:
        complete = bool(end.value) and source.exhausted
    return "".join(parts) if complete and text[:1] in _CLOSING else None


def read_python_arguments(source: Source) -> Reading[bool]:
    """Arguments by their names up to the closing parenthesis, as those of a call that has begun;
    False if the text ends before it."""
    first = True
    while True:
        yield from source.space()
        if (yield from source.take(")")):
            source.argue("{}" if first else "}")
            return True
        if (yield from source.take(",")):
            continue
        name = yield from source.run(_NAME)
        yield from source.space()
        if not name or not (yield from source.take("=")):
            return False
        source.argue(f"{'{' if first else ', '}{json.dumps(name, ensure_ascii=False)}: ")
        first = False
        if not (yield from read_literal(source, PYTHON, source.argue)):
            return False


def _word(word: str) -> str:
    if word in _WORDS:
        return _WORDS[word]
    return word if _NUMBER.fullmatch(word) else json.dumps(word, ensure_ascii=False)


def _string(source: Source, style: Style, quote: str, give: Give) -> Reading[bool]:
    give('"')
    marks = (quote, "\\") if style.escapes else (quote,)
    while (yield from source.until(*marks, give=lambda text: give(json_text(text)))) == "\\":
        yield from source.take("\\")
        yield from _escape(source, give)
    if not (yield from source.take(quote)):
        return False
    give('"')
    return True


def _escape(source: Source, give: Give) -> Reading[None]:
    kind = yield from source.characters(1)
    length = _LENGTHS.get(kind)
    if length is None:
        give(_ESCAPED.get(kind, json_text(kind if kind in "'\"\\" else "\\" + kind)))
        return
    digits = yield from source.characters(length)
    if len(digits) < length or not _HEX.fullmatch(digits):
        give(json_text(f"\\{kind}{digits}"))
    elif length == 4:
        # As it is: two of them may be one character.
        give(f"\\u{digits}")
    else:
        code = int(digits, 16)
        known = code <= sys.maxunicode
        give(json.dumps(chr(code) if known else f"\\{kind}{digits}")[1:-1])
