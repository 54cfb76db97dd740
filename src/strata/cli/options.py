"""Parameters that several verbs share, so that each is spelt and checked in one way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import click

from strata.backends.settings import KVTypeName
from strata.errors import UsageError
from strata.sizes import parse_size

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    _IntParam = click.ParamType[int]
    _StrParam = click.ParamType[str]
else:
    # click made ParamType generic in 8.4; older ones cannot be subscripted at run time.
    _IntParam = click.ParamType
    _StrParam = click.ParamType


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


class KVTypeParam(_StrParam):
    """How keys and values are kept: ``q8_0``, ``q8_0:int4`` or ``q8_0,0-1=f16``."""

    name = "type"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from strata.backends.kv_types import F32, KV_TYPES, choose_kv_type

        try:
            return choose_kv_type(str(value), (*KV_TYPES, F32)).name
        except UsageError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        names = get_args(KVTypeName)
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


KV_TYPE = KVTypeParam()


class KVWindowParam(_StrParam):
    """The positions that are kept, ``1024``, or ``1024:4`` with the first ones."""

    name = "n[:sinks]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from strata.models.kv_window import KVWindow

        try:
            return str(KVWindow.parse(str(value)))
        except UsageError as error:
            self.fail(str(error), param, ctx)


kv_window_option = click.option(
    "--kv-window",
    type=KVWindowParam(),
    metavar="N[:SINKS]",
    help="Let layers see the last N positions and the first 4, or SINKS, in place of all: KV of a "
    "fixed size for texts of any length, of which what lies between is forgotten.",
)


kv_read_option = click.option(
    "--kv-read",
    type=click.IntRange(min=256),
    callback=lambda ctx, param, value: value or 0,
    metavar="N",
    help="Keep all positions, and let layers read blocks of N of them: the first, the last and "
    "those whose keys may matter most. Answers are others.",
)


def complete_model(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Models on this machine whose names begin so; else files."""
    from click.shell_completion import CompletionItem

    from strata.hub.installed import installed_models

    names = [m.name for m in installed_models() if m.name.startswith(incomplete)]
    return [CompletionItem(name) for name in names] or [CompletionItem(incomplete, type="file")]


model_argument = click.argument("model", shell_complete=complete_model)

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object, and nothing else, on standard output.",
)

quiet_option = click.option("-q", "--quiet", is_flag=True, help="Show no progress and no remarks.")

verbose_option = click.option(
    "-v", "--verbose", is_flag=True, help="Say how the model is run, and log what happens."
)

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
    help="Threads to compute with (default: one per usable core).",
)

memory_option = click.option(
    "-m",
    "--memory",
    type=SIZE,
    default=None,
    help="Memory budget for the whole process, such as 4GB; weights that do not fit are streamed "
    "from the file (default: the memory that is free).",
)

explain_option = click.option(
    "--explain", is_flag=True, help="Compare what happened with the plan: bytes, bandwidth, waits."
)
