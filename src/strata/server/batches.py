"""Batches that clients of a server have asked for: one at a time, beside who waits for tokens.

Each is a file of requests; answers are written in their order, so that a server that was killed
goes on behind the last whole one. When all are there they are split into a file of answers and one
of errors. What a batch is lies beside them (``file_store``), written when its status changes.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import time
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from starlette.types import ASGIApp

from strata.errors import StrataError, UsageError
from strata.server.admission import Measure
from strata.server.batch import (
    COPIES,
    LINE_BYTES,
    BatchTotals,
    Rules,
    requests_in,
    run_batch,
    succeeded,
    whole_lines,
)
from strata.server.errors import ApiError
from strata.server.file_store import UNFINISHED, FileStore

if TYPE_CHECKING:
    from strata.server.service import Service

_log = logging.getLogger("strata.server")

MOST_LINES = 50_000
"""Requests of a batch, as OpenAI's has it."""

_WINDOW_S = 24 * 3600

_SHARE = 4
"""One in so many parts of the memory for requests is what the lines that are held may take, with
the requests in them; to parse and to serve one may take the others."""

_PIECE = 64 << 10
"""Of a line that is only counted."""

_AGAIN_S = 1.0
"""After which memory is asked for again."""

_DISK_S = 30.0
"""After which a disk is tried again that could not be written to."""


