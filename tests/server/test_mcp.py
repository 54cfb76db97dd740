"""Tools of MCP servers, at ``/tools``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from strata.errors import UsageError
from strata.server import mcp
from strata.server.mcp import LINE_BYTES, McpError, McpServer, Program, Programs, read_mcp_servers
from strata.server.settings import Settings
from support.running import KEY, load, running

PROGRAM = """
import json, os, sys, time
calls = 0
for line in sys.stdin:
    asked = json.loads(line)
    method = asked["method"]
    if "id" not in asked:
        continue
    # What is no answer to anything is passed over.
    print("no JSON", json.dumps({"jsonrpc": "2.0", "method": "notifications/message"}), sep="\\n")
    result = {}
    if method == "tools/list":
        page = {} if "cursor" in asked["params"] else {"nextCursor": "2"}
        names = ["add", "fail"] if page else ["end", "sleep", "key", "long", "kinds", "no_list"]
        # The second of a name is left out.
        names.append("add")
        result = {"tools": [{"name": name, "description": name} for name in names], **page}
    if method == "tools/call":
        calls += 1
        name, given = asked["params"]["name"], asked["params"]["arguments"]
        if name == "end":
            os._exit(1)
        if name == "sleep":
            time.sleep(60)
        text = str(sum(given.get("numbers", [calls])))
        if name == "long":
            text = "x" * (3 << 20)
        if name == "key":
            text = os.environ.get("STRATA_API_KEY", "none") + os.environ["OWN"]
        result = {"content": [{"type": "text", "text": text}], "isError": name == "fail"}
        if name == "kinds":
            inner = {"uri": "a:b", "text": "inner"}
            result = {"content": [{"type": "resource", "resource": inner}, {"type": "image"}, 1]}
        if name == "no_list":
            result = {"content": 5, "_meta": float("nan")}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


@pytest.fixture(scope="module")
def http(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("mcp")
    (folder / "program.py").write_text(PROGRAM)
    command = {"command": sys.executable, "args": [str(folder / "program.py")], "env": {"OWN": "!"}}
    servers = {
        "one": command,
        "hasty": {**command, "timeout_ms": 200},
        "absent": {"command": str(folder / "absent")},
    }
    (folder / "servers.json").write_text(json.dumps({"mcpServers": servers}))
    chosen = read_mcp_servers(folder / "servers.json")
    with (
        load(smollm2_path, context=64, parallel=1) as llm,
        running(llm, mcp_servers=chosen, api_key=KEY) as server,
        httpx.Client(base_url=server.url, timeout=60, headers={"x-api-key": KEY}) as client,
    ):
        yield client


def test_who_has_no_key_calls_no_tools(http: httpx.Client) -> None:
    assert httpx.get(http.base_url.join("/tools")).status_code == 401
    server = McpServer("a", ("x",), {})
    with pytest.raises(UsageError, match="set --api-key"):
        Settings(mcp_servers=(server,))
    Settings(mcp_servers=(server,), allow_unauthenticated=True)


def test_tools_of_all_programs_are_listed(http: httpx.Client) -> None:
    listed: list[dict[str, Any]] = []
    while len(listed) < 16:  # Those that are slow to start come to later lists.
        listed = http.get("/tools").json()
    found = {tool["tool"]: tool["definition"] for tool in listed}
    names = ["add", "fail", "end", "sleep", "key", "long", "kinds", "no_list"]
    assert list(found) == [*(f"one_{name}" for name in names), *(f"hasty_{n}" for n in names)]
    parameters = {"type": "object", "properties": {}}
    function = {"name": "one_add", "description": "add", "parameters": parameters}
    assert found["one_add"] == {"type": "function", "function": function}


def test_calls_give_text_or_say_how_they_failed(http: httpx.Client) -> None:
    def call(tool: str, **params: object) -> object:
        return http.post("/tools", json={"tool": tool, "params": params}).json()

    assert call("one_add", numbers=[1, 2]) == {"plain_text_response": "3"}
    assert call("one_fail", numbers=[7]) == {"error": "7"}
    assert call("one_end") == {"error": "one has ended"}
    # It is started again, without what only this server is to know.
    assert call("one_add") == {"plain_text_response": "1"}
    # What is too long does not end it.
    assert call("one_long") == {"error": f"one gave an answer of more than {LINE_BYTES} bytes"}
    assert call("one_add") == {"plain_text_response": "3"}
    assert call("one_kinds") == {"plain_text_response": "inner\n[image]"}
    assert call("one_no_list") == {"error": "its content is no list"}
    assert call("hasty_sleep") == {"error": "hasty gave no answer within 0.2 s"}
    unknown = http.post("/tools", json={"tool": "absent_add"})
    assert unknown.status_code == 404
    assert "there is no tool 'absent_add' here" in unknown.json()["error"]["message"]


def test_programs_do_not_get_the_servers_key(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRATA_API_KEY", "a secret")
    http.post("/tools", json={"tool": "one_end"})
    found = http.post("/tools", json={"tool": "one_key"}).json()
    assert found == {"plain_text_response": "none!"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "has no MCP servers"),
        ("{}", "mcpServers"),
        ('{"mcpServers": {"a b": {"command": "x"}}}', "is no name"),
        ('{"mcpServers": {"a": {}}}', "command"),
        ('{"mcpServers": {"a": {"command": "x", "args": [1]}}}', "are texts"),
        ('{"mcpServers": {"a": {"command": "x", "args": "-v"}}}', "args of a is a list"),
        ('{"mcpServers": {"a": {"command": "x", "cwd": 1}}}', "cwd of a is the path"),
        ('{"mcpServers": {"a": {"command": "x", "timeout_ms": 0}}}', "timeout_ms"),
    ],
)
def test_wrong_files_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "servers.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_mcp_servers(path)
    with pytest.raises(UsageError, match="No such file"):
        read_mcp_servers(tmp_path / "absent.json")


