"""Answers in which calls stand behind a mark, between text."""

from __future__ import annotations

from abc import abstractmethod

from strata.server.parsers.base import Reading, ToolFormat, Tools
from strata.server.parsers.source import Source


class Marked(ToolFormat):
    """A ToolFormat whose calls begin with one of ``marks``."""

    marks: tuple[str, ...]

    def read(self, source: Source, tools: Tools) -> Reading[None]:
        """See ToolFormat."""
        while mark := (yield from source.until(*self.marks, give=source.say)):
            source.try_call()
            yield from source.take(mark)
            begun = yield from self.calls(source, tools, mark)
            source.no_call()
            if begun:
                # Space between calls, or behind the last, is no text.
                yield from source.space()

    @abstractmethod
    def calls(self, source: Source, tools: Tools, mark: str) -> Reading[bool]:
        """Read what comes behind ``mark``; whether a call has begun. One that is over is ended."""
