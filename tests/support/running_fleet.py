"""A server of several models in a thread of the test's process."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")
pytest.importorskip("llguidance", reason="the extra strata-llm[server] is not installed")

from strata.server.fleet.entries import Entries, Entry
from strata.server.fleet.fleet import Fleet
from strata.server.fleet.front import Front
from strata.server.listening import bind
from strata.server.serving import Server
from strata.server.settings import Settings
from support.running import wait_for

DEFAULTS = {"context": 256, "parallel": 2, "threads": 1, "kv_type": None, "draft": "off"}


@dataclass
class RunningFleet:
    """A server, its address, and its models."""

    url: str
    fleet: Fleet

    def ask(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, Any]:
        """Status and JSON."""
        status, data = self.raw(path, body, method)
        return status, json.loads(data) if data else None

    def raw(self, path: str, body: Any = None, method: str | None = None) -> tuple[int, bytes]:
        """Status and bytes."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=240) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextmanager
def running_fleet(
    entries: Sequence[Entry],
    room: int,
    *,
    saved: Path | None = None,
    keep_alive_s: float = 300.0,
    keepalive_s: float = 0.05,
    defaults: dict[str, Any] = DEFAULTS,
    **settings: Any,
) -> Iterator[RunningFleet]:
    """Serve ``entries``, with ``room`` bytes for processes."""
    chosen = Settings(port=0, grace_s=5.0, keepalive_s=keepalive_s, **settings)
    address: list[str] = []
    fleets: list[Fleet] = []

    def serve() -> None:
        fleet = Fleet(
            Entries(entries, saved),
            room,
            0,
            defaults=defaults,
            worker_settings={"grace_s": 1.0},
            keep_alive_s=keep_alive_s,
            grace_s=1.0,
        )
        fleets.append(fleet)
        servers.append(Server(Front(fleet, chosen), listening, address.append))
        servers[0].serve_until_stopped()

    servers: list[Server] = []
    listening = bind(chosen)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        wait_for(lambda: bool(address) or not thread.is_alive())
        yield RunningFleet(address[0], fleets[0])
    finally:
        servers[0].should_exit = True
        thread.join(30)
    assert not thread.is_alive()
