"""The text of an answer while it arrives, for those who read it, and the pieces they find in it.

Whoever reads is a generator: it pauses where the text so far does not say how to go on. What is
held back is never more than the beginning of a mark, and every character is looked at a bounded
number of times, so that reading is linear in the text however it is cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache

from strata.server.parsers.base import (
    CallBegin,
    CallDelta,
    Parser,
    Piece,
    Reading,
    Thought,
    ToolCall,
    new_id,
)

Give = Callable[[str], None]
"""Takes text, piece by piece."""

_SPACE = re.compile(r"\s*")
_STRING_ENDS = re.compile(r'["\\]')
_CALL_BEGUN = re.compile(r'\s*(?:[^\s\[{]|\[[A-Z_]+\]|\[?\s*\{\s*"(?:tool_)?name")')
"""Of what is kept as a call: behind a mark of the format, or an object that begins with a name. Any
other object may be an answer."""


def nowhere(text: str) -> None:
    """Of text that is passed over."""


class Source:
    """See the module."""

    def __init__(self) -> None:
        self.pieces: list[Piece] = []
        self.ended = False
        self.cut = False
        """Whether the answer ended before the model meant it to."""
        self._text = ""
        self._at = 0
        self._kept: list[str] | None = None
        self._call: CallBegin | None = None
        self._called = False
        self._arguments: list[str] = []
        # Space at the beginning is text if text follows, and nothing if a call does.
        self._blank: list[str] | None = []

    def feed(self, text: str) -> None:
        """What has come."""
        self._text = self._text[self._at :] + text
        self._at = 0

    # Pieces.

    def say(self, text: str) -> None:
        """Give text of the answer."""
        if self._blank is not None:
            if not text.strip():
                self._blank.append(text)
                return
            text = "".join(self._blank) + text
            self._blank = None
        if text:
            self.pieces.append(text)

    def think(self, text: str) -> None:
        """Give a part of a thought."""
        if text:
            self.pieces.append(Thought(text))

    def begin_call(self, name: str, id: str | None = None) -> None:
        """A call begins: what was tried has succeeded."""
        self._kept = None
        self._blank = None
        self._called = True
        self._arguments = []
        self._call = CallBegin(name, id or new_id())
        self.pieces.append(self._call)

    def argue(self, text: str) -> None:
        """Give a part of the arguments."""
        if text:
            self._arguments.append(text)
            self.pieces.append(CallDelta(text))

    def end_call(self) -> None:
        """The call is over; without any arguments they are an empty object."""
        if self._call is None:
            return
        if not self._arguments:
            self.argue("{}")
        call, self._call = self._call, None
        self.pieces.append(ToolCall(call.name, "".join(self._arguments), call.id))

    def try_call(self) -> None:
        """What comes may be a call: keep it until one begins."""
        self._kept = []

    def no_call(self) -> None:
        """It was none: what was kept is text, unless it is the beginning of a call that was cut."""
        text, self._kept = "".join(self._kept or ()), None
        if not (self.ended and self.cut and (self._called or _CALL_BEGUN.match(text))):
            self.say(text)

    def close(self) -> None:
        """Nothing comes any more, and nobody reads any more."""
        if self._kept is not None:
            self.no_call()
        if self._call is not None:
            call, self._call = self._call, None
            self.pieces.append(ToolCall(call.name, "".join(self._arguments), call.id))
        self.say(self._consume(len(self._text)))
        if blank := "".join(self._blank or ()):
            self.pieces.append(blank)

    # Reading.

    @property
    def exhausted(self) -> bool:
        """Whether there is nothing left, and nothing comes any more."""
        return self.ended and self._at == len(self._text)

    def starts(self, *marks: str) -> Reading[str | None]:
        """The first of ``marks`` that the text goes on with, if it does."""
        while True:
            for mark in marks:
                if self._text.startswith(mark, self._at):
                    return mark
                if not self.ended and self._may_become(mark):
                    break
            else:
                return None
            yield

    def take(self, *marks: str) -> Reading[str | None]:
        """The same, and go on behind it."""
        mark = yield from self.starts(*marks)
        if mark is not None:
            self._consume(self._at + len(mark))
        elif self.cut and self._called and any(map(self._may_become, marks)):
            # Half a mark behind a call.
            self._consume(len(self._text))
        return mark

    def until(self, *marks: str, give: Give) -> Reading[str | None]:
        """Give what comes before the first of ``marks``, and say which it is; None at the end."""
        pattern = _any_of(marks)
        while True:
            found = pattern.search(self._text, self._at)
            end = found.start() if found else len(self._text)
            if not found and not self.ended:
                end -= self._overlap(marks)
            if end > self._at:
                give(self._consume(end))
            if found:
                return found[0]
            if self.ended:
                return None
            yield

    def run(self, pattern: re.Pattern[str]) -> Reading[str]:
        """As many characters as match; ``pattern`` is that of a character, any number of times."""
        parts = []
        while True:
            found = pattern.match(self._text, self._at)
            assert found
            parts.append(self._consume(found.end()))
            if self._at < len(self._text) or self.ended:
                return "".join(parts)
            yield

    def space(self) -> Reading[str]:
        """White space."""
        return (yield from self.run(_SPACE))

    def characters(self, count: int) -> Reading[str]:
        """As many characters, or all that are left."""
        while len(self._text) - self._at < count and not self.ended:
            yield
        return self._consume(min(self._at + count, len(self._text)))

    def json_string(self) -> Reading[str | None]:
        """What a JSON string that comes here stands for; None if it is none, or has no end."""
        if not (yield from self.take('"')):
            return None
        parts: list[str] = []
        if not (yield from self.json_value(parts.append, quoted=True)):
            return None
        try:
            value = json.loads('"' + "".join(parts), strict=False)
        except ValueError:
            return None
        return value if isinstance(value, str) else None

    def json_value(
        self, give: Give, *stops: str, depth: int = 0, quoted: bool = False
    ) -> Reading[bool]:
        """Give a JSON object, list or string as it comes, or the rest of one inside which the
        text is. False if the text ends before it, or one of ``stops`` comes, outside a string.

        Only strings and brackets are looked at: whether it is JSON is for those to say who use it.
        """
        outside = _outside_strings(stops)
        while True:
            text, at, over, stopped = self._text, self._at, False, False
            while at < len(text) and not over:
                if quoted:
                    found = _STRING_ENDS.search(text, at)
                    if found is None:
                        at = len(text)
                    elif found[0] == '"':
                        at, quoted, over = found.end(), False, depth <= 0
                    elif found.end() < len(text):
                        at = found.end() + 1
                    else:
                        at = found.start()
                        break
                    continue
                found = outside.search(text, at)
                if found is None:
                    at = len(text) - (0 if self.ended else _overlap(text, at, stops))
                    break
                mark = found[0]
                if mark in stops:
                    at, stopped = found.start(), True
                    break
                at = found.end()
                if mark == '"':
                    quoted = True
                else:
                    depth += 1 if mark in "{[" else -1
                    over = depth <= 0
            if self.ended and not over and not stopped:
                at = len(text)
            give(self._consume(at))
            if over or stopped or self.ended:
                return over
            yield

    def _consume(self, end: int) -> str:
        text = self._text[self._at : end]
        self._at = end
        if self._kept is not None:
            self._kept.append(text)
        return text

    def _may_become(self, mark: str) -> bool:
        have = len(self._text) - self._at
        return have < len(mark) and mark.startswith(self._text[self._at :])

    def _overlap(self, marks: tuple[str, ...]) -> int:
        return _overlap(self._text, self._at, marks)


class SourceParser(Parser):
    """A Parser that has a generator read. ``opening`` is the part of the prompt that belongs to
    the answer: it is read before it, and nothing that is found in it is given."""

    def __init__(self, read: Callable[[Source], Reading[None]], opening: str = "") -> None:
        self._source = Source()
        self._reading: Reading[None] | None = read(self._source)
        self.push(opening)

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        self._source.feed(text)
        return self._read()

    def finish(self, *, cut: bool = False) -> list[Piece]:
        """See Parser."""
        self._source.ended, self._source.cut = True, cut
        pieces = self._read()
        self._source.close()
        return [*pieces, *self._taken()]

    def _read(self) -> list[Piece]:
        if self._reading is not None:
            try:
                next(self._reading)
            except StopIteration:
                self._reading = None
        return self._taken()

    def _taken(self) -> list[Piece]:
        taken, self._source.pieces = self._source.pieces, []
        return taken


def _overlap(text: str, start: int, marks: tuple[str, ...]) -> int:
    """Characters at the end of ``text``, behind ``start``, that may be the beginning of one of
    ``marks``."""
    return max((_begun(text, start, mark) for mark in marks), default=0)


def _begun(text: str, start: int, mark: str) -> int:
    for length in range(min(len(text) - start, len(mark) - 1), 0, -1):
        if text.endswith(mark[:length]):
            return length
    return 0


@lru_cache(maxsize=256)
def _any_of(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, marks)) or r"(?!)")


@lru_cache(maxsize=64)
def _outside_strings(stops: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join([*map(re.escape, stops), r'["{}\[\]]']))
