"""What a ward for templates does."""

from __future__ import annotations

import json
import socket

from strata.guard import limits, wire
from strata.guard.errors import TemplateFailure
from strata.guard.templates import render


def serve(sock: socket.socket, nbytes: int) -> None:
    """Render what is asked for, until nobody asks; with ``nbytes`` for a short conversation."""

    def prepare(size: int) -> None:
        limits.allow_memory(limits.template_bytes(size, nbytes))

    while True:
        try:
            payload = wire.receive(sock, most=1 << 31, prepare=prepare)
        except wire.FrameError:
            return
        # For taking the job apart.
        limits.allow_time(limits.TEMPLATE_S)
        wire.send(sock, _answer(payload))


def _answer(payload: bytearray) -> bytes:
    try:
        most = limits.template_characters(len(payload))
        asked = json.loads(payload.decode("utf-8", "surrogatepass"))
        del payload
        limits.allow_time(asked["seconds"])
        text = render(asked["source"], asked["variables"], most)
        return b"+" + text.encode("utf-8", "surrogatepass")
    except TemplateFailure as failure:
        return b"-" + str(failure).encode("utf-8", "surrogatepass")
    except MemoryError:
        return b"-the chat template takes more memory than a chat template may"
