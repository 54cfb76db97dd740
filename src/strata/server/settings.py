"""What a server is told when it starts, and the limits it keeps."""

from __future__ import annotations

import ipaddress
import re
from functools import cached_property
from pathlib import Path
from typing import Literal

from strata.errors import UsageError
from strata.records import dataclass
from strata.server.errors import ApiError
from strata.server.mcp import McpServer

Unknown = Literal["refuse", "warn"]
Part = Literal["page", "metrics", "slots", "kv"]

_LOCAL_ORIGINS = (
    r"https?://(?:[a-z0-9-]+\.)?localhost(?::\d+)?|https?://(?:127\.0\.0\.1|0\.0\.0\.0|\[::1\])(?::\d+)?"
    r"|(?:app|file|tauri|vscode-webview|vscode-file|chrome-extension|moz-extension"
    r"|safari-web-extension)://.*"
)
"""As Ollama has it: pages from this machine, and of programs and extensions on it."""

FILES_BYTES = 1 << 30
"""Of uploaded files, unless asked otherwise."""

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")


@dataclass(frozen=True)
class Settings:
    """Where to listen, who may come in, and how much they may ask for.

    - ``host``: an address, or several with commas.
    - ``api_key``: asked of every caller; None lets everybody in, which beyond this machine, and
      with ``mcp_servers``, needs ``allow_unauthenticated`` (UsageError otherwise).
    - ``cors_origins``: web origins whose pages may call; ``*`` is all.
    - ``verbose``: answers to OpenAI's clients tell their prompt under ``__verbose``, as those of
      ``llama-server --verbose`` do.
    - ``without``: what is not served: the ``page``, the figures at ``/metrics``, the state of
      requests at ``/slots``, what is kept of prompts at ``/kv``.
    - ``grace_s``: seconds that running requests have when the server is stopped.
    - ``queue``: requests that may wait or run; ``connections``: clients at once.
    - ``body_bytes``: the largest request body; ``values`` and ``depth``: JSON values and keys in
      one, and how deep they may be nested; ``requests_bytes``: of memory that all requests may take
      beside KV (None: what a Plan sets aside, much without one).
    - ``choices``: the largest ``n`` (and prompts in one call).
    - ``hello_s``: within which a client must have begun to send, and ``request_s``: have sent its
      request; ``stall_s``: for which one may leave its answer unread.
    - ``unknown_fields``: what happens to a request with fields that are not known: they are
      ``refuse``d, or the caller is ``warn``ed of them; None: what its protocol's own server does.
    - ``files``: the folder of uploaded files and batches, None for none of them; ``files_bytes``:
      what all of it may take on the disk.
    - ``mcp_servers``: programs whose tools are offered at ``/tools``.
    - ``keepalive_s``: silence after which a stream shows that it lives; ``live_s``: between
      pictures of the machine.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    allow_unauthenticated: bool = False
    cors_origins: tuple[str, ...] = ()
    verbose: bool = False
    without: tuple[Part, ...] = ()
    grace_s: float = 10.0
    queue: int = 256
    connections: int = 512
    body_bytes: int = 8 << 20
    values: int = 32_768
    depth: int = 64
    requests_bytes: int | None = None
    choices: int = 32
    hello_s: float = 5.0
    request_s: float = 60.0
    stall_s: float = 60.0
    unknown_fields: Unknown | None = None
    files: Path | None = None
    files_bytes: int = FILES_BYTES
    mcp_servers: tuple[McpServer, ...] = ()
    keepalive_s: float = 5.0
    live_s: float = 0.25

    def __post_init__(self) -> None:
        if self.api_key is not None and not self.api_key.strip():
            raise UsageError("the API key is empty")
        if not self.hosts:
            raise UsageError("--host names no address")
        for origin in self.cors_origins:
            if origin != "*" and _ORIGIN.fullmatch(origin) is None:
                raise UsageError(
                    f"{origin!r} is no web origin; write it like https://example.org or "
                    "http://localhost:3000, or * for all"
                )
        if not self.loopback and self.api_key is None and not self.allow_unauthenticated:
            raise UsageError(
                f"{self.host} can be reached from other machines: set --api-key (or "
                "STRATA_API_KEY), or say --allow-unauthenticated to let everybody in"
            )
        if self.mcp_servers and self.api_key is None and not self.allow_unauthenticated:
            raise UsageError(
                "--mcp-servers lets clients have programs work: set --api-key (or STRATA_API_KEY), "
                "or say --allow-unauthenticated to let every program of this machine"
            )

    def check_served(self, part: Part) -> None:
        """ApiError 501 for what this server was started without."""
        if part in self.without:
            raise ApiError(501, f"/{part} is switched off here (--without {part})")

    @cached_property
    def origins(self) -> re.Pattern[str]:
        """Web origins whose pages may call: those of this machine, of applications on it, and
        ``cors_origins``, in which * stands for anything but a slash."""
        patterns = [re.escape(o).replace(r"\*", "[^/]*") for o in self.cors_origins if o != "*"]
        return re.compile("|".join([_LOCAL_ORIGINS, *patterns]))

    @cached_property
    def hosts(self) -> tuple[str, ...]:
        """All addresses to listen at, each once."""
        hosts = (host.strip().removeprefix("[").removesuffix("]") for host in self.host.split(","))
        return tuple(dict.fromkeys(filter(None, hosts)))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return all(map(_is_loopback, self.hosts))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
