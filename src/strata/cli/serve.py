"""``strata serve``: a model behind the protocols of OpenAI, Anthropic and Ollama."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import click

from strata.backends.registry import DEFAULT
from strata.cli.console import log_in_print, remark
from strata.cli.engine_options import (
    activations_option,
    ahead_option,
    backend_options,
    draft_options,
    kv_store_options,
    open_llm,
)
from strata.cli.options import SIZE, complete_model, memory_option, quiet_option, verbose_option
from strata.cli.sampling_options import sampling_options, template_text
from strata.errors import StrataError, UsageError

if TYPE_CHECKING:
    from strata.backends.settings import ActivationsName
    from strata.server import Settings
    from strata.server.fleet.entries import Entry
    from strata.server.settings import Part


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
@click.argument("models", nargs=-1, metavar="MODEL...", shell_complete=complete_model)
@click.option(
    "--models",
    "source",
    type=click.Path(exists=True, path_type=Path),
    help="Serve several: all of a folder, or those that a TOML file has as [models.NAME] tables.",
)
@click.option(
    "--keep-alive",
    metavar="DURATION",
    help="Of several: how long a model stays after its last request, such as 5m; 0 not at all, -1 "
    "for ever (default: 5m).",
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen at; several with commas.",
)
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
    help="The key clients must send. Prefer the variable STRATA_API_KEY: other users can see "
    "command lines.",
)
@click.option(
    "--allow-unauthenticated",
    is_flag=True,
    help="Accept clients without a key, from other machines and with --mcp-servers too.",
)
@click.option(
    "--alias",
    "aliases",
    multiple=True,
    help="A further name for the model; may be repeated. '*': whatever name clients ask for.",
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
    help="Tokens of a prompt and its answer together (default: 4096, or the model's limit if "
    "lower).",
)
@click.option(
    "--chat-template",
    help="A Jinja chat template, a file with one, or llama.cpp's name of one, such as chatml, to "
    "use instead of the model's.",
)
@click.option(
    "--reasoning",
    type=click.Choice(["on", "off", "low", "medium", "high"]),
    help="Whether the model thinks before it answers, or how much, where a request does not say it "
    "(default: as its chat template has it).",
)
@click.option(
    "--queue",
    type=click.IntRange(1, 1024),
    default=256,
    show_default=True,
    help="Requests that may wait or run; further ones are told to retry later.",
)
@click.option(
    "--cors-origin",
    "cors_origins",
    multiple=True,
    help="A web origin whose pages may call the server; may be repeated (default: none).",
)
@click.option(
    "--unknown-fields",
    type=click.Choice(["refuse", "warn"]),
    help="What happens to requests with fields that are not known: refused by name, or served with "
    "the header x-strata-warning (default: as OpenAI's, Anthropic's and Ollama's own servers).",
)
@click.option(
    "--grace",
    type=click.FloatRange(min=0, max=3600),
    default=10.0,
    show_default=True,
    help="Seconds running requests get to finish when the server is stopped.",
)
@click.option(
    "--kv-memory",
    type=SIZE,
    help="Memory for the KV of all requests together (default: a whole context for each of "
    "--parallel). With less, requests that outgrow it wait for others and then continue.",
)
@click.option(
    "--files",
    type=click.Path(file_okay=False, path_type=Path),
    help="A folder for uploaded files and batches alone, of one server at a time; none: there are "
    "none (default: one in Strata's own folder).",
)
@click.option(
    "--files-size",
    type=SIZE,
    help="What they may take on the disk, all together (default: 1GiB).",
)
@click.option(
    "--mcp-servers",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A JSON file of MCP servers, as other clients have it (mcpServers): they are started when "
    "their tools are asked for, which clients with the key find and call at /tools.",
)
@backend_options
@activations_option
@memory_option
@kv_store_options
@ahead_option
@draft_options
@sampling_options
@click.option(
    "--without",
    multiple=True,
    type=click.Choice(["page", "metrics", "slots", "kv"]),
    help="What is not served: the page in the browser, the figures at /metrics, the state of "
    "requests at /slots, what is kept of prompts at /kv; may be repeated.",
)
@quiet_option
@verbose_option
@_ending_well()
def command(
    models: tuple[str, ...],
    source: Path | None,
    keep_alive: str | None,
    host: str,
    port: int,
    api_key: str | None,
    allow_unauthenticated: bool,
    aliases: tuple[str, ...],
    parallel: int,
    context: int | None,
    chat_template: str | None,
    reasoning: str | None,
    queue: int,
    cors_origins: tuple[str, ...],
    unknown_fields: Literal["refuse", "warn"] | None,
    grace: float,
    backend: str,
    threads: int | None,
    memory: int | None,
    kv_type: str | None,
    activations: ActivationsName,
    quality: str | None,
    kv_window: str | None,
    kv_read: int,
    kv_memory: int | None,
    files: Path | None,
    files_size: int | None,
    mcp_servers: Path | None,
    kv_store: Path | None,
    kv_store_size: int,
    kv_disk: Path | None,
    draft: str,
    experts_ahead: int,
    draft_model: str | None,
    sampling: dict[str, Any],
    without: tuple[Part, ...],
    quiet: bool,
    verbose: bool,
) -> None:
    """Serve MODEL over HTTP until Ctrl-C or SIGTERM.

    Several, or --models, share --memory: each is loaded when it is asked for, and made smaller or
    unloaded when others need its room.

    How tokens are sampled holds for requests that do not say it.

    OpenAI's clients use http://HOST:PORT/v1, those of Anthropic and Ollama http://HOST:PORT; a
    browser finds a page there.
    """
    from strata import _native
    from strata.decode import SamplingParams
    from strata.hub.downloads import strata_home
    from strata.plan.prefill import SLOWDOWN

    _native.share_freed_memory()
    try:
        from strata.server import Settings
        from strata.server.fleet.entries import given, read_entries
        from strata.server.listening import bind
        from strata.server.mcp import read_mcp_servers
        from strata.server.preset import Preset
        from strata.server.service import ANY_NAME, Service
        from strata.server.serving import Server
        from strata.server.settings import FILES_BYTES
        from strata.server.waiting import Waiting
    except ModuleNotFoundError as error:
        raise UsageError(
            f"serving needs the package {error.name}: pip install 'strata-llm[server]'"
        ) from None
    # Refused before anything is loaded.
    SamplingParams(**sampling)
    several = source is not None or keep_alive is not None or len(models) > 1
    kept = None if several or files == Path("none") else files or strata_home() / "files"
    settings = Settings(
        host=host,
        port=port,
        api_key=api_key,
        allow_unauthenticated=allow_unauthenticated,
        cors_origins=cors_origins,
        unknown_fields=unknown_fields,
        verbose=verbose,
        without=without,
        grace_s=grace,
        queue=max(queue, parallel),
        files=kept,
        files_bytes=files_size or FILES_BYTES,
        mcp_servers=() if mcp_servers is None else read_mcp_servers(mcp_servers),
    )
    if several:
        alone = {"--kv-store": kv_store, "--kv-memory": kv_memory, "--kv-window": kv_window}
        for name, value in alone.items():
            if value is not None:
                raise UsageError(f"{name} is for one model: serve it alone")
        if kv_read:
            raise UsageError("--kv-read is for one model: serve it alone")
        if kv_disk is not None or quality is not None or backend != DEFAULT:
            raise UsageError("--kv-disk, --quality and --backend are for one model: serve it alone")
        if activations != "int8":
            raise UsageError("--activations is for one model: serve it alone")
        if chat_template is not None:
            raise UsageError("--chat-template is for one model; a TOML file has template")
        if files is not None or files_size is not None:
            raise UsageError("--files and --files-size are for one model: serve it alone")
        if mcp_servers is not None:
            raise UsageError("--mcp-servers is for one model: serve it alone")
        if reasoning is not None:
            raise UsageError("--reasoning is for one model: serve it alone")
        if aliases and (len(models) != 1 or ANY_NAME in aliases):
            raise UsageError("--alias is for one model; a TOML file names several (--models)")
        _serve_several(
            [
                replace(entry, sampling={**sampling, **entry.sampling})
                for entry in (
                    *(given(m, aliases) for m in models),
                    *(read_entries(source) if source else ()),
                )
            ],
            settings,
            memory=memory,
            keep_alive=keep_alive,
            defaults={
                "context": context,
                "parallel": parallel,
                "threads": threads,
                "kv_type": kv_type,
                "draft": draft,
            },
        )
        return
    if not models:
        raise UsageError("which model? Name one or several, or a folder of them with --models")
    (model,) = models
    with (
        bind(settings) as listening,
        Waiting(listening) as waiting,
        open_llm(
            model,
            backend=backend,
            threads=threads,
            memory=memory,
            kv_type=kv_type,
            activations=activations,
            quality=quality,
            kv_window=kv_window,
            kv_read=kv_read,
            kv_bytes=kv_memory,
            kv_store=kv_store,
            kv_store_size=kv_store_size,
            kv_disk=kv_disk,
            draft=draft,
            experts_ahead=experts_ahead,
            draft_model=draft_model,
            context=context,
            parallel=parallel,
            slowdown=SLOWDOWN,
            serving=True,
            chat_template=None if chat_template is None else template_text(chat_template),
            watch=waiting.progress,
            quiet=quiet,
            verbose=verbose,
        ) as llm,
    ):
        waiting.end()
        # A path is nobody's business; its last part is a name.
        names = dict.fromkeys([llm.path.stem if Path(model).exists() else model, *aliases])
        thinks = {"on": True, "off": False}.get(reasoning or "", reasoning)
        preset = Preset(sampling=sampling, reasoning=thinks)
        server = Server(Service(llm, list(names), settings, preset), listening, _tell_ready)
        if not server.serve_until_stopped():
            # A step that takes minutes cannot be interrupted, and its memory not freed under it.
            sys.stderr.flush()
            os._exit(0)
        if not server.started:
            raise StrataError("the server could not start")


def _serve_several(
    entries: list[Entry],
    settings: Settings,
    *,
    memory: int | None,
    keep_alive: str | None,
    defaults: dict[str, Any],
) -> None:
    from strata.machine.constants import KEEP_BACK
    from strata.memory.limits import memory_available, memory_total
    from strata.server.durations import seconds_of
    from strata.server.fleet.entries import Entries, saved_path
    from strata.server.fleet.fleet import Fleet
    from strata.server.fleet.front import Front, own_bytes
    from strata.server.fleet.members import KEEP_ALIVE_S
    from strata.server.listening import bind
    from strata.server.serving import Server

    log_in_print(verbose=settings.verbose)
    try:
        kept = KEEP_ALIVE_S if keep_alive is None else seconds_of(keep_alive)
    except ValueError as error:
        raise UsageError(f"--keep-alive: {error}") from None
    if memory is None:
        memory = int(memory_available() * (1 - KEEP_BACK))
    memory = min(memory, memory_total() or memory)
    every = Entries(entries, saved_path())
    with bind(settings) as listening:
        fleet = Fleet(
            every,
            memory,
            own_bytes(),
            defaults=defaults,
            worker_settings={
                "queue": settings.queue,
                "unknown_fields": settings.unknown_fields,
                "verbose": settings.verbose,
                "without": settings.without,
                "grace_s": settings.grace_s,
            },
            keep_alive_s=kept,
            grace_s=settings.grace_s,
        )
        server = Server(Front(fleet, settings), listening, _tell_ready)
        server.serve_until_stopped()
        if not server.started:
            raise StrataError("the server could not start")


def _tell_ready(addresses: str) -> None:
    remark(f"listening at {addresses} (Ctrl-C stops)")
