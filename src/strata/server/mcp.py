"""MCP servers whose tools clients may use: programs of the server's owner, each spoken to over its
standard input and output, a line of JSON-RPC at a time.
https://modelcontextprotocol.io/specification/2025-06-18/basic/transports"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from strata import __version__
from strata.errors import UsageError

_log = logging.getLogger("strata.server")

LINE_BYTES = 1 << 20
"""The longest answer of a program."""

_VERSION = "2025-06-18"
_START_S = 30.0
"""For which a program may take to say which tools it has."""

_TIMEOUT_S = 60.0
"""Of a call, where the file does not say it."""

_MOST_TOOLS = 256
_NAME = re.compile(r"[\w.-]{1,64}")
_UNKNOWN_METHOD = -32601


class McpError(Exception):
    """A program did not do what it was asked for."""


@dataclass(frozen=True)
class McpServer:
    """A program: its name, its command, what is added to its environment, and for how long it may
    work on a call."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    folder: str | None = None
    timeout_s: float = _TIMEOUT_S


def read_mcp_servers(path: Path) -> tuple[McpServer, ...]:
    """The programs of a JSON file as other clients have it: ``mcpServers``, by name. UsageError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["mcpServers"]
        return tuple(_read(name, said) for name, said in found.items())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UsageError(
            f'{path} has no MCP servers, as {{"mcpServers": {{"NAME": {{"command": "PROGRAM", '
            f'"args": []}}}}}}: {error}'
        ) from None


def _read(name: str, said: Mapping[str, Any]) -> McpServer:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:80]!r} is no name: letters, digits, '.', '_' and '-'")
    command = (said["command"], *said.get("args", ()))
    environment = said.get("env") or {}
    texts = (*command, *environment.keys(), *environment.values())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"command, args and env of {name} are texts")
    seconds = float(said.get("timeout_ms", 1e3 * _TIMEOUT_S)) / 1e3
    if not 0 < seconds <= 3600:
        raise ValueError(f"timeout_ms of {name} is 1 to 3600000")
    return McpServer(name, command, environment, said.get("cwd"), seconds)


@dataclass(frozen=True)
class Tool:
    """A tool of a program, as models are told of it."""

    program: Program
    name: str
    description: str
    parameters: Mapping[str, Any]

    @property
    def full_name(self) -> str:
        """With that of its program, as llama-server has it."""
        return f"{self.program.server.name}_{self.name}"


class Programs:
    """All of them, of an event loop."""

    def __init__(self, servers: Sequence[McpServer]) -> None:
        self._programs = [Program(server) for server in servers]
        self._listing: asyncio.Task[dict[str, Tool]] | None = None

    async def tools(self) -> dict[str, Tool]:
        """By their full names; those of programs that say none are left out, with a warning."""
        if self._listing is None:
            self._listing = asyncio.create_task(self._list())
        return await asyncio.shield(self._listing)

    async def _list(self) -> dict[str, Tool]:
        found: dict[str, Tool] = {}
        lists = (program.tools() for program in self._programs)
        for program, tools in zip(
            self._programs, await asyncio.gather(*lists, return_exceptions=True), strict=True
        ):
            if isinstance(tools, BaseException):
                _log.warning("the MCP server %s has no tools: %s", program.server.name, tools)
            else:
                found |= {tool.full_name: tool for tool in tools}
        return found

    def close(self) -> None:
        """End them at once; who waits for an answer gets an McpError."""
        for program in self._programs:
            program.close()


class Program:
    """One program, started when it is needed first and again after it has ended."""

    def __init__(self, server: McpServer) -> None:
        self.server = server
        self._process: asyncio.subprocess.Process | None = None
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self._starting = asyncio.Lock()
        self._reading: asyncio.Task[None] | None = None
        self._closed = False

    async def tools(self) -> list[Tool]:
        """What it has. McpError."""
        found: list[Tool] = []
        cursor: dict[str, Any] = {}
        while len(found) < _MOST_TOOLS:
            said = await self._asked("tools/list", cursor, _START_S)
            for each in said.get("tools", ()):
                if isinstance(each, dict) and _NAME.fullmatch(str(each.get("name"))):
                    schema = each.get("inputSchema")
                    given = schema if isinstance(schema, dict) else {}
                    parameters = {"type": "object", "properties": {}, **given}
                    description = str(each.get("description") or "")
                    found.append(Tool(self, each["name"], description, parameters))
            if not said.get("nextCursor"):
                break
            cursor = {"cursor": said["nextCursor"]}
        return found[:_MOST_TOOLS]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The text that a tool gives. McpError."""
        said = await self._asked(
            "tools/call", {"name": name, "arguments": arguments}, self.server.timeout_s
        )
        parts = said.get("content") or ()
        text = "\n".join(
            str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part
        )
        if said.get("isError"):
            raise McpError(text or "the tool failed and does not say why")
        return text

    def close(self) -> None:
        """End it, with what it has started."""
        self._closed = True
        self._end("the server is shutting down")

    async def _asked(self, method: str, params: Mapping[str, Any], seconds: float) -> Any:
        async with self._starting:
            if self._process is None:
                await self._start()
        return await self._answer(method, params, seconds)

    async def _start(self) -> None:
        if self._closed:
            raise McpError("the server is shutting down")
        server = self.server
        # What this server's clients need is nothing for programs.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("STRATA_")}
        try:
            process = await asyncio.create_subprocess_exec(
                *server.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env={**inherited, **server.environment},
                cwd=server.folder,
                limit=LINE_BYTES,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            raise McpError(f"{server.command[0]} cannot be started: {error}") from None
        self._process = process
        self._reading = asyncio.create_task(self._read(process))
        hello = {
            "protocolVersion": _VERSION,
            "capabilities": {},
            "clientInfo": {"name": "strata", "version": __version__},
        }
        try:
            await self._answer("initialize", hello, _START_S)
        except BaseException:
            self._end("it did not say hello")
            raise
        self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    async def _answer(self, method: str, params: Mapping[str, Any], seconds: float) -> Any:
        self._number += 1
        number = self._number
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._send({"jsonrpc": "2.0", "id": number, "method": method, "params": params})
            return await asyncio.wait_for(answer, seconds)
        except asyncio.TimeoutError:
            self._send_cancelled(number)
            raise McpError(f"{self.server.name} gave no answer within {seconds:g} s") from None
        except asyncio.CancelledError:
            self._send_cancelled(number)
            raise
        finally:
            self._waiting.pop(number, None)

    def _send_cancelled(self, number: int) -> None:
        with suppress(McpError):
            params = {"requestId": number}
            self._send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": params})

    def _send(self, message: Mapping[str, Any]) -> None:
        process = self._process
        if process is None or process.stdin is None or process.stdin.is_closing():
            raise McpError(f"{self.server.name} has ended")
        process.stdin.write(json.dumps(message).encode() + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Give answers to those who wait for them, until the program ends."""
        assert process.stdout is not None
        why = f"{self.server.name} has ended"
        try:
            while line := await process.stdout.readline():
                with suppress(ValueError, RecursionError):
                    self._take(json.loads(line))
        except ValueError:
            why = f"{self.server.name} gave an answer of more than {LINE_BYTES} bytes"
        finally:
            if self._process is process:
                self._end(why)
            await process.wait()

    def _take(self, message: Any) -> None:
        if not isinstance(message, dict):
            return
        if "method" in message:
            if "id" in message:
                # It asks for something: only whether somebody is there is answered.
                reply: dict[str, Any] = {"result": {}}
                if message["method"] != "ping":
                    unknown = {"code": _UNKNOWN_METHOD, "message": "not possible here"}
                    reply = {"error": unknown}
                with suppress(McpError):
                    self._send({"jsonrpc": "2.0", "id": message["id"], **reply})
            return
        number = message.get("id")
        answer = self._waiting.get(number) if isinstance(number, int) else None
        if answer is None or answer.done():
            return
        if isinstance(message.get("result"), dict):
            answer.set_result(message["result"])
        else:
            error = message.get("error")
            told = error.get("message") if isinstance(error, dict) else None
            answer.set_exception(McpError(str(told or "it failed and does not say why")))

    def _end(self, why: str) -> None:
        process, self._process = self._process, None
        if process is not None:
            with suppress(OSError):
                # It leads a group of its own.
                os.killpg(process.pid, signal.SIGKILL)
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(McpError(why))
