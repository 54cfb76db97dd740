"""What a model thinks before it answers, told apart from the answer.

Models of this kind write their thoughts between ``<think>`` and ``</think>``, at the beginning;
some chat templates open them already.
"""

from __future__ import annotations

from strata.server.parsers import Piece, Thought, ToolParser
from strata.server.parsers.base import overlap

START, END = "<think>", "</think>"


def thinks(template: str) -> bool:
    """Whether a chat template's text is that of a model that thinks."""
    return START in template and END in template


class Thinking:
    """A ToolParser that finds the thoughts, and has ``answer`` read what comes after them.

    ``begun`` says that the prompt has opened them.
    """

    def __init__(self, answer: ToolParser | None, *, begun: bool) -> None:
        self._answer = answer
        self._inside = begun
        self._over = False
        self._held = ""
        self._said = False

    def push(self, text: str) -> list[Piece]:
        """See ToolParser."""
        if self._over:
            return self._rest(text)
        self._held += text
        if not self._inside:
            begin = self._held.lstrip()
            if not begin.startswith(START):
                return [] if START.startswith(begin) else self._end(self._held)
            self._inside = True
            self._held = begin[len(START) :]
        at = self._held.find(END)
        if at >= 0:
            thought, answer = self._held[:at], self._held[at + len(END) :]
            return [*self._thoughts(thought.rstrip()), *self._end(answer)]
        # Space at the end is held back as well: that before the marker is no part of the thought.
        kept = self._held[: len(self._held) - overlap(self._held, END)].rstrip()
        self._held = self._held[len(kept) :]
        return self._thoughts(kept)

    def finish(self) -> list[Piece]:
        """See ToolParser."""
        held, self._held = self._held, ""
        if self._inside and not self._over:
            return self._thoughts(held.rstrip())
        pieces = [] if self._over else self._rest(held)
        return [*pieces, *(self._answer.finish() if self._answer else [])]

    def _thoughts(self, text: str) -> list[Piece]:
        if not self._said:
            text = text.lstrip()
        self._said = self._said or bool(text)
        return [Thought(text)] if text else []

    def _end(self, text: str) -> list[Piece]:
        """The thoughts are over, or there are none: what follows is the answer."""
        self._over, self._held = True, ""
        return self._rest(text)

    def _rest(self, text: str) -> list[Piece]:
        if self._inside:
            # The empty line between thoughts and answer belongs to neither.
            text = text.lstrip("\n")
            self._inside = not text
        if self._answer is not None:
            return self._answer.push(text)
        return [text] if text else []
