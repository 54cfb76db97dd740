"""MCP servers whose tools clients may use: programs of the server's owner, each spoken to over its
standard input and output, a line of JSON-RPC at a time.
https://modelcontextprotocol.io/specification/2025-06-18/basic/transports"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import re
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from strata import __version__
from strata.errors import UsageError
from strata.records import dataclass

_log = logging.getLogger("strata.server")

LINE_BYTES = 1 << 20
"""The longest answer of a program."""

_VERSION = "2025-06-18"
_START_S = 30.0
"""For which a program may take to say which tools it has."""

_PATIENCE_S = 5.0
"""For which a list of tools waits for programs that have not answered yet."""

_TIMEOUT_S = 60.0
"""Of a call, where the file does not say it."""

_MOST_TOOLS = 256
_MOST_NAME = 128
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
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        RuntimeError,
        OverflowError,
    ) as error:
        raise UsageError(
            f'{path} has no MCP servers, as {{"mcpServers": {{"NAME": {{"command": "PROGRAM", '
            f'"args": []}}}}}}: {error}'
        ) from None


def _read(name: str, said: Mapping[str, Any]) -> McpServer:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:80]!r} is no name: letters, digits, '.', '_' and '-'")
    given, environment, folder = said.get("args", []), said.get("env") or {}, said.get("cwd")
    if not isinstance(given, list):
        raise ValueError(f"args of {name} is a list of texts")
    command = (said["command"], *given)
    texts = (*command, *environment.keys(), *environment.values())
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"command, args and env of {name} are texts")
    if not isinstance(folder, str | None):
        raise ValueError(f"cwd of {name} is the path of a folder")
    seconds = float(said.get("timeout_ms", 1e3 * _TIMEOUT_S)) / 1e3
    if not 0 < seconds <= 3600:
        raise ValueError(f"timeout_ms of {name} is 1 to 3600000")
    return McpServer(name, command, environment, folder, seconds)


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
        self._asking: dict[Program, asyncio.Task[None]] = {}
        self._patient_until = 0.0
        self._lists: dict[Program, list[Tool]] = {}
        self._tools: dict[str, Tool] = {}

    async def tools(self) -> dict[str, Tool]:
        """By their full names. Programs that have said none yet are asked (again); those that fail
        are left out, with a warning, and those that take long until they have answered."""
        self._ask()
        if self._asking:
            patience = self._patient_until - asyncio.get_running_loop().time()
            await asyncio.wait(self._asking.values(), timeout=max(patience, 0))
        return self._tools

    async def tool(self, full_name: str) -> Tool | None:
        """That of a name, if there is one; only programs that might have it are waited for."""
        if full_name not in self._tools:
            self._ask()
            might = [
                task
                for program, task in self._asking.items()
                if full_name.startswith(f"{program.server.name}_")
            ]
            if might:
                await asyncio.wait(might)
        return self._tools.get(full_name)

    def _ask(self) -> None:
        for program in self._programs:
            if program not in self._lists and program not in self._asking:
                self._asking[program] = asyncio.create_task(self._list(program))
                self._patient_until = asyncio.get_running_loop().time() + _PATIENCE_S

    async def _list(self, program: Program) -> None:
        try:
            self._lists[program] = await program.tools()
            self._tools = self._named()
        except Exception as error:
            _log.warning("the MCP server %s has no tools: %s", program.server.name, error)
        finally:
            del self._asking[program]

    def _named(self) -> dict[str, Tool]:
        """Those that can be called by their names, in the order of the programs."""
        found: dict[str, Tool] = {}
        for program in self._programs:
            for tool in self._lists.get(program, ()):
                name = tool.full_name
                if len(name) > _MOST_NAME:
                    _log.warning("the tool %s is left out: its name is too long", name)
                elif name in found:
                    _log.warning("the tool %s is left out: another one has its name", name)
                else:
                    found[name] = tool
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
        seen: set[str] = set()
        cursor: dict[str, Any] = {}
        while len(found) < _MOST_TOOLS and len(seen) < _MOST_TOOLS:
            said = await self._asked("tools/list", cursor, _START_S)
            for each in _list_of(said, "tools"):
                name = each.get("name")
                if isinstance(name, str) and _NAME.fullmatch(name):
                    schema = each.get("inputSchema")
                    given = schema if isinstance(schema, dict) else {}
                    parameters = {"type": "object", "properties": {}, **given}
                    description = str(each.get("description") or "")
                    found.append(Tool(self, name, description, parameters))
            following = said.get("nextCursor")
            if not isinstance(following, str) or not following or following in seen:
                break
            seen.add(following)
            cursor = {"cursor": following}
        return found[:_MOST_TOOLS]

    async def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """The text that a tool gives; what is none stands as its kind. McpError."""
        said = await self._asked(
            "tools/call", {"name": name, "arguments": arguments}, self.server.timeout_s
        )
        text = "\n".join(filter(None, map(_text_of, _list_of(said, "content"))))
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
        if self._closed:
            # While it was started.
            self._end("the server is shutting down")
            raise McpError("the server is shutting down")
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
        if process.stdin.transport.get_write_buffer_size() > LINE_BYTES:
            raise McpError(f"{self.server.name} does not read what it is asked")
        try:
            line = json.dumps(message, allow_nan=False).encode()
        except ValueError:
            raise McpError("the arguments have a number that JSON has not") from None
        process.stdin.write(line + b"\n")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        """Give answers to those who wait for them, until the program ends."""
        assert process.stdout is not None
        try:
            while (line := await self._line(process.stdout)) is not None:
                with suppress(ValueError, RecursionError):
                    self._take(json.loads(line, parse_constant=_no_number, parse_float=_finite))
        finally:
            if self._process is process:
                self._end(f"{self.server.name} has ended")
            await process.wait()

    async def _line(self, stdout: asyncio.StreamReader) -> bytes | None:
        """The next one, None at the end. Nothing stands for one that is too long."""
        whole = True
        while True:
            try:
                line = await stdout.readuntil()
                return line if whole else b""
            except asyncio.IncompleteReadError:
                return None
            except asyncio.LimitOverrunError as error:
                if whole:
                    self._refuse_long()
                whole = False
                await stdout.readexactly(error.consumed)

    def _refuse_long(self) -> None:
        """Tell who waits alone; among several, nobody knows whose answer it would have been."""
        if len(self._waiting) == 1:
            (answer,) = self._waiting.values()
            if not answer.done():
                why = f"{self.server.name} gave an answer of more than {LINE_BYTES} bytes"
                answer.set_exception(McpError(why))

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


def _list_of(said: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of a list. McpError."""
    found = said.get(key, [])
    if not isinstance(found, list):
        raise McpError(f"its {key} is no list")
    return [each for each in found if isinstance(each, dict)]


def _text_of(part: Mapping[str, Any]) -> str:
    """Of a part of an answer, which may be a text, hold one, or be something else."""
    resource = part.get("resource")
    for holder in (part, resource if isinstance(resource, dict) else {}):
        if isinstance(holder.get("text"), str):
            return str(holder["text"])
    kind = part.get("type")
    return f"[{kind}]" if isinstance(kind, str) else ""


def _no_number(word: str) -> None:
    """NaN and the like, which no answer to a client can hold."""


def _finite(digits: str) -> float | None:
    number = float(digits)
    return number if math.isfinite(number) else None
