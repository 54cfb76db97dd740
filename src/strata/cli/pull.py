"""``strata pull``: bring a model onto this machine."""

from __future__ import annotations

import click

from strata.cli.console import print_json, progress_bars, remark
from strata.cli.options import json_option, model_argument, quiet_option
from strata.errors import UsageError


@click.command("pull")
@model_argument
@click.option("--verify", is_flag=True, help="Read the files again and compare their checksums.")
@quiet_option
@json_option
def command(model: str, verify: bool, quiet: bool, as_json: bool) -> None:
    """Download MODEL, or its newer version, and print where it lies.

    A download that was interrupted goes on where it stopped.
    """
    from strata.hub.builtin import fetch_builtin
    from strata.hub.cache import HubRef, verify_cached
    from strata.hub.references import Builtin, LocalPath, meaning, parse, resolve

    reference = parse(model)
    if isinstance(reference, LocalPath):
        raise UsageError(f"{reference.path} is already on this machine; there is nothing to pull")
    if not quiet and (meant := meaning(model)) is not None:
        remark(meant)
    with progress_bars(silent=quiet or as_json) as progress:
        path = resolve(model, progress=progress, refresh=True)
        if verify and isinstance(reference, Builtin):
            fetch_builtin(reference.name, progress, verify=True)
        elif verify and isinstance(reference, HubRef):
            verify_cached(reference)
    if as_json:
        print_json({"model": model, "path": str(path)})
    else:
        click.echo(path)
