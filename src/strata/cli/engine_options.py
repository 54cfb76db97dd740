"""What the verbs that load a model have in common: their options, and loading with a spinner."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from strata.cli.console import progress_bars
from strata.cli.options import threads_option
from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.llm import LLM
    from strata.plan import Workload

Command = TypeVar("Command", bound=Callable[..., Any])

_backend_option = click.option(
    "--backend",
    type=click.Choice(["cpu", "reference"]),
    default="cpu",
    show_default=True,
    help="Native kernels, or plain numpy in float32 (slow, the oracle).",
)


def backend_options(function: Command) -> Command:
    """``--backend`` and ``--threads``."""
    return _backend_option(threads_option(function))


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
    workload: Workload | None = None,
    planned: bool = False,
) -> Iterator[LLM]:
    """An LLM on the model that ``model`` refers to, downloaded first if need be.

    While weights are loaded a spinner turns on a standard error that is a terminal, and while a
    long sweep runs a line says how far it is.
    """
    from strata.formats.references import resolve
    from strata.llm import LLM

    with progress_bars(silent=quiet) as bars:
        path = resolve(model, progress=bars)
    with _spinner(f"loading {model}", silent=quiet) as progress:
        llm = LLM(
            path,
            backend="reference" if backend == "reference" else "cpu",
            threads=threads,
            context=context,
            parallel=parallel,
            memory=memory,
            workload=workload,
            planned=planned,
            progress=progress,
        )
    with llm:
        if not quiet and sys.stderr.isatty():
            from strata.cli.sweep_line import SweepLine

            llm.engine.runner.sweeps.listener = SweepLine(sys.stderr)
        yield llm


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
