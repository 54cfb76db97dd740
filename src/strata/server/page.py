"""``GET /`` and ``/web/``: the page and its files. They come from the package alone."""

from __future__ import annotations

import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

WEB = Path(__file__).parent / "web"

HEADERS = {
    # A model's words cannot become markup even if the page's own code tried.
    "content-security-policy": "; ".join(
        (
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "referrer-policy": "no-referrer",
    # Another version of the server brings other files under the same names.
    "cache-control": "no-cache",
}

# Browsers run no module of another type, and the system's own table may know none.
_TYPES = {".js": "text/javascript; charset=utf-8"}


class Page(StaticFiles):
    """The files of the page, to be mounted at ``/web``."""

    def __init__(self) -> None:
        super().__init__(directory=WEB)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        if response.status_code != 304 and (known := _TYPES.get(Path(full_path).suffix)):
            response.headers["content-type"] = known
        response.headers.update(HEADERS)
        return response

    async def index(self, request: Request) -> Response:
        """The page itself."""
        path = WEB / "index.html"
        return self.file_response(path, path.stat(), request.scope)
