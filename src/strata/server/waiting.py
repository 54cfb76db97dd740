"""While a model is being loaded: who asks is told so, and how far it is."""

from __future__ import annotations

import json
import selectors
import socket
from contextlib import suppress
from threading import Thread
from time import monotonic
from types import TracebackType

from strata.server.errors import ApiError, error_body
from strata.server.listening import Listening

_TURN_S = 0.1
_PATIENCE_S = 1.0
"""For which one client may take to send its request."""
_HEAD_BYTES = 16 << 10


class Waiting:
    """Answers every request at listening sockets with 503, in a thread, until it is ended, as the
    ``with`` does. Whoever connects afterwards waits for the real server."""

    def __init__(self, listening: Listening) -> None:
        self._sockets = listening.sockets
        self._step: tuple[str, int, int | None] = ("loading", 0, None)
        self._ended = False
        self._thread = Thread(target=self._serve, name="strata-waiting", daemon=True)

    def progress(self, label: str, done: int, total: int | None) -> None:
        """How far loading is; see ``LoadProgress``."""
        self._step = (label, done, total)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()

    def end(self) -> None:
        """The sockets are for somebody else now. Safe to call twice."""
        self._ended = True
        self._thread.join()
        for sock in self._sockets:
            with suppress(OSError):
                sock.settimeout(None)

    def _serve(self) -> None:
        with selectors.DefaultSelector() as selector:
            for sock in self._sockets:
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ, sock)
            while not self._ended:
                for key, _ in selector.select(_TURN_S):
                    self._accept(key.data)

    def _accept(self, sock: socket.socket) -> None:
        try:
            client, _ = sock.accept()
        except OSError:
            # Gone, closed, or the system has nothing left: loading is what counts.
            self._ended = self._ended or sock.fileno() < 0
            return
        with client, suppress(OSError):
            self._answer(client)

    def _answer(self, client: socket.socket) -> None:
        end = monotonic() + _PATIENCE_S
        head = b""
        while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES:
            client.settimeout(max(end - monotonic(), 0.001))
            part = client.recv(4096)
            if not part:
                return
            head += part
        parts = head.split(b" ", 2)
        path = parts[1].decode("latin-1") if len(parts) > 2 else "/"
        label, done, total = self._step
        share = f" ({done / total:.0%})" if total else ""
        error = ApiError(503, f"the model is being loaded: {label}{share}", code="loading")
        body = error_body(path, error)
        body["progress"] = {"step": label, "done": done, "total": total}
        data = json.dumps(body).encode()
        lines = (
            b"HTTP/1.1 503 Service Unavailable",
            b"content-type: application/json",
            b"content-length: %d" % len(data),
            b"retry-after: 1",
            b"connection: close",
        )
        client.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if parts[0] == b"HEAD" else data))
        # What it still sends is read, or closing would lose the answer on its way.
        client.shutdown(socket.SHUT_WR)
        while monotonic() < end and client.recv(1 << 16):
            client.settimeout(max(end - monotonic(), 0.001))
