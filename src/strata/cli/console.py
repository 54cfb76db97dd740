"""Printing: JSON alone on standard output, progress and remarks on standard error."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    # At run time this would bring numpy along, and `strata --help` has no time for that.
    from strata.hub.downloads import Progress


def print_json(value: Any) -> None:
    """Print ``value`` as one line of JSON, in ASCII so that no terminal encoding can break it."""
    click.echo(json.dumps(value, allow_nan=False))


def remark(message: str) -> None:
    """Print lines that are not part of the result."""
    click.echo("\n".join(map(printable, message.split("\n"))), err=True)


def counted(number: int, noun: str) -> str:
    """`1 token`, `24 tokens`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def printable(text: str) -> str:
    """``text`` from a file with everything escaped that could disturb a terminal."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def log_in_print(*, verbose: bool = False) -> None:
    """Log records that nobody else takes go to standard error, warnings and, where ``verbose``,
    all of ours: requests and files are quoted in them, which may hold what a terminal obeys."""
    import logging

    class Printable(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return "\n".join(map(printable, super().format(record).split("\n")))

    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Printable())
        if verbose:
            logging.lastResort.setLevel(logging.DEBUG)
            logging.getLogger("strata").setLevel(logging.DEBUG)


@contextmanager
def progress_bars(*, silent: bool, counted: Collection[str] = ()) -> Iterator[Progress | None]:
    """A Progress that draws one bar a label on standard error; None when ``silent``. Labels in
    ``counted`` are of steps, others of bytes.

    On a standard error that is no terminal nothing is drawn but the finished bars.
    """
    if silent:
        yield None
        return
    drawn: list[Bars] = []
    tasks: dict[str, TaskID] = {}

    def show(label: str, done: int, total: int | None) -> None:
        # The display is made for the first byte: a model that is here already has none to wait for.
        if not drawn:
            drawn.append(_bars())
            drawn[0].start()
        if label not in tasks:
            steps = label in counted
            tasks[label] = drawn[0].add_task(printable(label), total=total, steps=steps)
        drawn[0].update(tasks[label], completed=done, total=total)

    try:
        yield show
    finally:
        for bars in drawn:
            bars.stop()


def _bars() -> Bars:
    """Made where it is needed: `rich` takes as long to import as a small model to load."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Done(DownloadColumn):
        def render(self, task: Task) -> Text:
            if not task.fields["steps"]:
                return super().render(task)
            return Text(f"{task.completed:.0f}/{task.total or 0:.0f}", "progress.download")

    class Speed(TransferSpeedColumn):
        def render(self, task: Task) -> Text:
            return Text("") if task.fields["steps"] else super().render(task)

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        Done(),
        Speed(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows`` under ``header`` in aligned columns, plain enough to be cut by other tools."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
