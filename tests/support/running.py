"""A real server in a thread of the test's process."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")
pytest.importorskip("uvicorn", reason="the extra strata-llm[server] is not installed")
pytest.importorskip("prometheus_client", reason="the extra strata-llm[server] is not installed")
pytest.importorskip("llguidance", reason="the extra strata-llm[server] is not installed")

from strata.llm import LLM
from strata.server.listening import bind
from strata.server.service import Service
from strata.server.serving import Server
from strata.server.settings import Settings

KEY = "a key"
NAMES = ("smollm2", "also/known-as")


@dataclass
class Running:
    """A server, its address, and what it serves."""

    url: str
    service: Service
    server: Server

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=30)

    def wait_until_free(self) -> None:
        """Nothing waits, nothing runs, no KV block is held."""

        def free() -> bool:
            status = self.service.bridge.status
            return (
                self.service.bridge.open == 0
                and status.running == status.waiting == 0
                and status.kv_blocks == status.kv_blocks_free
            )

        wait_for(free)
        self.service.llm.engine.check_integrity()


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def load(path: Path, **options: int | str) -> LLM:
    """A model for tests."""
    return LLM(path, **{"threads": 2, "context": 1024, "parallel": 4, **options})  # type: ignore[arg-type]


@contextmanager
def serving(model: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process and its address, once it serves."""
    command = [sys.executable, "-m", "strata", "serve", str(model), "--port", "0", "--threads", "2"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        lines = [process.stderr.readline()]
        while not lines[-1].startswith("listening at http://"):
            assert lines[-1], f"no server: {lines}"
            lines.append(process.stderr.readline())
        yield process, lines[-1].split()[2]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def metric(url: str, name: str) -> float:
    """A figure of ``/metrics`` that has no labels."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


@contextmanager
def running(llm: LLM, *, send_buffer: int | None = None, **settings: object) -> Iterator[Running]:
    """Serve ``llm``, which belongs to the server until the end.

    With a small ``send_buffer`` the system takes little of what a client does not read.
    """
    chosen = Settings(**{"port": 0, "grace_s": 5.0, **settings})  # type: ignore[arg-type]
    address: list[str] = []
    service = Service(llm, NAMES, chosen)
    listening = bind(chosen)
    if send_buffer is not None:
        listening.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    server = Server(service, listening, address.append)
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(server.serve_until_stopped()))
    thread.start()
    try:
        wait_for(lambda: bool(address) or not thread.is_alive())
        yield Running(address[0], service, server)
    finally:
        server.should_exit = True
        thread.join(30)
    assert ended == [True]
