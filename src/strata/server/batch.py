"""Many requests from a file, in OpenAI's batch format, through the same application as over HTTP.

Answers are written in the order of the requests, so that a file of answers says by itself how far
it has come: who was killed goes on behind its last whole line. No more lines are held than are
under way.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any, BinaryIO

from starlette.types import ASGIApp

from strata.errors import UsageError
from strata.records import dataclass
from strata.server.inside import compact_json, posted
from strata.server.openai.batches import ENDPOINTS

LINE_BYTES = 8 << 20
"""The longest line that is read."""

COPIES = 2
"""Of a line while it is answered: itself, and the request in it."""

_BUSY = (429, 503)
_AGAIN_S = 0.2
"""Answers that ask to come back, and after how long that is done."""


@dataclass
class BatchTotals:
    """Lines answered, those of them with an error, those that an earlier run had answered already,
    and tokens."""

    lines: int = 0
    failed: int = 0
    resumed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def _nothing(line: bytes) -> int:
    return 0


def _any_room(nbytes: int) -> AbstractAsyncContextManager[None]:
    return nullcontext()


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Rules:
    """How lines are answered.

    Each has at most ``line_bytes`` and asks one of ``endpoints``, with ``key`` where the
    application wants one; ``ahead`` times as many are held as run together, and no more than
    ``held_bytes`` of them. ``cost`` is the memory that parsing a line takes, UsageError where it is
    too much; ``room`` is held for that long, and for a line as long as it is there. What is said
    once ``closing`` is no answer.
    """

    endpoints: tuple[str, ...] = ENDPOINTS
    line_bytes: int = LINE_BYTES
    ahead: int = 4
    held_bytes: int | None = None
    key: str | None = None
    cost: Callable[[bytes], int] = _nothing
    room: Callable[[int], AbstractAsyncContextManager[None]] = _any_room
    closing: Callable[[], bool] = _never


RULES = Rules()
"""Of who has the machine alone."""


def requests_in(source: BinaryIO, most: int = LINE_BYTES) -> Iterator[bytes]:
    """The lines of a file that are not empty; one that is too long is cut behind ``most`` bytes."""
    while line := source.readline(most + 1):
        # Which lines are empty does not depend on where they are cut.
        cut, empty = line, not line.strip()
        while not line.endswith(b"\n") and len(line) > most:
            line = source.readline(most + 1)
            empty = empty and not line.strip()
        if not empty:
            yield cut


def whole_lines(target: Path) -> tuple[int, bytes]:
    """Lines of a file of answers, and the last one; what a killed run left half written is cut
    off."""
    done, end, last = 0, 0, b""
    if target.exists():
        with target.open("r+b") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                done, end, last = done + 1, end + len(line), line
            file.truncate(end)
    return done, last


def resume(target: Path, source: Path) -> int:
    """Lines of ``source`` that ``target`` has answers to; see ``whole_lines``. UsageError if they
    are answers to something else."""
    done, last = whole_lines(target)
    if not done:
        return 0
    with source.open("rb") as file:
        for number, line in enumerate(requests_in(file), 1):
            if number == done:
                if _custom_id(last) in (None, _custom_id(line)):
                    return done
                break
    raise UsageError(
        f"{target} has answers to other requests than those in {source}: give another name, or "
        f"remove it"
    )


def _custom_id(line: bytes) -> str | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    id = found.get("custom_id") if isinstance(found, dict) else None
    return id if isinstance(id, str) else None


@dataclass(frozen=True)
class _Said:
    """What was said to a request, as it is written."""

    line: bytes
    failed: bool
    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, result: dict[str, Any]) -> _Said:
        """Of a line of answers."""
        right = succeeded(result)
        usage = (result["response"]["body"].get("usage") if right else None) or {}
        tokens = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        return cls(compact_json(result) + b"\n", not right, *tokens)


async def run_batch(
    app: ASGIApp,
    model: str,
    source: BinaryIO,
    target: BinaryIO,
    *,
    skip: int,
    together: int,
    progress: Callable[[BatchTotals], None] | None = None,
    rules: Rules = RULES,
) -> BatchTotals:
    """Answer the lines of ``source`` behind the first ``skip``, ``together`` at a time, with
    ``model`` whatever model they name."""
    totals = BatchTotals(resumed=skip)
    running: deque[tuple[asyncio.Task[_Said], AsyncExitStack, int]] = deque()
    free = asyncio.Semaphore(together)
    held = 0

    async def answer(number: int, line: bytes) -> _Said:
        async with free:
            return await _answer(app, model, number, line, rules)

    async def write() -> None:
        nonlocal held
        task, room, nbytes = running[0]
        said = await task
        running.popleft()
        await room.aclose()
        held -= nbytes
        target.write(said.line)
        target.flush()
        totals.lines += 1
        totals.failed += said.failed
        totals.prompt_tokens += said.prompt_tokens
        totals.completion_tokens += said.completion_tokens
        if progress is not None:
            progress(totals)

    def full(nbytes: int) -> bool:
        """Whether a line has to wait, behind what has come and behind what has not."""
        return len(running) >= rules.ahead * together or (
            rules.held_bytes is not None and held + nbytes > rules.held_bytes
        )

    try:
        for number, line in enumerate(requests_in(source, rules.line_bytes)):
            if number < skip:
                continue
            while running and full(len(line)):
                await write()
            room = AsyncExitStack()
            await room.enter_async_context(rules.room(COPIES * len(line)))
            running.append((asyncio.create_task(answer(number, line)), room, len(line)))
            held += len(line)
            await asyncio.sleep(0)
        while running:
            await write()
        os.fsync(target.fileno())
    finally:
        for task, _, _ in running:
            task.cancel()
        await asyncio.gather(*(task for task, _, _ in running), return_exceptions=True)
        for _, room, _ in running:
            await room.aclose()
    return totals


def succeeded(result: dict[str, Any]) -> bool:
    """Whether a line of answers is one, and no error."""
    response = result["response"]
    return response is not None and response["status_code"] == 200


async def _answer(app: ASGIApp, model: str, number: int, line: bytes, rules: Rules) -> _Said:
    result: dict[str, Any] = {
        "id": f"batch_req_{number}",
        "custom_id": None,
        "response": None,
        "error": None,
    }
    try:
        if len(line) > rules.line_bytes:
            raise UsageError(f"a line has at most {rules.line_bytes} bytes")
        async with rules.room(rules.cost(line)):
            path, data = _request(line, model, rules.endpoints, result)
    except UsageError as error:
        result["error"] = {"code": "invalid_request", "message": str(error)}
        return _Said.of(result)
    while True:
        status, said = await posted(app, path, data, rules.key)
        if status not in _BUSY and not rules.closing():
            break
        await asyncio.sleep(_AGAIN_S)
    result["response"] = {
        "status_code": status,
        "request_id": f"req_{number}",
        "body": json.loads(said),
    }
    return _Said.of(result)


def _request(
    line: bytes, model: str, endpoints: Sequence[str], result: dict[str, Any]
) -> tuple[str, bytes]:
    """Path and body of a line, of which ``result`` gets the id; UsageError for what is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"this line is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("a line is an object with custom_id, method, url and body")
    id, body = found.get("custom_id"), found.get("body")
    if not isinstance(id, str):
        raise UsageError("a line has a custom_id, which is text")
    result["custom_id"] = id
    if found.get("method", "POST") != "POST" or found.get("url") not in endpoints:
        raise UsageError(f"a line asks to POST to {' or '.join(endpoints)}")
    if not isinstance(body, dict):
        raise UsageError("a line has a body, which is an object")
    body |= {"model": model, "stream": False}
    body.pop("stream_options", None)
    try:
        return found["url"], compact_json(body)
    except RecursionError:
        raise UsageError("this line is nested too deep") from None
