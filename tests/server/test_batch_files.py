"""Files of requests: one answer for each, in their order, whenever the program is killed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from starlette.types import Message, Receive, Scope, Send

from strata.cli.verbs import root
from strata.errors import UsageError
from strata.server.batch import (
    COPIES,
    LINE_BYTES,
    BatchTotals,
    Rules,
    requests_in,
    resume,
    run_batch,
)


class Application:
    """Says what it was asked, after a while that differs; is busy now and then."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.running = self.most = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = json.loads((await receive())["body"])
        self.asked.append(body["prompt"])
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(7 * body["prompt"] % 11):
            await asyncio.sleep(0)
        self.running -= 1
        busy = body["prompt"] % 5 == 3 and self.asked.count(body["prompt"]) == 1
        said = {"text": body["prompt"], "model": body["model"], "stream": body["stream"]}
        said["usage"] = {"prompt_tokens": 2, "completion_tokens": 3}
        start: Message = {"type": "http.response.start", "status": 503 if busy else 200}
        await send(start)
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})


def line(number: int, **other: Any) -> bytes:
    asked = {
        "custom_id": f"r{number}",
        "method": "POST",
        "url": "/v1/completions",
        "body": {"model": "any", "prompt": number, "stream": True},
        **other,
    }
    return json.dumps(asked).encode() + b"\n"


def answer(source: bytes, skip: int = 0) -> tuple[bytes, BatchTotals, Application]:
    app = Application()

    async def everything(target: BytesIO) -> BatchTotals:
        return await run_batch(app, "m", BytesIO(source), target, skip=skip, together=4)

    target = Target()
    totals = asyncio.run(everything(target))
    return target.getvalue(), totals, app


class Target(BytesIO):
    """A file in memory that can be synced."""

    def fileno(self) -> int:
        return 1


@pytest.fixture(autouse=True)
def no_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda number: None)
    monkeypatch.setattr("strata.server.batch._AGAIN_S", 0.0)


SOURCE = b"".join(line(n) for n in range(40))


def test_every_request_is_answered_once_and_in_order() -> None:
    said, totals, app = answer(SOURCE)
    results = [json.loads(each) for each in said.splitlines()]
    assert [r["custom_id"] for r in results] == [f"r{n}" for n in range(40)]
    assert [r["response"]["body"]["text"] for r in results] == list(range(40))
    assert {r["response"]["body"]["model"] for r in results} == {"m"}
    assert {r["response"]["status_code"] for r in results} == {200}
    assert not any(r["response"]["body"]["stream"] for r in results)
    assert totals == BatchTotals(40, 0, 0, 80, 120)
    assert 1 < app.most <= 4


def test_killed_at_any_byte_nothing_is_lost_or_repeated(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    few = b"".join(line(n) for n in range(5))
    source.write_bytes(few)
    whole, _, _ = answer(few)
    for end in range(len(whole) + 1):
        target.write_bytes(whole[:end])
        done = resume(target, source)
        assert done == whole[:end].count(b"\n")
        if end % 37 == 0:
            more, totals, app = answer(few, skip=done)
            assert target.read_bytes() + more == whole
            assert totals.resumed == done
            assert set(app.asked) == set(range(done, 5))


def test_answers_to_other_requests_are_left_alone(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(line(1) + line(2))
    assert resume(target, source) == 0
    for wrong in (line(9), line(1) + line(2) + line(3)):
        target.write_bytes(wrong)
        with pytest.raises(UsageError, match="other requests"):
            resume(target, source)
        assert target.read_bytes() == wrong


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (b"nothing\n", "no JSON"),
        (b"[" * 100_000 + b"\n", "no JSON"),
        (b"[1]\n", "an object"),
        (b"{}\n", "custom_id"),
        (line(0, custom_id=7), "custom_id"),
        (line(0, custom_id={"a": "\ud800"}), "custom_id"),
        (line(0, url="/v1/files"), "POST to"),
        (line(0, method="GET"), "POST to"),
        (line(0, body=[]), "body"),
        (b'{"custom_id": "' + b"x" * LINE_BYTES + b'"}\n', "bytes"),
    ],
)
def test_a_wrong_line_fails_alone(wrong: bytes, why: str) -> None:
    said, totals, _ = answer(line(1) + wrong + b"\n  \n" + line(2))
    first, failed, last = (json.loads(each) for each in said.splitlines())
    assert (first["custom_id"], last["custom_id"]) == ("r1", "r2")
    assert failed["response"] is None
    assert why in failed["error"]["message"]
    assert (totals.lines, totals.failed) == (3, 1)


