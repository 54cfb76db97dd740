"""``strata rm``: delete a downloaded model."""

from __future__ import annotations

import sys

import click

from strata.cli.console import print_json
from strata.cli.options import json_option, model_argument
from strata.errors import StrataError, UsageError
from strata.sizes import format_size


@click.command("rm")
@model_argument
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
def command(model: str, yes: bool, as_json: bool) -> None:
    """Delete MODEL from the cache it was downloaded to.

    user/repo removes the whole repository, user/repo:QUANT one model of it, user/repo@REVISION one
    version. Files that were not downloaded by Strata or the Hugging Face libraries stay.
    """
    from strata.hub.builtin import BUILTINS, builtin_bytes, remove_builtin
    from strata.hub.cache import plan_removal, remove
    from strata.hub.downloads import ModelNotFound
    from strata.hub.references import Builtin, LocalPath, parse

    reference = parse(model)
    if isinstance(reference, LocalPath):
        raise UsageError(f"{reference.path} was not downloaded by Strata; delete it yourself")
    if isinstance(reference, Builtin):
        freed = builtin_bytes(reference.name)
        if freed == 0:
            raise ModelNotFound(f"{model} is not in {BUILTINS[reference.name].directory}")
        _ask(reference.name, freed, yes)
        remove_builtin(reference.name)
    else:
        removal = plan_removal(reference)
        freed = removal.freed
        _ask(str(reference), freed, yes)
        remove(removal)
    if as_json:
        print_json({"removed": model, "freed_bytes": freed})
    else:
        click.echo(f"removed {model}, {format_size(freed)} freed")


def _ask(what: str, freed: int, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"removing {what} frees {format_size(freed)}; say --yes to do it")
    if not click.confirm(f"remove {what} ({format_size(freed)})?", err=True):
        raise StrataError("nothing was removed")
