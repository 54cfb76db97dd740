"""A hub in a thread: the endpoints that the real client calls, with faults that tests switch on."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

# Files from this size on are served the way the hub serves its large ones: through a redirect.
LARGE = 1000


@dataclass
class Repository:
    """Files by name, and the one commit that its branches point to."""

    files: dict[str, bytes]
    commit: str = "c0ffee" + "0" * 34
    revisions: tuple[str, ...] = ("main",)
    gated: bool = False
    private: bool = False


@dataclass(frozen=True)
class Asked:
    """One request as it arrived."""

    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class StandInHub:
    """Serves ``repositories`` on 127.0.0.1 until closed and remembers every request."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    token: str = "a-token"
    asked: list[Asked] = field(default_factory=list)
    # One download is cut after this many bytes, and while `down` is set no byte is served.
    cut_after: int | None = None
    down: bool = False
    no_ranges: bool = False
    corrupt: bool = False

    def __post_init__(self) -> None:
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def downloads(self) -> list[Asked]:
        """The requests that asked for bytes of a file."""
        return [
            asked for asked in self.asked if asked.method == "GET" and "/api/" not in asked.path
        ]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandInHub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.asked.append(Asked(self.command, path, self.headers.get("Range"), token))
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._info(match[1], match[2] or "main", token)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3], token)
        elif match := re.fullmatch(r"/large/([^/]+/[^/]+)/(.+)", path):
            self._bytes(self.hub.repositories[match[1]].files[match[2]], {})
        else:
            self._refuse(404, "", "no such endpoint")

    def _find(self, name: str, revision: str, token: str | None) -> Repository | None:
        repository = self.hub.repositories.get(name)
        if token is not None and token != self.hub.token:
            self._refuse(401, "", "Invalid credentials in Authorization header")
        elif repository is None or (repository.private and token is None):
            # The hub does not tell strangers which private repositories exist.
            if token is None:
                self._refuse(401, "", "Invalid username or password.")
            else:
                self._refuse(404, "RepoNotFound", "Repository not found")
        elif revision not in (*repository.revisions, repository.commit):
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        else:
            return repository
        return None

    def _info(self, name: str, revision: str, token: str | None) -> None:
        repository = self._find(name, revision, token)
        if repository is None:
            return
        siblings = []
        for file, content in repository.files.items():
            sibling: dict[str, object] = {
                "rfilename": file,
                "size": len(content),
                "blobId": git_sha1(content),
            }
            if len(content) >= LARGE:
                sibling["lfs"] = {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 134,
                }
            siblings.append(sibling)
        answer = {
            "id": name,
            "modelId": name,
            "sha": repository.commit,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _resolve(self, name: str, revision: str, file: str, token: str | None) -> None:
        repository = self._find(name, revision, token)
        if repository is None:
            return
        if repository.gated and token is None:
            self._refuse(401, "GatedRepo", f"Access to model {name} is restricted.")
            return
        content = repository.files.get(file)
        if content is None:
            self._refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": repository.commit}
        if len(content) < LARGE:
            self._bytes(content, {**headers, "ETag": f'"{git_sha1(content)}"'})
            return
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        # Another host name: the client must not carry the token over to where large files lie.
        elsewhere = self.hub.endpoint.replace("127.0.0.1", "localhost")
        self._send(302, b"", {**headers, "Location": f"{elsewhere}/large/{name}/{file}"})

    def _bytes(self, content: bytes, headers: dict[str, str]) -> None:
        if self.hub.down and self.command == "GET":
            self._refuse(503, "", "down")
            return
        if self.hub.corrupt:
            content = bytes(len(content))
        status, start, end = 200, 0, len(content)
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            status, start = 206, int(match[1])
            end = min(int(match[2]) + 1, end) if match[2] else end
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
        if self.hub.no_ranges:
            status, start, end = 200, 0, len(content)
        body = content[start:end]
        cut = self.hub.cut_after if self.command == "GET" else None
        if cut is None:
            self._send(status, body, {**headers, "Accept-Ranges": "bytes"})
            return
        self.hub.cut_after, self.hub.down = None, True
        self.close_connection = True
        self._send(status, body, headers, sent=cut)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], sent: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:sent])

    def _refuse(self, status: int, code: str, message: str) -> None:
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        self._send(status, json.dumps({"error": message}).encode(), headers)


def git_sha1(content: bytes) -> str:
    """The name git gives a file's content, which is the hub's ETag for small files."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
