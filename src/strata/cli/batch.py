"""``strata batch``: answer a file of requests."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, BinaryIO

import click

from strata.cli.console import print_json, remark
from strata.cli.engine_options import (
    backend_options,
    draft_options,
    kv_seen_options,
    memory_report,
    open_llm,
)
from strata.cli.failures import resumable, terminable
from strata.cli.options import (
    json_option,
    memory_option,
    model_argument,
    quiet_option,
)
from strata.errors import UsageError

if TYPE_CHECKING:
    from strata.llm import LLM
    from strata.plan import Workload
    from strata.server.batch import BatchTotals

_EVERY_S = 0.5

_UNPLANNED = 8
"""Requests together for a backend that makes no plans."""

_LOOKED_AT = 200
"""Requests from which it is guessed how long prompts and answers are."""

_BYTES_PER_TOKEN = 4
_USUAL_ANSWER = 256


@click.command("batch")
@model_argument
@click.argument("source", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--parallel",
    type=click.IntRange(1, 256),
    help="Requests that run together (default: as many as give the most tokens a second).",
)
@click.option("-c", "--context", type=click.IntRange(min=2), help="Positions for each request.")
@draft_options
@backend_options
@kv_seen_options
@memory_option
@quiet_option
@json_option
@terminable()
def command(
    model: str,
    source: Path,
    target: Path,
    parallel: int | None,
    context: int | None,
    draft: str,
    draft_model: str | None,
    backend: str,
    threads: int | None,
    kv_type: str | None,
    kv_window: str | None,
    kv_read: int,
    memory: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Answer the requests in SOURCE with MODEL and write the answers to TARGET.

    Both have a line for each request, as in OpenAI's batches: custom_id, method, url (of chat
    completions or completions) and body. TARGET is in the order of SOURCE; if it is
    there already, it is gone on with where it ends.
    """
    try:
        from strata.server.batch import BatchTotals, requests_in, resume
    except ModuleNotFoundError as error:
        raise UsageError(
            f"batches need the package {error.name}: pip install 'strata-llm[server]'"
        ) from None
    if target.exists() and target.samefile(source):
        raise UsageError("the answers cannot go where the requests are: give another TARGET")
    done = resume(target, source)
    with source.open("rb") as asked:
        left = sum(1 for _ in requests_in(asked)) - done
    if not left and done:
        if as_json:
            print_json(asdict(BatchTotals(resumed=done)))
        elif not quiet:
            remark(f"all {done} requests were answered before")
        return
    prompt, answer = _lengths(source)
    usual = _workload(prompt, answer, context)
    seen = (kv_window, kv_read)
    together = parallel or _together(model, usual, backend, memory, threads, kv_type, seen, left)
    together = min(together, left)
    with open_llm(
        model,
        backend=backend,
        threads=threads,
        memory=memory,
        kv_type=kv_type,
        kv_window=kv_window,
        kv_read=kv_read,
        context=context,
        parallel=together,
        workload=usual if memory is not None else None,
        draft=draft,
        draft_model=draft_model,
        serving=True,
        quiet=quiet or as_json,
    ) as llm:
        started = perf_counter()
        with source.open("rb") as asked, target.open("ab") as answers, resumable():
            totals = _run(llm, model, asked, answers, done, together, quiet or as_json)
        seconds = perf_counter() - started
        status = llm.engine.status()
    rate = totals.completion_tokens / seconds
    if as_json:
        print_json(
            {
                **asdict(totals),
                "parallel": together,
                "seconds": seconds,
                "tokens_s": rate,
                "sweeps": status.sweeps,
                "memory": memory_report(),
            }
        )
    elif not quiet:
        again = f" ({totals.resumed} were answered before)" if totals.resumed else ""
        failed = f", {totals.failed} with an error" if totals.failed else ""
        remark(
            f"{totals.lines} requests answered{failed}{again} in {seconds:.1f} s, "
            f"{totals.completion_tokens} tokens at {rate:.1f} tok/s, {together} together"
        )


