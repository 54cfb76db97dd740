"""The outer ends of processes: started, told what to do, listened to, ended."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any, Literal

from strata.server.fleet.wire import LONGEST_LINE, ProcessFailed

_ENDING_S = 5.0
"""Beyond its grace, for a process to end by itself."""

Kind = Literal["worker", "helper"]


class Child:
    """A process of ours. ``asked`` is told it at once; lines come from ``told``."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, kind: Kind, asked: dict[str, Any]) -> Child:
        """Start one in a session of its own: Ctrl-C in a terminal is the front's to hear."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", f"strata.server.fleet.{kind}"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=LONGEST_LINE,
            # Several processes that each keep freed memory for every thread take much of it.
            env={"MALLOC_ARENA_MAX": "2", **os.environ},
        )
        assert process.stdin is not None
        with suppress(ConnectionError):
            process.stdin.write(json.dumps(asked).encode() + b"\n")
            await process.stdin.drain()
        return cls(process)

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.returncode is not None

    async def told(self) -> AsyncIterator[dict[str, Any]]:
        """What it tells until it ends. ProcessFailed for a failure that it tells of."""
        assert self._process.stdout is not None
        lines = aiter(self._process.stdout)
        while True:
            try:
                said = json.loads(await anext(lines))
            except StopAsyncIteration:
                return
            except ValueError:
                raise ProcessFailed(
                    {"message": "what its process told is no line of ours"}
                ) from None
            if "failed" in said:
                raise ProcessFailed(said["failed"])
            yield said

    async def wait(self) -> int:
        """Until it has ended: its exit status, negative for a signal."""
        return await self._process.wait()

    async def end(self, grace_s: float = 0.0) -> None:
        """Have it end, and wait for that: its memory is free then."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), grace_s + _ENDING_S)
        except asyncio.TimeoutError:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """End it at once."""
        with suppress(ProcessLookupError):
            self._process.kill()


def how_it_ended(status: int) -> str:
    """For people."""
    if status == -9:
        return "it was killed by the system, mostly for want of memory"
    return f"it ended by signal {-status}" if status < 0 else f"it ended with status {status}"