LISTING = """
import json, os, sys
for line in sys.stdin:
    asked = json.loads(line)
    if "id" not in asked:
        continue
    if asked["method"] == "tools/list" and not os.path.exists(sys.argv[1]):
        open(sys.argv[1], "w").close()
        os._exit(1)
    # The same page for ever, and a name that is none once that of the program stands before it.
    result = {"tools": [{"name": "add"}, {"name": 5}, {"name": "x" * 64}], "nextCursor": "again"}
    print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result}), flush=True)
"""


def test_a_program_that_failed_is_asked_again(tmp_path: Path) -> None:
    command = (sys.executable, "-c", LISTING, str(tmp_path / "asked"))

    async def listed() -> list[list[str]]:
        programs = Programs([McpServer("a" * 64, command, {})])
        try:
            found = [await programs.tools() for _ in range(3)]
            (add,) = found[-1].values()
            with pytest.raises(McpError, match="number that JSON has not"):
                await add.program.call("add", {"number": float("nan")})
            return [list(tools) for tools in found]
        finally:
            programs.close()

    assert asyncio.run(listed()) == [[], ["a" * 64 + "_add"], ["a" * 64 + "_add"]]


def test_a_program_that_hangs_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asked").touch()
    quick = McpServer("quick", (sys.executable, "-c", LISTING, str(tmp_path / "asked")), {})
    hangs = McpServer("hangs", (sys.executable, "-c", "input(); input()"), {})
    monkeypatch.setattr(mcp, "_PATIENCE_S", 0.1)

    async def asked() -> None:
        programs = Programs([hangs, quick])
        try:
            # Its own tools are there, however long others take to say theirs.
            assert await programs.tool("quick_add") is not None
            assert "quick_add" in await programs.tools()
            # Whoever wants one of the other's is told once it has ended.
            wanted = asyncio.create_task(programs.tool("hangs_add"))
            await asyncio.sleep(0)
            programs.close()
            assert await wanted is None
        finally:
            programs.close()

    asyncio.run(asked())


def test_what_a_program_does_not_read_is_not_kept_for_it() -> None:
    deaf = (
        "import json, sys, time\n"
        "for _ in range(2):\n"
        "    line = json.loads(sys.stdin.readline())\n"
        "    print(json.dumps({'id': line.get('id'), 'result': {}}), flush=True)\n"
        "time.sleep(60)\n"
    )

    async def asked() -> list[str]:
        program = Program(McpServer("deaf", (sys.executable, "-c", deaf), {}, None, 0.2))
        said = []
        try:
            for _ in range(2):
                with pytest.raises(McpError) as error:
                    await program.call("any", {"text": "x" * (2 << 20)})
                said.append(str(error.value))
        finally:
            program.close()
        return said

    assert asyncio.run(asked()) == [
        "deaf gave no answer within 0.2 s",
        "deaf does not read what it is asked",
    ]


def test_a_program_that_is_being_started_ends_with_the_server() -> None:
    async def asked() -> None:
        program = Program(McpServer("late", (sys.executable, "-c", "input()"), {}))
        call = asyncio.create_task(program.call("any", {}))
        await asyncio.sleep(0)
        program.close()
        with pytest.raises(McpError, match="the server is shutting down"):
            await call

    asyncio.run(asked())
