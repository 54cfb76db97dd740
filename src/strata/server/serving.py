"""Listening, serving, and coming to an end within a bound."""

from __future__ import annotations

import asyncio
import gc
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Protocol, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from strata.server.crowd import Crowd
from strata.server.guard import CROWD, HEAD_BYTES, is_upload
from strata.server.listening import Listening
from strata.server.origins import HeaderNames
from strata.server.parting import Parting
from strata.server.settings import Settings

_IDLE_S = 30
"""For which a connection is kept between two requests."""

_SWITCH_S = 5e-4
"""For which a thread has the interpreter while others want it; a token asks for it several times.
"""

_NEW_OBJECTS = 7_000
"""After which garbage is looked for among them: ten times as many as usual."""

_PROBES_S = (0.02, 0.1, 0.5, 2.0, 10.0)
"""Between two looks whether a client that sends no more still reads."""

_UPLOAD_PART = 1 << 20
"""Bytes of a file that is sent for which a client has as long as for a whole request."""

_LAST_WORDS_S = 1.0
"""Beyond the grace, for telling those who are cut off."""


class Served(Protocol):
    """What a server serves, and how that comes to an end."""

    settings: Settings

    def app(self) -> ASGIApp:
        """The application."""

    def begin_closing(self) -> None:
        """No more requests are taken."""

    def cut_off(self) -> None:
        """Those that run are ended."""

    def close(self) -> bool:
        """End all else; False if something cannot be ended."""


class Server(uvicorn.Server):
    """A uvicorn server for one service. ``ready`` gets the addresses when requests are served."""

    def __init__(
        self, service: Served, listening: Listening, ready: Callable[[str], None] | None = None
    ) -> None:
        settings = service.settings
        self._crowd = Crowd(settings.connections)
        super().__init__(
            uvicorn.Config(
                HeaderNames(service.app()),
                loop="asyncio",
                # Any factory of protocols will do for uvicorn, whatever its annotation says.
                http=cast(
                    "type[asyncio.Protocol]",
                    partial(_Protocol, settings=settings, crowd=self._crowd),
                ),
                ws="none",
                lifespan="on",
                log_config=None,
                log_level="critical",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_IDLE_S,
                timeout_graceful_shutdown=cast(int, settings.grace_s + _LAST_WORDS_S),
                h11_max_incomplete_event_size=HEAD_BYTES,
            )
        )
        self._service = service
        self._listening = listening
        self._ready = ready

    def serve_until_stopped(self) -> bool:
        """Serve until a signal or ``should_exit``; False if the engine is still in a step."""
        try:
            with _tokens_first():
                self.run(sockets=self._listening.sockets)
        finally:
            self._listening.close()
            ended = self._service.close()
        return ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        # Without a socket: those who connect are accepted here.
        await super().startup([])
        config = self.config
        self.lifespan.state[CROWD] = self._crowd

        def connection() -> asyncio.Protocol:
            make = cast("Callable[..., asyncio.Protocol]", config.http_protocol_class)
            return make(
                config=config, server_state=self.server_state, app_state=self.lifespan.state
            )

        accept = partial(self._crowd.accept, make=connection)
        self._accepting = [asyncio.create_task(accept(s)) for s in self._listening.sockets]
        if self._ready:
            self._ready(" and ".join(self._listening.addresses))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for task in self._accepting:
            task.cancel()
        service = self._service
        service.begin_closing()
        asyncio.get_running_loop().call_later(service.settings.grace_s, service.cut_off)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        # uvicorn would send itself the signal again at the end; here a signal is a way to end well.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First signal: finish what runs, within the grace. Second: at once."""
        self.force_exit = self.should_exit
        self.should_exit = True


@contextmanager
def _tokens_first() -> Iterator[None]:
    """Who computes and delivers tokens waits as little as can be for those who read requests, with
    whom they share the interpreter: what is there is not looked through whenever garbage is
    collected, while everybody waits, nor is a large request again and again while it is read, and a
    thread that works on gives way ten times as soon."""
    gc.collect()
    gc.freeze()
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(_SWITCH_S)
    gc.set_threshold(_NEW_OBJECTS, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.setswitchinterval(interval)
        gc.unfreeze()


class _Protocol(H11Protocol):
    """Ends connections whose client does not send its request, or does not read its answer."""

    def __init__(self, *args: Any, settings: Settings, crowd: Crowd, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = settings
        self._crowd = crowd
        self._silent = True
        self._head = 0
        self._sent = 0
        self._last = False
        self._sending: asyncio.TimerHandle | None = None
        self._reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._parting = Parting(transport, self._is_sending)
        super().connection_made(cast(asyncio.Transport, self._parting))
        self._crowd.came(self)
        self._expect_request(min(self._settings.hello_s, self._settings.request_s))

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.left(self)
        self._stop_sending_timer()
        self._stop_reading_timer()
        self._parting.lost()
        super().connection_lost(exc)

    def let_go(self) -> None:
        """See Connection."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._parting.begun:
            self._parting.drop(len(data))
            return
        if self._silent:
            self._silent = False
            self._stop_sending_timer()
        super().data_received(data)
        cycle = self.cycle
        headless = cycle is None or cycle.response_complete
        self._head = self._head + len(data) if headless else 0
        self._sent = 0 if headless else self._sent + len(data)
        if self._sent >= _UPLOAD_PART and is_upload(self._settings, cycle.scope):
            self._sent = 0
            self._stop_sending_timer()
        if headless or cycle.more_body:
            self._expect_request(self._settings.request_s)
            self._crowd.waits(self)
            self._crowd.holds(self, self._head)
        else:
            self._stop_sending_timer()
            self._crowd.asked(self)
            if len(self.conn.trailing_data[0]) > HEAD_BYTES:
                # The next request, before this one is answered: no client does that.
                self.let_go()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._last:
            self.transport.close()
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._crowd.waits(self)

    def eof_received(self) -> bool:  # type: ignore[override]
        """The client sends no more. Whether it still reads shows when it is written to: one that
        is gone refuses that, and its request ends; another passes over what says nothing
        (RFC 9110, 15.2)."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body:
            return False
        self._last = True
        self._probe(0)
        return True

    def _probe(self, number: int) -> None:
        cycle = self.cycle
        if self.transport.is_closing() or cycle is None or cycle.response_complete:
            return
        if not cycle.response_started:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(_PROBES_S[min(number, len(_PROBES_S) - 1)], self._probe, number + 1)

    def _is_sending(self) -> bool:
        """Whether more of a request is to come, or what came is none."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reading is None:
            self._reading = self.loop.call_later(self._settings.stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_reading_timer()

    def _expect_request(self, within_s: float) -> None:
        if self._sending is None:
            self._sending = self.loop.call_later(within_s, self.transport.abort)

    def _stop_sending_timer(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    def _stop_reading_timer(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
