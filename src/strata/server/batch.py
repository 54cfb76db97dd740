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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from starlette.types import ASGIApp, Message

from strata.errors import UsageError
from strata.server.openai.batches import ENDPOINTS

LINE_BYTES = 8 << 20
"""The longest line that is read."""

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


class LineTooLarge(UsageError):
    """A line that is not looked into."""


@asynccontextmanager
async def _any_room(line: bytes) -> AsyncIterator[None]:
    yield


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Rules:
    """How lines are answered.

    Each has at most ``line_bytes`` and asks one of ``endpoints``, with ``key`` where the
    application wants one; ``ahead`` times as many are held as run together. ``room`` is held while
    a line is parsed, LineTooLarge where there never is any. What is said once ``closing`` is no
    answer.
    """

    endpoints: tuple[str, ...] = ENDPOINTS
    line_bytes: int = LINE_BYTES
    ahead: int = 4
    key: str | None = None
    room: Callable[[bytes], AbstractAsyncContextManager[None]] = _any_room
    closing: Callable[[], bool] = _never


RULES = Rules()
"""Of who has the machine alone."""


def requests_in(source: BinaryIO, most: int = LINE_BYTES) -> Iterator[bytes]:
    """The lines of a file that are not empty; one that is too long is cut behind ``most`` bytes."""
    while line := source.readline(most + 1):
        cut = line
        while not line.endswith(b"\n") and len(line) > most:
            line = source.readline(most + 1)
            if not line:
                break
        if cut.strip():
            yield cut


def resume(target: Path, source: Path) -> int:
    """Lines of ``source`` that ``target`` has answers to; what a killed run left half written is
    cut off. UsageError if they are answers to something else."""
    if not target.exists():
        return 0
    done, end, last = 0, 0, b""
    with target.open("r+b") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            done, end, last = done + 1, end + len(line), line
        file.truncate(end)
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


def _custom_id(line: bytes) -> Any:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found.get("custom_id") if isinstance(found, dict) else None


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
    running: deque[asyncio.Task[dict[str, Any]]] = deque()
    free = asyncio.Semaphore(together)

    async def answer(number: int, line: bytes) -> dict[str, Any]:
        async with free:
            return await _answer(app, model, number, line, rules)

    async def write() -> None:
        result = await running[0]
        running.popleft()
        target.write(json.dumps(result, ensure_ascii=False).encode() + b"\n")
        target.flush()
        _count(totals, result)
        if progress is not None:
            progress(totals)

    try:
        for number, line in enumerate(requests_in(source, rules.line_bytes)):
            if number < skip:
                continue
            # What has come waits behind what has not, no more than this.
            while len(running) >= rules.ahead * together:
                await write()
            running.append(asyncio.create_task(answer(number, line)))
            await asyncio.sleep(0)
        while running:
            await write()
        os.fsync(target.fileno())
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return totals


def succeeded(result: dict[str, Any]) -> bool:
    """Whether a line of answers is one, and no error."""
    response = result["response"]
    return response is not None and response["status_code"] == 200


def _count(totals: BatchTotals, result: dict[str, Any]) -> None:
    totals.lines += 1
    if not succeeded(result):
        totals.failed += 1
        return
    usage = result["response"]["body"].get("usage") or {}
    totals.prompt_tokens += usage.get("prompt_tokens", 0)
    totals.completion_tokens += usage.get("completion_tokens", 0)


async def _answer(
    app: ASGIApp, model: str, number: int, line: bytes, rules: Rules
) -> dict[str, Any]:
    result: dict[str, Any] = {
        "id": f"batch_req_{number}",
        "custom_id": None,
        "response": None,
        "error": None,
    }
    try:
        async with rules.room(line):
            path, data, result["custom_id"] = _request(line, model, rules)
    except UsageError as error:
        result["error"] = {"code": "invalid_request", "message": str(error)}
        if not isinstance(error, LineTooLarge):
            result["custom_id"] = _custom_id(line)
        return result
    while True:
        status, said = await _post(app, path, data, rules.key)
        if status not in _BUSY and not rules.closing():
            break
        await asyncio.sleep(_AGAIN_S)
    result["response"] = {
        "status_code": status,
        "request_id": f"req_{number}",
        "body": json.loads(said),
    }
    return result


def _request(line: bytes, model: str, rules: Rules) -> tuple[str, bytes, str]:
    """Path, body and id of a line; UsageError for what is none."""
    if len(line) > rules.line_bytes:
        raise LineTooLarge(f"a line has at most {rules.line_bytes} bytes")
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"this line is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise UsageError("a line is an object with custom_id, method, url and body")
    id, body = found.get("custom_id"), found.get("body")
    if not isinstance(id, str):
        raise UsageError("a line has a custom_id, which is text")
    if found.get("method", "POST") != "POST" or found.get("url") not in rules.endpoints:
        raise UsageError(f"a line asks to POST to {' or '.join(rules.endpoints)}")
    if not isinstance(body, dict):
        raise UsageError("a line has a body, which is an object")
    body |= {"model": model, "stream": False}
    body.pop("stream_options", None)
    return found["url"], json.dumps(body).encode(), id


async def _post(app: ASGIApp, path: str, body: bytes, key: str | None) -> tuple[int, bytes]:
    """Status and body of the answer to a request that comes over no wire."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *([] if key is None else [(b"authorization", f"Bearer {key}".encode())]),
        ],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }
    said, status, told = bytearray(), 500, False

    async def receive() -> Message:
        nonlocal told
        if told:
            # Nobody goes away.
            await asyncio.Event().wait()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            said.extend(message.get("body", b""))

    call: Awaitable[None] = app(scope, receive, send)
    await call
    return status, bytes(said)
