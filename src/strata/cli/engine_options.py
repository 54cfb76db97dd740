"""What the verbs that load a model have in common: their options, and loading with a spinner."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from strata.backends.registry import DEFAULT, backend_names
from strata.backends.settings import ACTIVATIONS
from strata.cli.console import log_in_print, printable, progress_bars, remark
from strata.cli.options import (
    KV_TYPE,
    SIZE,
    json_option,
    kv_read_option,
    kv_window_option,
    memory_option,
    quiet_option,
    threads_option,
)
from strata.errors import UsageError
from strata.sizes import format_seconds, format_size, format_speed

if TYPE_CHECKING:
    from strata.backends.settings import ActivationsName
    from strata.engine import LoadProgress
    from strata.engine.texts import TextWorkload
    from strata.llm import LLM
    from strata.plan import Workload

_PATIENCE_S = 3.0

Command = TypeVar("Command", bound=Callable[..., Any])

_backend_option = click.option(
    "--backend",
    type=click.Choice(backend_names()),
    default=DEFAULT,
    show_default=True,
    help="Native kernels, or plain numpy in float32 (slow; for comparison).",
)


_kv_type_option = click.option(
    "--kv-type",
    type=KV_TYPE,
    help="Type of keys and values (default: f16); q8_0 takes about half, int4 3.5 times less. "
    "q8_0:int4 keeps keys and values apart, and q8_0,0-1=f16 layers of their own.",
)

_quality_option = click.option(
    "--quality",
    metavar="[exact|0.1%|1%]",
    help="Choose the KV type that is fastest here and known to make tokens no less likely than "
    "this, in the mean; says which, and why.",
)

_kv_store_option = click.option(
    "--kv-store",
    type=click.Path(file_okay=False, path_type=Path),
    help="A directory, used for nothing else, that keeps the KV of prompts, so that a known "
    "beginning is not computed again after a restart. What people wrote can be recovered from it. "
    "'default': kv in Strata's own folder.",
)

_kv_store_size_option = click.option(
    "--kv-store-size",
    type=SIZE,
    default="4GiB",
    show_default=True,
    help="Most disk space for that directory; what was unused longest is deleted first.",
)


_kv_disk_option = click.option(
    "--kv-disk",
    type=click.Path(file_okay=False, path_type=Path),
    help="A directory for KV that has no room in memory: the same answers, slower. 'none' forbids "
    "it (default: Strata's own folder, where a context fits no other way).",
)

draft_option = click.option(
    "--draft",
    metavar="[auto|off|ngram|suffix]",
    default="auto",
    show_default=True,
    help="How tokens are guessed ahead, to decide several at once: looked up in the text (ngram), "
    "or in earlier ones, too (suffix). No answer changes by it.",
)

ahead_option = click.option(
    "--experts-ahead",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    metavar="N",
    help="Of the slots for experts at most so many are for those that are read before they are "
    "chosen, while the disk is idle. No answer changes by it.",
)

draft_model_option = click.option(
    "--draft-model",
    metavar="MODEL",
    help="A smaller model with the same vocabulary, which stays in memory and guesses tokens, or "
    "self:N for the first N layers of the model itself, or self:mtp for the block that predicts "
    "further tokens, where its file has one; or a directory of EAGLE or Medusa heads that were "
    "trained for it. No answer changes by it.",
)


activations_option = click.option(
    "--activations",
    type=click.Choice(ACTIVATIONS),
    default="int8",
    show_default=True,
    help="What products with quantised weights multiply; int16 is closer to floats, and slower "
    "over prompts.",
)


def draft_options(function: Command) -> Command:
    """``--draft`` and ``--draft-model``."""
    return draft_option(draft_model_option(function))


def backend_options(function: Command) -> Command:
    """``--backend``, ``--threads`` and ``--kv-type``."""
    return _backend_option(threads_option(_kv_type_option(function)))


def batch_options(function: Command) -> Command:
    """What verbs share that go over texts and end: ``loading`` options, which ``open_llm`` takes by
    their names, ``--quiet`` and ``--json``."""
    return backend_options(activations_option(memory_option(quiet_option(json_option(function)))))


def kv_seen_options(function: Command) -> Command:
    """``--kv-window`` and ``--kv-read``."""
    return kv_window_option(kv_read_option(function))


def kv_store_options(function: Command) -> Command:
    """``--quality``, ``--kv-window``, ``--kv-read``, ``--kv-store``, ``--kv-store-size`` and
    ``--kv-disk``."""
    stored = _kv_store_option(_kv_store_size_option(_kv_disk_option(function)))
    return _quality_option(kv_seen_options(stored))


def _both(first: LoadProgress | None, second: LoadProgress | None) -> LoadProgress | None:
    """Who is told of progress: either, or one after the other."""
    if first is None or second is None:
        return first or second

    def tell(label: str, done: int, total: int | None) -> None:
        first(label, done, total)
        second(label, done, total)

    return tell


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
    quality: str | None = None,
    kv_bytes: int | None = None,
    kv_window: str | None = None,
    kv_read: int = 0,
    kv_store: Path | None = None,
    kv_store_size: int = 0,
    kv_disk: Path | None = None,
    slowdown: float | None = None,
    draft: str = "off",
    experts_ahead: int = 0,
    activations: ActivationsName = "int8",
    draft_model: str | None = None,
    serving: bool = False,
    embedding: bool = False,
    foretold: bool = False,
    verbose: bool = False,
    chat_template: str | None = None,
    watch: LoadProgress | None = None,
) -> Iterator[LLM]:
    """An LLM on the model that ``model`` refers to, downloaded first if need be.

    While weights are loaded a spinner turns on a standard error that is a terminal, and while a
    long sweep runs a line says how far it is. ``foretold``: its speed is told before it starts,
    unless ``quiet``. ``watch`` is told of loading, too.
    """
    from strata.engine.draft_choice import own_part
    from strata.hub.references import meaning, resolve
    from strata.llm import LLM

    log_in_print(verbose=verbose)
    if not quiet and (meant := meaning(model)) is not None:
        remark(meant)
    with progress_bars(silent=quiet) as bars:
        path = resolve(model, progress=bars)
        guesses: str | Path | None = draft_model
        if draft_model is not None and own_part(draft_model) is None:
            guesses = resolve(draft_model, progress=bars)
    foretold = foretold and not quiet
    planned = planned or (foretold and _is_known(path))
    with _spinner(f"loading {printable(model)}", silent=quiet) as progress:
        llm = LLM(
            path,
            backend=backend,
            threads=threads,
            context=context,
            parallel=parallel,
            slowdown=slowdown,
            draft=draft,
            experts_ahead=experts_ahead,
            activations=activations,
            draft_model=guesses,
            serving=serving,
            embedding=embedding,
            memory=memory,
            workload=workload,
            planned=planned,
            kv_type=kv_type,
            quality=quality,
            kv_bytes=kv_bytes,
            kv_window=kv_window,
            kv_read=kv_read,
            kv_store=_store_directory(kv_store),
            kv_store_bytes=kv_store_size,
            chat_template=chat_template,
            kv_disk=False if kv_disk == Path("none") else kv_disk,
            progress=_both(progress, watch),
        )
    with llm:
        if verbose:
            for line in _how(llm):
                remark(line)
        if not quiet:
            if (chosen := llm.runtime.kv_choice) is not None:
                remark(chosen)
            elif not llm.runtime.kv_type.lossless:
                from strata.report.quality.known import kv_cost_line

                remark(kv_cost_line(llm.runtime.kv_type.name))
            if (kept := llm.runtime.options.kv_window) is not None:
                remark(
                    f"layers see the last {kept.window} positions and the first {kept.sinks}: what "
                    "lies between is forgotten, and answers are others than without --kv-window"
                )
            if read := max((getattr(layer, "read", 0) for layer in llm.model.state), default=0):
                remark(
                    f"layers read blocks of {read} positions, those whose keys may matter most: "
                    "answers are others than without --kv-read"
                )
            for line in _told(llm, memory, foretold):
                remark(line)
        if not quiet and sys.stderr.isatty():
            from strata.cli.sweep_line import SweepLine

            llm.engine.runner.sweeps.listener = SweepLine(sys.stderr)
        yield llm


def _how(llm: LLM) -> Iterator[str]:
    """What runs, on what, and why."""
    threads = "" if llm.threads is None else f", {llm.threads} threads"
    yield f"{llm.path}: {llm.model.architecture}, {llm.context} positions"
    yield f"{llm.backend} backend, {llm.isa}{threads}, loaded in {llm.load_s:.2f} s"
    if llm.plan is not None:
        for choice in llm.plan.choices:
            yield f"{choice.name}: {choice.value} ({choice.reason})"


def _is_known(path: Path) -> bool:
    """Whether this machine was measured. Measuring it takes longer than small models run."""
    from strata.machine.probe import known_machine

    return known_machine(path) is not None


def _told(llm: LLM, memory: int | None, foretold: bool) -> Iterator[str]:
    """The speed, as predicted, and what it costs that memory is short."""
    plan = llm.plan
    if plan is None:
        if foretold and llm.backend == DEFAULT:
            yield (
                "how fast this will be cannot be told: `strata probe` measures this machine, once, "
                "in some ten seconds"
            )
        return
    if memory is not None and plan.budget < memory:
        yield f"there are {format_size(plan.budget)} of memory here, and no more is planned with"
    p = plan.predicted
    if p.sweep_bytes or foretold:
        n = p.concurrency
        where = f"all {format_size(p.memory.resident)} of weights stay in memory"
        if p.sweep_bytes:
            where = f"{format_size(p.sweep_bytes)} of weights are read in every sweep"
        together = "" if n == 1 else f" for {n} together"
        first = "the first token" if n == 1 else "the first tokens"
        prompts = f"a prompt of {p.prompt_tokens}" if n == 1 else f"prompts of {p.prompt_tokens}"
        yield (
            f"{where}; predicted: {first} of {prompts} after {format_seconds(p.ttft_s)}, then "
            f"{format_speed(p.decode_tok_s)}{together}"
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
        name, data = "standard input", _standard_input()
    else:
        name, data = str(source), source.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{name} is not UTF-8 text (byte {error.start}); convert it first"
        ) from None


def _standard_input() -> bytes:
    """All of it. Somebody whose shell or program left it open is told what is waited for."""
    waiting = threading.Timer(
        _PATIENCE_S,
        remark,
        ("waiting for the end of standard input (give < /dev/null where there is none)",),
    )
    waiting.daemon = True
    waiting.start()
    try:
        return sys.stdin.buffer.read()
    finally:
        waiting.cancel()


def memory_report() -> dict[str, int]:
    """The ``memory`` object of JSON results."""
    from strata.memory import peak_bytes

    return {"peak_bytes": peak_bytes()}
