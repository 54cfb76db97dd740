"""``strata stop``: have a running server unload a model."""

from __future__ import annotations

import click

from strata.cli.console import print_json, printable
from strata.cli.options import json_option
from strata.cli.running_server import ask, server_options
from strata.errors import StrataError


@click.command("stop")
@click.argument("model")
@server_options
@json_option
def command(model: str, url: str, api_key: str | None, as_json: bool) -> None:
    """Have a running server unload MODEL, once its answers have ended.

    The next request for it loads it again. A server of one model keeps that until it ends.
    """
    body = {"model": model, "keep_alive": 0, "stream": False}
    ask(url, api_key, "/api/generate", body)
    names = (model, model.removesuffix(":latest"))
    there = [each["name"] for each in ask(url, api_key, "/api/ps")["models"]]
    if any(name in there for name in names):
        raise StrataError(
            f"{printable(model)} stays loaded: a server of one model keeps it until it ends"
        )
    if as_json:
        print_json({"stopped": model})
    else:
        click.echo(f"{printable(model)} is not loaded any more")
