"""What the event loop is told of a run whose end comes while it looks."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from strata.engine import Turn

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")

from strata.server.bridge import AsyncRun, Bridge, Observer


class LateRun:
    """Its last token comes just after the event loop has taken what was there."""

    jobs = ()
    open = 1

    def __init__(self) -> None:
        self.over = False
        self._came: list[tuple[int, Any]] = []

    def take(self) -> Iterator[tuple[int, Any]]:
        came, self._came = self._came, []
        yield from came
        if not self.over:
            self._came.append((0, "the last"))
            self.over = True

    def check(self) -> None:
        pass


def test_an_end_that_comes_meanwhile_is_told_by_the_next_turn() -> None:
    run: Any = LateRun()
    driver: Any = SimpleNamespace(
        engine=SimpleNamespace(status=lambda: None),
        check=lambda jobs: None,
        submit=lambda jobs: run,
    )

    async def answer() -> list[tuple[int, Any] | None]:
        bridge = Bridge(driver, queue=1, observer=Observer())
        asked: AsyncRun = bridge.submit([])
        turn: Any = Turn(None, frozenset([run]), driver.engine.status())
        for _ in range(2):
            bridge._receive(turn)
        assert not bridge._runs
        return [event async for event in asked.tokens()]

    got = asyncio.run(asyncio.wait_for(answer(), 5))
    assert got == [(0, "the last")]
