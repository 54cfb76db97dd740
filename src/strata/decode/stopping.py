"""Where an answer ends: end tokens, stop strings that may span tokens, and the token limit."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from typing import Literal, Protocol

from strata.decode.params import SamplingParams
from strata.errors import UsageError

FinishReason = Literal["stop", "length"]


class TextStream(Protocol):
    """Turns tokens into text as they come; ``strata.text`` has the real one."""

    def push(self, id: int) -> str:
        """Add a token; the text that is certain with it."""

    def finish(self) -> str:
        """The text that was still held back."""


class StopStrings:
    """Cuts a text at the first stop string, however the text arrives.

    Of several that match, the one that ends first counts, as if characters came one at a time; of
    those that end together, the longest. Text that may yet become a stop string is held back. Time
    is linear in the text, for each stop string, whatever their lengths.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [_Progress(stop) for stop in stops]
        self._held: deque[str] = deque()
        self._held_length = 0
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; returns what can be shown. After a stop string was ``found``: nothing."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        ends = [(end, -len(p.stop), p.stop) for p in self._stops if (end := p.push(text))]
        if ends:
            end, _, self.found = min(ends)
            shown = self._release(text, self._held_length + end - len(self.found))
            self._held.clear()
            self._held_length = 0
            return shown
        held = max(p.length for p in self._stops)
        return self._release(text, self._held_length + len(text) - held)

    def finish(self) -> str:
        """What was held back, when the text ends without a stop string."""
        return self._release("", self._held_length)

    def _release(self, text: str, length: int) -> str:
        """Add ``text`` to what is held, and take the first ``length`` characters of all."""
        if text:
            self._held.append(text)
            self._held_length += len(text)
        self._held_length -= length
        parts = []
        while length > 0:
            part = self._held.popleft()
            if len(part) > length:
                self._held.appendleft(part[length:])
                part = part[:length]
            length -= len(part)
            parts.append(part)
        return "".join(parts)


class _Progress:
    """How much of one stop string the end of a text is (Knuth, Morris and Pratt 1977).

    ``length`` is that of the longest end of the text with which ``stop`` begins. The table of the
    stop string's own borders is made as far as the text has ever come in it.
    """

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.length = 0
        self._borders = array("i", [0])  # of the first 1, 2, 3 ... characters

    def push(self, text: str) -> int:
        """Add text; after how many of its characters the stop string is there first, or 0."""
        stop, borders, length = self.stop, self._borders, self.length
        at = 0
        while at < len(text):
            if length == 0:
                at = text.find(stop[0], at)
                if at < 0:
                    break
            while length and text[at] != stop[length]:
                length = borders[length - 1]
            at += 1
            if text[at - 1] == stop[length]:
                length += 1
                if length == len(stop):
                    return at
                if length > len(borders):
                    self._add_border()
        self.length = length
        return 0

    def _add_border(self) -> None:
        stop, borders = self.stop, self._borders
        last = stop[len(borders)]
        length = borders[-1]
        while length and last != stop[length]:
            length = borders[length - 1]
        borders.append(length + (last == stop[length]))


class StopChecker:
    """Watches one answer: gives its text as it becomes certain, and says when and why it ends.

    ``stop_ids`` are the model's end tokens; ``limit`` is the number of tokens after which the
    answer ends with ``length``. Without a ``text`` stream all text is empty, and stop strings are a
    UsageError.
    """

    def __init__(
        self,
        params: SamplingParams,
        stop_ids: frozenset[int],
        limit: int,
        text: TextStream | None,
    ) -> None:
        if params.stop_strings and text is None:
            raise UsageError("stop strings need text, but this request is one of token ids only")
        ends = frozenset(params.stop_token_ids)
        self._stop_ids = ends if params.ignore_eos else ends | stop_ids
        self._text = text
        self._stops = StopStrings(params.stop_strings)
        self._left = limit

    @property
    def left(self) -> int:
        """Tokens that the answer may still have."""
        return self._left

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._stops.found

    def push(self, token: int) -> tuple[str, FinishReason | None]:
        """Add a token: the text to show now, and the reason if the answer ends with it.

        The text of a token that ends the answer is not shown. One that is cut inside a character
        ends before it.
        """
        self._left -= 1
        if token in self._stop_ids:
            rest = self._stops.push(self._text.finish()) if self._text else ""
            return rest + self._stops.finish(), "stop"
        shown = self._stops.push(self._text.push(token)) if self._text else ""
        if self._stops.found is not None:
            return shown, "stop"
        if self._left > 0:
            return shown, None
        return shown + self._stops.finish(), "length"
