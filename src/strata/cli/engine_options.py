"""What the verbs that load a model have in common: their options, and loading with a spinner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from strata.backends.registry import DEFAULT, backend_names
from strata.backends.settings import KVTypeName
from strata.cli.console import log_in_print, printable, progress_bars, remark
from strata.cli.options import SIZE, threads_option
from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.engine.texts import TextWorkload
    from strata.llm import LLM
    from strata.plan import Workload

Command = TypeVar("Command", bound=Callable[..., Any])

_backend_option = click.option(
    "--backend",
    type=click.Choice(backend_names()),
    default=DEFAULT,
    show_default=True,
    help="Native kernels, or plain numpy in float32 (slow, the oracle).",
)


_kv_type_option = click.option(
    "--kv-type",
    type=click.Choice(get_args(KVTypeName)),
    help="How keys and values are kept (default: f16); q8_0 takes about half.",
)

_kv_store_option = click.option(
    "--kv-store",
    type=click.Path(file_okay=False, path_type=Path),
    help="A directory of its own for the KV of prompts, so that a prefix is not computed again "
    "after a restart. What people wrote can be read from it. 'default': kv in Strata's own folder.",
)

_kv_store_size_option = click.option(
    "--kv-store-size",
    type=SIZE,
    default="4GiB",
    show_default=True,
    help="The most that the directory takes; the longest unused goes first.",
)


def backend_options(function: Command) -> Command:
    """``--backend``, ``--threads`` and ``--kv-type``."""
    return _backend_option(threads_option(_kv_type_option(function)))


def kv_store_options(function: Command) -> Command:
    """``--kv-store`` and ``--kv-store-size``."""
    return _kv_store_option(_kv_store_size_option(function))


@contextmanager
def open_llm(
    model: str,
    *,
    backend: str,
    threads: int | None,
    context: int | None,
    quiet: bool,
    parallel: int = 1,
    memory: int | None = None,
    workload: Workload | TextWorkload | None = None,
    planned: bool = False,
    kv_type: str | None = None,
    kv_bytes: int | None = None,
    kv_store: Path | None = None,
    kv_store_size: int = 0,
    slowdown: float | None = None,
    serving: bool = False,
    embedding: bool = False,
) -> Iterator[LLM]:
    """An LLM on the model that ``model`` refers to, downloaded first if need be.

    While weights are loaded a spinner turns on a standard error that is a terminal, and while a
    long sweep runs a line says how far it is.
    """
    from strata.hub.references import resolve
    from strata.llm import LLM

    log_in_print()
    with progress_bars(silent=quiet) as bars:
        path = resolve(model, progress=bars)
    with _spinner(f"loading {printable(model)}", silent=quiet) as progress:
        llm = LLM(
            path,
            backend=backend,
            threads=threads,
            context=context,
            parallel=parallel,
            slowdown=slowdown,
            serving=serving,
            embedding=embedding,
            memory=memory,
            workload=workload,
            planned=planned,
            kv_type=kv_type,
            kv_bytes=kv_bytes,
            kv_store=_store_directory(kv_store),
            kv_store_bytes=kv_store_size,
            progress=progress,
        )
    with llm:
        if not quiet:
            for line in _costs(llm, memory):
                remark(line)
        if not quiet and sys.stderr.isatty():
            from strata.cli.sweep_line import SweepLine

            llm.engine.runner.sweeps.listener = SweepLine(sys.stderr)
        yield llm


def _costs(llm: LLM, memory: int | None) -> Iterator[str]:
    """What it costs that memory is short: speed, as predicted, and context."""
    from strata.sizes import format_size

    plan = llm.plan
    if plan is None:
        return
    if memory is not None and plan.budget < memory:
        yield f"there are {format_size(plan.budget)} of memory here, and no more is planned with"
    p = plan.predicted
    if p.sweep_bytes:
        n = p.concurrency
        together = "" if n == 1 else f" for {n} together"
        first = "first token of a prompt" if n == 1 else "first tokens of prompts"
        yield (
            f"{format_size(p.sweep_bytes)} of weights are read in every sweep: about "
            f"{p.decode_tok_s:.3g} tok/s{together}, the {first} of {p.prompt_tokens} after "
            f"{p.ttft_s:.3g} s"
        )
    if llm.context < llm.wanted_context:
        yield (
            f"the context is {llm.context} positions instead of {llm.wanted_context}, to leave "
            "memory to the weights; --context asks for more"
        )


def _store_directory(chosen: Path | None) -> Path | None:
    from strata.hub.downloads import strata_home

    return strata_home() / "kv" if chosen == Path("default") else chosen


@contextmanager
def _spinner(
    message: str, *, silent: bool
) -> Iterator[Callable[[str, int, int | None], None] | None]:
    if silent or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console

    with Console(stderr=True).status(message) as status:

        def show(label: str, done: int, total: int | None) -> None:
            percent = "" if not total else f" {100 * done // total} %"
            status.update(message + percent)

        yield show


def read_text(source: Path | None) -> str:
    """The text in a file, or on standard input for None; UsageError if it is not UTF-8."""
    if source is None:
        name, data = "standard input", sys.stdin.buffer.read()
    else:
        name, data = str(source), source.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start}); convert it first"
        ) from None


def memory_report() -> dict[str, int]:
    """The ``memory`` object of JSON results."""
    from strata.memory import peak_bytes

    return {"peak_bytes": peak_bytes()}