def _run(
    llm: LLM, name: str, asked: BinaryIO, answers: BinaryIO, done: int, together: int, quiet: bool
) -> BatchTotals:
    from strata.server import Settings
    from strata.server.app import create_app
    from strata.server.batch import run_batch
    from strata.server.service import Service

    service = Service(llm, [name], Settings(queue=max(64, 4 * together)))
    show = None if quiet or not sys.stderr.isatty() else _Shown()

    async def everything() -> BatchTotals:
        service.bridge.start()
        return await run_batch(
            create_app(service),
            service.name,
            asked,
            answers,
            skip=done,
            together=2 * together,
            progress=show,
        )

    try:
        return asyncio.run(everything())
    finally:
        if show is not None:
            sys.stderr.write("\r\x1b[K")
        service.close()


class _Shown:
    """How far it is, on one line of a terminal."""

    def __init__(self) -> None:
        self._last = 0.0
        self._began = perf_counter()

    def __call__(self, totals: BatchTotals) -> None:
        """Draw it, now and then."""
        now = perf_counter()
        if now - self._last < _EVERY_S:
            return
        self._last = now
        rate = totals.completion_tokens / (now - self._began)
        sys.stderr.write(
            f"\r{totals.resumed + totals.lines} requests answered, {totals.failed} with an error, "
            f"{rate:.1f} tok/s\x1b[K"
        )
        sys.stderr.flush()


def _workload(prompt: int, answer: int, context: int | None) -> Workload:
    """Requests of these lengths, shortened to what fits the context, where one is asked for."""
    from strata.plan import Workload

    if context is not None:
        answer = min(answer, context // 2)
        prompt = max(1, min(prompt, context - answer - 1))
    return Workload(prompt, 1, context, answer, serving=True)


def _together(
    model: str,
    usual: Workload,
    backend: str,
    memory: int | None,
    threads: int | None,
    kv_type: str | None,
    seen: tuple[str | None, int],
    left: int,
) -> int:
    """Requests together that give the most tokens a second by the cost model."""
    from strata.backends.registry import backend_class
    from strata.backends.weights import WeightSource
    from strata.engine.runtime import this_machine
    from strata.formats import open_model
    from strata.hub.references import resolve
    from strata.models import build_model
    from strata.models.kv_read import with_part_seen
    from strata.models.kv_window import KVWindow
    from strata.plan import Limits
    from strata.plan.outline import outline
    from strata.plan.throughput import MOST_TOGETHER, best, throughput

    kind = backend_class(backend)
    if not kind.plans:
        return _UNPLANNED
    with open_model(resolve(model)) as file:
        window = None if seen[0] is None else KVWindow.parse(seen[0])
        built = build_model(file)
        most = max(built.context_length, usual.context or 0)
        built = with_part_seen(built, window, seen[1], most)
        sizes = outline(model, built, file, kind.profile(built, WeightSource(file)))
        machine = this_machine(file)
        limits = Limits(memory, threads, kv_type or "f16", there=machine.memory_total or None)
        return best(throughput(sizes, machine, limits, usual, min(left, MOST_TOGETHER))).together


def _lengths(source: Path) -> tuple[int, int]:
    """Tokens of a usual prompt and of a usual answer, by the first requests."""
    from strata.server.batch import requests_in

    sizes, answers = [], []
    with source.open("rb") as file:
        for _, line in zip(range(_LOOKED_AT), requests_in(file), strict=False):
            sizes.append(len(line) // _BYTES_PER_TOKEN)
            try:
                body = json.loads(line)["body"]
                limit = body.get("max_completion_tokens") or body.get("max_tokens")
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                limit = None
            answers.append(limit if isinstance(limit, int) and limit > 0 else _USUAL_ANSWER)
    if not sizes:
        raise UsageError(f"there is no request in {source}")
    return max(1, sum(sizes) // len(sizes)), max(1, sum(answers) // len(answers))
