"""Parameters that several verbs share, so that each is spelt and checked in one way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from strata.errors import UsageError
from strata.sizes import parse_size

if TYPE_CHECKING:
    _IntParam = click.ParamType[int]
else:
    # click made ParamType generic in 8.4; older ones cannot be subscripted at run time.
    _IntParam = click.ParamType


class SizeType(_IntParam):
    """A number of bytes written as ``512MB``, ``4GB`` or ``1.5GiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


SIZE = SizeType()

model_argument = click.argument("model")

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object on standard output and nothing else there.",
)

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Draw no progress bars.")

offline_option = click.option(
    "--offline/--online",
    default=None,
    help="Use only what is on this machine (default: as HF_HUB_OFFLINE says).",
)

threads_option = click.option(
    "-t",
    "--threads",
    type=click.IntRange(min=1, max=1024),
    default=None,
    help="Threads to compute with (default: one a core that this process may use).",
)

memory_option = click.option(
    "-m",
    "--memory",
    type=SIZE,
    default=None,
    help="Budget for everything, such as 4GB; what does not fit is streamed from the file "
    "(default: what this machine leaves).",
)

explain_option = click.option(
    "--explain", is_flag=True, help="Say what happened against the plan: bytes, bandwidth, waits."
)
