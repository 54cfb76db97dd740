"""Where an answer ends: end tokens, stop strings that may span tokens, and the token limit."""

from __future__ import annotations

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
    those that end together, the longest. Text that may yet become a stop string is held back.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """Add text; returns what can be shown. After a stop string was ``found``: nothing."""
        if self.found is not None:
            return ""
        if not self._stops:
            return text
        text = self._held + text
        ends = [(at + len(s), -len(s), s) for s in self._stops if (at := text.find(s)) >= 0]
        if ends:
            end, _, self.found = min(ends)
            self._held = ""
            return text[: end - len(self.found)]
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def finish(self) -> str:
        """What was held back, when the text ends without a stop string."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


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

        The text of a token that ends the answer is not shown.
        """
        self._left -= 1
        if token in self._stop_ids:
            return self._flush(), "stop"
        shown = self._stops.push(self._text.push(token)) if self._text else ""
        if self._stops.found is not None:
            return shown, "stop"
        if self._left > 0:
            return shown, None
        shown += self._flush()
        return shown, "length" if self._stops.found is None else "stop"

    def _flush(self) -> str:
        if self._text is None:
            return ""
        shown = self._stops.push(self._text.finish())
        return shown + self._stops.finish()
