"""``strata ps``: which models a running server has loaded."""

from __future__ import annotations

from datetime import datetime, timezone

import click

from strata.cli.console import print_json, print_table, printable
from strata.cli.options import json_option
from strata.cli.running_server import ask, server_options
from strata.errors import StrataError
from strata.sizes import format_seconds, format_size


@click.command("ps")
@server_options
@json_option
def command(url: str, api_key: str | None, as_json: bool) -> None:
    """List the models that a running server has loaded, with their memory."""
    found = ask(url, api_key, "/api/ps")
    try:
        models = found["models"]
        rows = [
            [
                printable(str(model["name"])),
                format_size(int(model["size"])),
                str(model["context_length"]),
                _until(str(model["expires_at"])),
            ]
            for model in models
        ]
    except (KeyError, TypeError, ValueError):
        raise StrataError(f"what answers at {url} is no server of Strata") from None
    if as_json:
        print_json({"models": models})
    elif rows:
        print_table(["MODEL", "MEMORY", "CONTEXT", "STAYS"], rows)
    else:
        click.echo("no model is loaded")


def _until(expires: str) -> str:
    """How long a model stays, for people."""
    when = datetime.fromisoformat(expires.replace("Z", "+00:00"))
    left = (when - datetime.now(timezone.utc)).total_seconds()
    return "until the server ends" if left > 1e9 else format_seconds(max(left, 0.0))
