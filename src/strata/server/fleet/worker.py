"""A process that serves one model of several, for the front alone.

On standard input it gets one line of what it serves and how; it tells its port, how far loading is,
and that it is ready, as lines of JSON. It ends when its standard input does.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from strata.plan.prefill import SLOWDOWN
from strata.server.fleet.wire import Pipe
from strata.server.listening import bind
from strata.server.service import Service
from strata.server.serving import Server
from strata.server.settings import Settings


def main() -> None:
    """Serve what is asked for on standard input."""
    pipe = Pipe()
    ending = threading.Event()
    servers: list[Server] = []

    def end() -> None:
        ending.set()
        if not servers:
            os._exit(0)
        servers[0].should_exit = True

    try:
        asked = pipe.asked()
        pipe.when_left(end)
        _serve(asked, pipe, servers, ending)
    except Exception as error:
        pipe.failed(error)


def _serve(
    asked: dict[str, Any], pipe: Pipe, servers: list[Server], ending: threading.Event
) -> None:
    from strata.llm import LLM
    from strata.server.preset import Preset

    settings = Settings(host="127.0.0.1", port=0, api_key=asked["key"], **asked["settings"])
    how = {name: asked[name] for name in ("threads", "context", "parallel", "kv_type", "draft")}
    with (
        bind(settings) as listening,
        LLM(
            Path(asked["path"]),
            memory=asked["memory"],
            slowdown=SLOWDOWN,
            serving=True,
            chat_template=asked["template"],
            progress=pipe.progress,
            **how,
        ) as llm,
    ):
        preset = Preset(asked["system"], asked["sampling"])
        service = Service(llm, asked["names"], settings, preset)

        def ready(_: str) -> None:
            pipe.tell(ready={"port": listening.port, "context": llm.context})

        servers.append(Server(service, listening, ready))
        if ending.is_set() or not servers[0].serve_until_stopped():
            os._exit(0)


if __name__ == "__main__":
    main()
