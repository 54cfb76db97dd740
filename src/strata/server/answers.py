"""What the answers to a call have said so far, and how they go out: whole, or piece by piece."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import field
from time import monotonic
from typing import Any, Protocol

from fastapi import Request
from starlette.responses import Response

from strata.decode import FinishReason, Sample
from strata.engine import Delta
from strata.engine import Request as EngineRequest
from strata.errors import StrataError
from strata.records import dataclass
from strata.server.bridge import AsyncRun
from strata.server.errors import ApiError, as_api_error
from strata.server.parsers import CallBegin, CallDelta, Parser, Piece, Thought, ToolCall
from strata.server.replies import Reply, StreamReply, unless_gone
from strata.server.seldom import Seldom

_seldom = Seldom(logging.getLogger("strata.server"))


@dataclass
class Answer:
    """One choice. ``samples`` are those of shown tokens, ``offsets`` the characters of ``text``
    before each. ``parser`` finds thoughts and calls in it. A ``silent`` one has no tokens: its
    prompt is computed and that is all. With ``one_call`` further calls are left out."""

    parser: Parser | None = None
    text: str = ""
    thoughts: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    request: EngineRequest | None = None
    silent: bool = False
    one_call: bool = False

    def add(self, delta: Delta) -> tuple[list[Piece], list[Sample]]:
        """Take a token; the text and the calls that became certain with it, and its sample unless
        it is an end token, which is no part of the text."""
        self.request = delta.request
        self.finish_reason = delta.finish_reason
        if self.silent:
            self.finish_reason = delta.finish_reason and "length"
            return [], []
        ended_by_token = (
            delta.finish_reason == "stop" and delta.request.stop_checker.stop_string is None
        )
        shown = [] if ended_by_token else [delta.sample]
        self.samples += shown
        self.offsets += [len(self.text)] * len(shown)
        return self.take(delta.text, delta.finish_reason), shown

    def take(self, text: str, finish_reason: FinishReason | None) -> list[Piece]:
        """Take more of the text, with a reason the last of it; what became certain with it."""
        pieces: list[Piece] = [text] if text else []
        if self.parser is not None:
            pieces = self.parser.push(text)
            if finish_reason is not None:
                pieces += self.parser.finish(cut=finish_reason == "length")
        if self.one_call:
            pieces = list(self._first_call(pieces))
        for piece in pieces:
            if isinstance(piece, str):
                self.text += piece
            elif isinstance(piece, Thought):
                self.thoughts += piece.text
            elif isinstance(piece, ToolCall):
                self.calls.append(piece)
        return pieces

    def _first_call(self, pieces: list[Piece]) -> Iterator[Piece]:
        """``pieces`` without calls after the first."""
        had = bool(self.calls)
        for piece in pieces:
            if not had or not isinstance(piece, CallBegin | CallDelta | ToolCall):
                yield piece
            had = had or isinstance(piece, ToolCall)

    @property
    def tokens(self) -> int:
        """Tokens chosen, an end token included."""
        if self.silent:
            return 0
        return len(self.request.output) if self.request else 0

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed for it."""
        return self.request.cached_tokens if self.request else 0


class Answers:
    """A run and an Answer for each of its jobs: ``each`` choices for one prompt after another."""

    def __init__(self, run: AsyncRun, parsers: Sequence[Parser | None], each: int) -> None:
        self.run = run
        self.choices = [Answer(parser) for parser in parsers]
        self._each = each

    @property
    def first_prompt(self) -> list[int]:
        """The first prompt."""
        return list(self.run.run.jobs[0].prompt)

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(len(job.prompt) for job in self.run.run.jobs[:: self._each])

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompts that were not computed."""
        return sum(choice.cached_tokens for choice in self.choices[:: self._each])

    @property
    def output_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(choice.tokens for choice in self.choices)

    async def parts(
        self, pause_s: float | None = None, *, whole_calls: bool = False
    ) -> AsyncIterator[tuple[int, list[Piece], list[Sample]] | None]:
        """What came: a choice's number, and what ``Answer.add`` says of the token; None after
        ``pause_s`` seconds without anything that is told, also while a parser holds what came, or
        a call is under way that is told of ``whole``."""
        told = monotonic()
        async for event in self.run.tokens(pause_s):
            if event is not None:
                index, delta = event
                pieces, samples = self.choices[index].add(delta)
                yield index, pieces, samples
                if any(not (whole_calls and isinstance(p, CallBegin | CallDelta)) for p in pieces):
                    told = monotonic()
            if event is None or (pause_s is not None and monotonic() - told >= pause_s):
                told = monotonic()
                yield None

    async def finish(self) -> None:
        """Take all that comes."""
        async for _ in self.parts():
            pass


class Writer(Protocol):
    """Puts answers into the form of one protocol."""

    media_type: str
    """Of a stream."""

    def whole(self) -> dict[str, Any]:
        """All of it, once the answers are finished."""

    def stream(self) -> AsyncGenerator[str, None]:
        """Piece by piece, while it takes the answers' parts."""

    def failed(self, error: ApiError) -> str:
        """The last piece of a stream that broke off."""


async def respond(request: Request, answers: Answers, writer: Writer, stream: bool) -> Response:
    """The response to a call that was begun; the run ends with it."""
    if stream:
        return StreamReply(_until_it_fails(writer), writer.media_type, answers.run)
    await unless_gone(request, answers.run, answers.finish())
    return Reply(writer.whole())


async def _until_it_fails(writer: Writer) -> AsyncGenerator[str, None]:
    try:
        async for piece in writer.stream():
            yield piece
    except Exception as error:
        if not isinstance(error, StrataError):
            _seldom.failure("a stream broke off", error)
        yield writer.failed(as_api_error(error))