class Batches:
    """The batches of one server. For the event loop's thread."""

    def __init__(self, service: Service, store: FileStore) -> None:
        self._service = service
        self._store = store
        self._app: ASGIApp | None = None
        self._wake = asyncio.Event()
        self._stopping = False
        self._runner: asyncio.Task[None] | None = None
        self._now: dict[str, asyncio.Task[BatchTotals]] = {}
        self._totals: dict[str, BatchTotals] = {}

    def start(self, app: ASGIApp) -> None:
        """Go on with what an earlier server has left; requests are answered by ``app``."""
        self._app = app
        if self._store.path.exists():
            self._run_soon()

    async def stop(self) -> None:
        """What is under way is left for the next server."""
        self._stopping = True
        if self._runner is not None:
            self._runner.cancel()
            with suppress(asyncio.CancelledError):
                await self._runner
        self._store.close()

    def _run_soon(self) -> None:
        self._wake.set()
        if self._runner is None or self._runner.done():
            self._runner = asyncio.create_task(self._run())

    async def create(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A new batch of the file ``input_file_id``."""
        if self._store.file(asked["input_file_id"])["purpose"] != "batch":
            raise ApiError(
                400, "a batch is made of a file with the purpose batch", param="input_file_id"
            )
        now = int(time())
        batch = {
            "id": f"batch_{secrets.token_hex(12)}",
            "object": "batch",
            "endpoint": asked["endpoint"],
            "errors": None,
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": now,
            "expires_at": now + _WINDOW_S,
            "request_counts": {"total": 0, "completed": 0, "failed": 0},
            "metadata": asked.get("metadata"),
            # Whose answers they are: another model's server does not go on with them.
            "model": self._service.name,
        }
        await asyncio.to_thread(self._store.make_place)
        await asyncio.to_thread(self._store.write, batch)
        self._run_soon()
        return batch

    def told(self, batch: dict[str, Any]) -> dict[str, Any]:
        """What is known of a batch, with how far it has come by now."""
        totals = self._totals.get(batch["id"])
        if totals is None:
            return batch
        return batch | {"request_counts": _counts(batch, totals)}

    def cancel(self, id: str) -> dict[str, Any]:
        """Answer no more of it; ApiError where it has ended already."""
        batch = self._store.batch(id)
        if batch["status"] not in UNFINISHED:
            raise ApiError(400, f"this batch is {batch['status']} already")
        if batch["status"] in ("validating", "in_progress"):
            batch |= {"status": "cancelling", "cancelling_at": int(time())}
            self._store.write(batch, ours=True)
        if (running := self._now.get(id)) is not None:
            running.cancel()
        self._run_soon()
        return self.told(batch)

    def check_unused(self, file: str) -> None:
        """ApiError where a batch that has not ended is made of a file."""

        def is_made_of_it(batch: dict[str, Any]) -> bool:
            return batch["input_file_id"] == file and batch["status"] in UNFINISHED

        if found := self._store.ids("batch", is_made_of_it):
            raise ApiError(400, f"{found[0]} is being made of this file: cancel it first")

    async def _run(self) -> None:
        """One after the other, the oldest first."""
        while True:
            self._wake.clear()
            try:
                waiting = await asyncio.to_thread(self._store.ids, "batch", self._is_for_us)
                batch = self._store.batch(waiting[-1]) if waiting else None
            except ApiError as error:
                _log.warning("batches do not go on: %s", error)
                return
            if batch is None:
                await self._wake.wait()
                continue
            try:
                await self._bring_forward(batch)
            except (StrataError, OSError) as error:
                await self._fail(batch, getattr(error, "strerror", None) or str(error))
            except Exception:
                # One that cannot be worked on does not keep others from it.
                _log.exception("%s cannot be answered", batch["id"])
                await self._fail(batch, "the server failed; its log says why")

    def _is_for_us(self, batch: dict[str, Any]) -> bool:
        """Whether a batch waits for this server: any may end one of which no more is answered."""
        ours = batch["model"] in self._service.names
        return batch["status"] in (UNFINISHED if ours else ("finalizing", "cancelling"))

    async def _bring_forward(self, batch: dict[str, Any]) -> None:
        id, store = batch["id"], self._store
        source = store.content(batch["input_file_id"])
        if batch["status"] == "validating":
            total = await asyncio.to_thread(_lines, source)
            if not 0 < total <= MOST_LINES:
                raise StrataError(f"a batch has 1 to {MOST_LINES} requests, and this one {total}")
            batch |= store.batch(id)
            batch["request_counts"] = {"total": total, "completed": 0, "failed": 0}
            if batch["status"] == "validating":
                batch |= {"status": "in_progress", "in_progress_at": int(time())}
            store.write(batch, ours=True)
        if batch["status"] == "in_progress":
            await self._answer(batch, source)
        await self._finish(batch)

    async def _answer(self, batch: dict[str, Any], source: Path) -> None:
        id = batch["id"]
        before = await asyncio.to_thread(self._answered, id)
        rules = self._rules(batch["endpoint"])
        assert self._app is not None
        with source.open("rb") as asked, self._store.add_to_work(id) as answers:
            running = asyncio.create_task(
                run_batch(
                    self._app,
                    self._service.name,
                    asked,
                    cast(BinaryIO, _Counted(answers, self._store)),
                    skip=before.lines,
                    together=self._together,
                    progress=lambda now: self._note(id, before, now),
                    rules=rules,
                )
            )
            self._now[id] = running
            try:
                await running
            except asyncio.CancelledError:
                # With all of the server, or by who asked for the batch.
                if self._stopping:
                    raise
            finally:
                del self._now[id]
                await asyncio.gather(running, return_exceptions=True)

    def _note(self, id: str, before: BatchTotals, now: BatchTotals) -> None:
        self._totals[id] = BatchTotals(before.lines + now.lines, before.failed + now.failed)

    @property
    def _together(self) -> int:
        """Requests of a batch at once: one place is left to those who wait for an answer."""
        return max(1, self._service.llm.runtime.parallel - 1)

    def _rules(self, endpoint: str) -> Rules:
        admission, settings = self._service.admission, self._service.settings
        # What lines take that are held leaves room for each of them.
        most = admission.capacity - admission.capacity // _SHARE

        def cost(line: bytes) -> int:
            measure = Measure.of(line, settings.values)
            if measure.values > settings.values or measure.depth > settings.depth:
                raise UsageError(
                    f"a line has at most {settings.values} values, {settings.depth} deep"
                )
            if measure.cost > most:
                raise UsageError("there is no memory for this line in the server's budget")
            return measure.cost

        @asynccontextmanager
        async def room(nbytes: int) -> AsyncIterator[None]:
            while not await admission.take(nbytes):
                await asyncio.sleep(_AGAIN_S)
            try:
                yield
            finally:
                admission.give(nbytes)

        return Rules(
            endpoints=(endpoint,),
            line_bytes=max(1 << 10, min(LINE_BYTES, most // Measure(1, 0, 0, 1).cost)),
            ahead=1,
            held_bytes=admission.capacity // _SHARE // COPIES,
            key=settings.api_key,
            cost=cost,
            room=room,
            closing=lambda: self._service.bridge.closing,
        )

    async def _finish(self, batch: dict[str, Any]) -> None:
        batch |= self._store.batch(batch["id"])
        end = "cancelled" if batch["status"] == "cancelling" else "completed"
        if batch["status"] == "in_progress":
            batch |= {"status": "finalizing", "finalizing_at": int(time())}
            self._store.write(batch, ours=True)
        await self._end(batch, end)

    async def _fail(self, batch: dict[str, Any], why: str) -> None:
        """It cannot go on; what was answered is kept."""
        data = [{"code": "failed", "message": why, "line": None, "param": None}]
        batch["errors"] = {"object": "list", "data": data}
        try:
            await self._end(batch, "failed")
        except (OSError, StrataError) as error:
            _log.warning("%s failed, which cannot be written down: %s", batch["id"], error)
            await asyncio.sleep(_DISK_S)

    async def _end(self, batch: dict[str, Any], status: str) -> None:
        totals = await asyncio.to_thread(self._answered, batch["id"])
        await asyncio.to_thread(self._split, batch, totals)
        batch |= {"status": status, f"{status}_at": int(time())}
        batch["request_counts"] = _counts(batch, totals)
        self._store.write(batch, ours=True)
        self._store.drop_work(batch["id"])
        self._totals.pop(batch["id"], None)

    def _answered(self, id: str) -> BatchTotals:
        """What was answered of a batch: whole lines, and those of them that are errors."""
        work, totals = self._store.work(id), BatchTotals()
        if work.exists():
            size = work.stat().st_size
            totals.lines, _ = whole_lines(work)
            self._store.give(size - work.stat().st_size)
            with work.open("rb") as file:
                totals.failed = sum(not _right(line) for line in file)
        return totals

    def _split(self, batch: dict[str, Any], totals: BatchTotals) -> None:
        """Answers and errors, each in a file. Where there is no room for both, one has all."""
        work = self._store.work(batch["id"])
        for count, wanted, field in (
            (totals.lines - totals.failed, True, "output_file_id"),
            (totals.failed, False, "error_file_id"),
        ):
            if not count:
                continue
            name = f"{batch['id']}_{'output' if wanted else 'error'}.jsonl"
            # By a name of its own, so that doing it again after a kill makes no second one.
            made_of = hashlib.sha256(f"{batch['id']} {field}".encode()).hexdigest()
            id = batch[field] = f"file-{made_of[:24]}"
            if self._store.info_bytes(id):
                continue
            try:
                if count == totals.lines:
                    self._store.link(work, id, name)
                else:
                    self._copy(work, id, name, wanted)
            except ApiError:
                if count == totals.lines:
                    self._copy(work, id, name, wanted)
                else:
                    self._store.link(work, id, name)

    def _copy(self, work: Path, id: str, name: str, wanted: bool) -> None:
        with self._store.new("batch_output", id) as made, work.open("rb") as file:
            for line in file:
                if _right(line) == wanted:
                    made.write(line)
            made.finish(name, ours=True)


class _Counted:
    """A file whose bytes count for the folder's bound."""

    def __init__(self, file: BinaryIO, store: FileStore) -> None:
        self._file, self._store = file, store
        self.flush, self.fileno = file.flush, file.fileno

    def write(self, data: bytes) -> None:
        """More of it; ApiError where there is no room."""
        self._store.take(len(data))
        self._file.write(data)


def _counts(batch: dict[str, Any], totals: BatchTotals) -> dict[str, int]:
    return {
        "total": batch["request_counts"]["total"],
        "completed": totals.lines - totals.failed,
        "failed": totals.failed,
    }


def _lines(source: Path) -> int:
    with source.open("rb") as file:
        return sum(1 for _ in requests_in(file, _PIECE))


def _right(line: bytes) -> bool:
    """Whether an answer is one, and no error, nor damaged."""
    try:
        return succeeded(json.loads(line))
    except (ValueError, TypeError, KeyError):
        return False
