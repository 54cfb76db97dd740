"""``strata list``: the models on this machine."""

from __future__ import annotations

from datetime import datetime, timezone

import click

from strata.cli.console import print_json, print_table
from strata.cli.options import json_option
from strata.sizes import format_size


@click.command("list")
@json_option
def command(as_json: bool) -> None:
    """List built-in models and every model in the Hugging Face cache that Strata can open."""
    from strata.hub.installed import installed_models

    models = installed_models()
    if as_json:
        print_json(
            {
                "models": [
                    {
                        "name": model.name,
                        "quant": model.quant,
                        "size_bytes": model.size,
                        "path": None if model.path is None else str(model.path),
                        "modified": _time(model.modified),
                    }
                    for model in models
                ]
            }
        )
        return
    print_table(
        ("NAME", "QUANT", "SIZE", "MODIFIED", "PATH"),
        [
            (
                model.name,
                model.quant or "-",
                format_size(model.size),
                (_time(model.modified) or "not downloaded")[:16].replace("T", " "),
                "-" if model.path is None else str(model.path),
            )
            for model in models
        ],
    )


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, tz=timezone.utc).isoformat(timespec="seconds")
