"""``strata serve``: a model behind the protocols of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import NoReturn

import click

from strata.cli.console import remark
from strata.cli.engine_options import backend_options, kv_store_options, open_llm
from strata.cli.options import SIZE, memory_option, model_argument, quiet_option
from strata.errors import StrataError, UsageError


@contextmanager
def _ending_well() -> Iterator[None]:
    """SIGTERM ends the command well at any time, a second one at once. The server, once it runs,
    has its own handler."""
    asked = False

    def end(number: int, frame: FrameType | None) -> NoReturn:
        nonlocal asked
        if asked:
            os._exit(0)
        asked = True
        sys.exit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except Exception:
        if not asked:
            raise
        # What a library made of it on the way up.
        sys.exit(0)
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command("serve")
@model_argument
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    help="Port to listen at; 0: any that is free.",
)
@click.option(
    "--api-key",
    envvar="STRATA_API_KEY",
    help="What callers must show. Better in the variable STRATA_API_KEY: others see arguments.",
)
@click.option(
    "--allow-unauthenticated",
    is_flag=True,
    help="Let everybody in without a key, also from other machines.",
)
@click.option(
    "--alias", "aliases", multiple=True, help="A further name for the model; may be repeated."
)
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    default=4,
    show_default=True,
    help="Requests that run together.",
)
@click.option(
    "-c",
    "--context",
    type=click.IntRange(min=2),
    help="Positions for a prompt and its answer (default: 4096, or the model's if it has fewer).",
)
@click.option(
    "--queue",
    type=click.IntRange(1, 1024),
    default=256,
    show_default=True,
    help="Requests that may wait or run; further ones are told to come back.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="A web origin whose pages may call; may be repeated (default: none).",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0, max=3600),
    default=10.0,
    show_default=True,
    help="Seconds that running requests have when the server is stopped.",
)
@click.option(
    "--kv-memory",
    type=SIZE,
    help="KV for all requests together (default: a whole context for each of --parallel). With "
    "less, requests that outgrow it wait for others and go on where they were.",
)
@backend_options
@memory_option
@kv_store_options
@quiet_option
@_ending_well()
def command(
    model: str,
    host: str,
    port: int,
    api_key: str | None,
    allow_unauthenticated: bool,
    aliases: tuple[str, ...],
    parallel: int,
    context: int | None,
    queue: int,
    cors_origins: tuple[str, ...],
    grace: float,
    backend: str,
    threads: int | None,
    memory: int | None,
    kv_type: str | None,
    kv_memory: int | None,
    kv_store: Path | None,
    kv_store_size: int,
    quiet: bool,
) -> None:
    """Serve MODEL over HTTP until Ctrl-C or SIGTERM.

    OpenAI's clients use http://HOST:PORT/v1, those of Anthropic and Ollama http://HOST:PORT; a
    browser finds a page there.
    """
    from strata.plan.prefill import SLOWDOWN

    try:
        from strata.server import Settings
        from strata.server.service import Service
        from strata.server.serving import Server, bind
    except ModuleNotFoundError as error:
        raise UsageError(
            f"serving needs the package {error.name}: pip install 'strata[server]'"
        ) from None
    settings = Settings(
        host=host,
        port=port,
        api_key=api_key,
        allow_unauthenticated=allow_unauthenticated,
        cors_origins=cors_origins,
        grace_s=grace,
        queue=max(queue, parallel),
    )
    with (
        bind(settings) as sock,
        open_llm(
            model,
            backend=backend,
            threads=threads,
            memory=memory,
            kv_type=kv_type,
            kv_bytes=kv_memory,
            kv_store=kv_store,
            kv_store_size=kv_store_size,
            context=context,
            parallel=parallel,
            slowdown=SLOWDOWN,
            serving=True,
            quiet=quiet,
        ) as llm,
    ):
        # A path is nobody's business; its last part is a name.
        names = dict.fromkeys([llm.path.stem if Path(model).exists() else model, *aliases])
        server = Server(Service(llm, list(names), settings), sock, _tell_ready)
        if not server.serve_until_stopped():
            # A step that takes minutes cannot be interrupted, and its memory not freed under it.
            sys.stderr.flush()
            os._exit(0)
        if not server.started:
            raise StrataError("the server could not start")


def _tell_ready(address: str) -> None:
    remark(f"listening at {address} (Ctrl-C stops)")
