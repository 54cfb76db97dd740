"""Frames on a socket, four bytes of length and then so many bytes, and what is in some."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from time import monotonic

_LENGTH = struct.Struct("<I")

VOCABULARY = struct.Struct("<IiII")
"""A vocabulary: tokens, id of the token at a beginning (-1: none), special ids, end ids. Then the
special ids, the end ids and the length of each token, four bytes each, and the tokens."""

COMMAND = struct.Struct("<cIi")
"""What is done to a position, its number, and a token or the number of another position: ``n`` a
new one, ``c`` a copy of another, ``a`` accept a token; each is answered with the mask. ``d``, drop
it, is not answered."""


class FrameError(Exception):
    """The other side is gone, or says more than it may."""


def send(sock: socket.socket, payload: bytes, fd: int | None = None) -> None:
    """Send a frame, and with it a file descriptor if one is given."""
    length = _LENGTH.pack(len(payload))
    if fd is None:
        sock.sendall(length + payload)
    else:
        socket.send_fds(sock, [length], [fd])
        sock.sendall(payload)


def receive(
    sock: socket.socket,
    *,
    most: int,
    seconds: float | None = None,
    prepare: Callable[[int], None] | None = None,
) -> bytearray:
    """The next frame. ``prepare`` is told its length before there is memory for it. Raises
    FrameError at the end of the stream and for more than ``most`` bytes, TimeoutError unless it is
    there within ``seconds``."""
    end = None if seconds is None else monotonic() + seconds
    (length,) = _LENGTH.unpack(_exactly(sock, _LENGTH.size, end))
    if length > most:
        raise FrameError(f"a frame of {length} bytes, where {most} are allowed")
    if prepare is not None:
        prepare(length)
    return _exactly(sock, length, end)


def receive_with_fd(sock: socket.socket) -> tuple[bytearray, int | None]:
    """The next frame and the descriptor that came with it."""
    head, fds, _, _ = socket.recv_fds(sock, _LENGTH.size, 1)
    if not head:
        raise FrameError("the other side is gone")
    head += _exactly(sock, _LENGTH.size - len(head), None)
    (length,) = _LENGTH.unpack(head)
    return _exactly(sock, length, None), fds[0] if fds else None


def _exactly(sock: socket.socket, size: int, end: float | None) -> bytearray:
    out = bytearray(size)
    view, have = memoryview(out), 0
    while have < size:
        if end is not None:
            left = end - monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
        came = sock.recv_into(view[have:])
        if not came:
            raise FrameError("the other side is gone")
        have += came
    return out
