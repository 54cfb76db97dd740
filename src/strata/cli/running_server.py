"""A running server, asked by a verb."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any, TypeVar

import click

from strata.errors import StrataError, UsageError

Command = TypeVar("Command", bound=Callable[..., Any])

_PATIENCE_S = 60.0

_url_option = click.option(
    "--url",
    default="http://127.0.0.1:8000",
    show_default=True,
    help="Where the server listens.",
)
_key_option = click.option(
    "--api-key", envvar="STRATA_API_KEY", help="The server's key, if it has one."
)


def server_options(function: Command) -> Command:
    """``--url`` and ``--api-key``."""
    return _url_option(_key_option(function))


def ask(url: str, key: str | None, path: str, body: dict[str, Any] | None = None) -> Any:
    """What the server answers to a GET, or with a body to a POST. StrataError in one line."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"{url!r} is no address; write it like http://127.0.0.1:8000")
    headers = {"content-type": "application/json"}
    if key:
        headers["authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url.rstrip("/") + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise StrataError(f"{url}: {_reason(error)}") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", error)
        raise StrataError(
            f"no server of Strata answers at {url}: {getattr(why, 'strerror', None) or why}; "
            "`strata serve` starts one, --url says where it is"
        ) from None


def _reason(error: urllib.error.HTTPError) -> str:
    try:
        found = json.load(error)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (OSError, ValueError, KeyError, TypeError):
        return f"it answered with status {error.code}"