def test_half_a_character_comes_back_as_it_was(tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "out"
    asked = line(0, custom_id="\ud800\u00e9") + line(1)
    said, totals, _ = answer(asked)
    assert [json.loads(each)["custom_id"] for each in said.splitlines()] == ["\ud800\u00e9", "r1"]
    assert totals.failed == 0
    source.write_bytes(asked)
    target.write_bytes(said.splitlines(keepends=True)[0])
    assert resume(target, source) == 1


def test_lines_are_read_one_by_one() -> None:
    assert list(requests_in(BytesIO(b"a\n\n \nb"))) == [b"a\n", b"b"]


def test_which_lines_there_are_does_not_depend_on_where_they_are_cut() -> None:
    text = b"a\n" + b" " * 20 + b"b\n" + b" " * 20 + b"\n" + b"c" * 16 + b"\n" + b" " * 40 + b"d"
    for most in range(1, 70):
        assert len(list(requests_in(BytesIO(text), most))) == 4


@pytest.mark.parametrize("killed", [False, True])
def test_lines_that_are_held_have_room_and_a_bound(killed: bool) -> None:
    lines = [line(n, custom_id="x" * (40 * n)) for n in range(12)]
    app, held, most = Application(), 0, 0

    @asynccontextmanager
    async def room(nbytes: int) -> AsyncIterator[None]:
        nonlocal held, most
        held, most = held + nbytes, max(most, held + nbytes)
        await asyncio.sleep(0)
        try:
            yield
        finally:
            held -= nbytes

    rules = Rules(held_bytes=1200, room=room)

    async def everything() -> None:
        task = asyncio.create_task(
            run_batch(app, "m", BytesIO(b"".join(lines)), Target(), skip=0, together=4, rules=rules)
        )
        while killed and len(app.asked) < 5:
            await asyncio.sleep(0)
        if killed:
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled() == killed

    asyncio.run(everything())
    assert held == 0
    assert max(map(len, lines)) <= most / COPIES <= 1200
    assert app.most > 1


@pytest.mark.slow
def test_a_model_answers_and_goes_on(smollm2_path: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    asked = {"prompt": "One, two,", "max_tokens": 4, "temperature": 0}
    source.write_bytes(line(0, body=asked) + line(1, body={**asked, "n": "x"}))
    command = ["batch", str(smollm2_path), str(source), str(target), "--json", "--parallel", "2"]
    done = CliRunner().invoke(root, command)
    assert done.exit_code == 0, done.output
    first, second = (json.loads(each) for each in target.read_text().splitlines())
    assert first["response"]["body"]["usage"]["completion_tokens"] == 4
    assert second["response"]["status_code"] == 400
    assert "n:" in second["response"]["body"]["error"]["message"]
    again = CliRunner().invoke(root, command)
    assert json.loads(again.stdout)["resumed"] == 2
    assert CliRunner().invoke(root, [*command[:3], str(source)]).exit_code != 0


@pytest.mark.slow
def test_a_killed_process_goes_on_where_it_was(smollm2_path: Path, tmp_path: Path) -> None:
    """No line is lost or said twice, wherever it is killed, and answers are the same."""
    source, whole, target = (tmp_path / name for name in ("in.jsonl", "whole.jsonl", "out.jsonl"))
    asked = {"max_tokens": 24, "temperature": 0.9, "ignore_eos": True}
    bodies = [{**asked, "prompt": f"Number {n} is", "seed": n} for n in range(12)]
    source.write_bytes(b"".join(line(n, body=body) for n, body in enumerate(bodies)))
    command = [sys.executable, "-m", "strata", "batch", str(smollm2_path), str(source)]
    options = ["--json", "--parallel", "2", "--quiet"]
    subprocess.run([*command, str(whole), *options], check=True, capture_output=True)
    kills, said = 0, b""
    while True:
        before = said.count(b"\n")
        with subprocess.Popen(
            [*command, str(target), *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None:
                said = target.read_bytes() if target.exists() else b""
                if kills < 3 and said.count(b"\n") > before + kills:
                    process.kill()
                    process.wait()
                    kills += 1
                    break
                time.sleep(0.001)
            else:
                assert process.stdout is not None
                totals = json.loads(process.stdout.read())
                break
        said = target.read_bytes()
    assert kills == 3
    assert totals["resumed"] > 0

    def answered(path: Path) -> list[tuple[str, str]]:
        results = [json.loads(each) for each in path.read_text().splitlines()]
        return [(r["custom_id"], r["response"]["body"]["choices"][0]["text"]) for r in results]

    assert answered(target) == answered(whole)
    assert [id for id, _ in answered(target)] == [f"r{n}" for n in range(12)]
