"""The sockets of a server: all that listen at the addresses it was given."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from strata.errors import StrataError
from strata.server.settings import Settings

_BACKLOG = 256


class Listening:
    """Sockets that listen, closed at the end of ``with``."""

    def __init__(self) -> None:
        self.sockets: list[socket.socket] = []

    @property
    def port(self) -> int:
        """That of all of them."""
        return int(self.sockets[0].getsockname()[1])

    @property
    def addresses(self) -> list[str]:
        """Where they are reached, as URLs."""
        found = [sock.getsockname()[:2] for sock in self.sockets]
        return [f"http://{f'[{host}]' if ':' in host else host}:{port}" for host, port in found]

    def close(self) -> None:
        """Safe to call twice."""
        for sock in self.sockets:
            sock.close()

    def __enter__(self) -> Listening:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def bind(settings: Settings) -> Listening:
    """Listen at the wanted addresses, all at one port, before anything slow begins. StrataError if
    one is taken."""
    listening = Listening()
    port = settings.port
    try:
        for host in settings.hosts:
            with _named(host, port):
                listening.sockets.append(_bound(host, port, apart=len(settings.hosts) > 1))
            # Of any that is free the first one's is everybody's.
            port = listening.port
    except BaseException:
        listening.close()
        raise
    return listening


def _bound(host: str, port: int, *, apart: bool) -> socket.socket:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if apart and family == socket.AF_INET6:
            # "::" alone stands for IPv4, too; beside 0.0.0.0 it would be in its way.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        # Two may bind to one port as long as none listens: who comes second is told here.
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def _named(host: str, port: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = f"{host} port {port}"
        if error.errno == errno.EADDRINUSE:
            raise StrataError(f"{where} is in use; choose another with --port") from None
        raise StrataError(f"cannot listen at {where}: {error.strerror or error}") from None
