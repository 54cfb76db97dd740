"""Several models under one budget: who is there, who waits, who goes. The processes are fake, but
for those of the last test."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from strata.decode import SamplingParams
from strata.llm import LLM
from strata.server.fleet import fleet as fleet_module
from strata.server.fleet.entries import Entry
from support.fake_children import MB, FakeChildren
from support.running import wait_for
from support.running_fleet import RunningFleet, running_fleet

CHAT = "/v1/chat/completions"
A, B = Entry("a", "one.gguf", ("first",)), Entry("b", "two.gguf")


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> FakeChildren:
    children = FakeChildren()
    monkeypatch.setattr(fleet_module, "Child", children)
    monkeypatch.setattr(fleet_module, "HELPER_BYTES", 50 * MB)
    return children


@pytest.fixture
def served(children: FakeChildren, tmp_path: Path) -> Iterator[RunningFleet]:
    """Two models of 100 to 200 MB in 300."""
    saved = tmp_path / "models.json"
    with running_fleet([A, B], 300 * MB, saved=saved, keep_alive_s=300) as server:
        yield server
        assert children.most <= 300 * MB
    assert not children.alive


def by(answer: tuple[int, Any]) -> str:
    status, body = answer
    assert status == 200, body
    return str(body["by"])


def test_each_request_reaches_its_model(served: RunningFleet, children: FakeChildren) -> None:
    assert by(served.ask(CHAT, {"model": "a"})) == "a"
    assert children.alive == {"a": 200 * MB}
    assert by(served.ask(CHAT, {"model": "b:latest"})) == "b"
    assert by(served.ask(CHAT, {"model": "first"})) == "a"
    # Who names none has the first.
    assert by(served.ask("/tokenize", {"content": "x"})) == "a"
    assert by(served.ask("/props?model=b")) == "b"
    assert sum(children.alive.values()) == 300 * MB
    assert children.loads == ["a", "b"], "made smaller, and not loaded again"
    status, body = served.ask(CHAT, {"model": "c"})
    assert status == 404
    assert "this server has: a, b" in body["error"]["message"]


def test_what_is_told_is_true(served: RunningFleet) -> None:
    def names(path: str, key: str, each: str) -> list[str]:
        return [model[each] for model in served.ask(path)[1][key]]

    assert names("/v1/models", "data", "id") == ["a", "first", "b"]
    assert names("/api/tags", "models", "name") == ["a", "first", "b"]
    assert names("/api/ps", "models", "name") == []
    assert names("/v1/models", "data", "root") == ["a", "a", "b"]
    assert served.ask("/v1/models/b")[1]["id"] == "b"
    assert served.ask("/v1/models/c")[0] == 404
    served.ask(CHAT, {"model": "b"})
    (running,) = served.ask("/api/ps")[1]["models"]
    assert (running["name"], running["size"]) == ("b", 200 * MB)
    assert served.ask("/api/show", {"model": "a"})[1]["modelfile"] == "FROM one.gguf"
    assert served.ask("/memory")[1]["models"] == {"b": 200 * MB}
    assert b'strata_share_bytes{owner="model b"}' in served.raw("/metrics")[1]


def test_a_model_goes_after_its_time(children: FakeChildren) -> None:
    with running_fleet([A, B], 300 * MB, keep_alive_s=0.4) as served:
        served.ask("/api/chat", {"model": "b", "keep_alive": -1})
        served.ask(CHAT, {"model": "a"})
        assert children.loads == ["b", "a"]
        wait_for(lambda: set(children.alive) == {"b"})
        # What it had is for who stays.
        wait_for(lambda: children.alive == {"b": 200 * MB})
        served.ask("/api/chat", {"model": "b", "keep_alive": 0})
        wait_for(lambda: not children.alive)
        assert served.fleet.ledger.owned["model b"] == 0


def test_unloading_is_no_loading(served: RunningFleet, children: FakeChildren) -> None:
    body = {"model": "a", "keep_alive": 0}
    assert served.ask("/api/generate", body)[1]["done_reason"] == "unload"
    told = served.ask("/props?model=a")[1]
    assert (told["model_alias"], told["is_sleeping"]) == ("a", True)
    assert children.loads == []
    served.ask(CHAT, {"model": "a"})
    assert served.ask("/api/chat", body)[1]["done_reason"] == "unload"
    assert children.alive == {}


def test_a_stream_that_waits_is_kept_alive(served: RunningFleet, children: FakeChildren) -> None:
    children.load_s = 0.5
    status, data = served.raw(CHAT, {"model": "a", "stream": True})
    lines = data.decode().splitlines()
    assert status == 200
    assert any(line.startswith(": loading a: weights") for line in lines), lines
    assert [line for line in lines if line.startswith("data")][-1] == "data: [DONE]"
    served.ask("/api/generate", {"model": "a", "keep_alive": 0})
    _, data = served.raw("/api/chat", {"model": "a", "messages": [1]})
    first = json.loads(data.splitlines()[0])
    assert (first["done"], first["message"]["content"]) == (False, "")


def test_what_fails_while_a_stream_waits_is_said_in_it(
    served: RunningFleet, children: FakeChildren
) -> None:
    children.load_s = 0.3
    status, data = served.raw(CHAT, {"model": "a", "stream": True, "wrong": 1})
    assert status == 200
    children.broken["b"] = "the file is damaged"
    status, data = served.raw(CHAT, {"model": "b", "stream": True})
    last = json.loads(data.decode().strip().splitlines()[-1].removeprefix("data: "))
    assert "the file is damaged" in last["error"]["message"]
    status, body = served.ask(CHAT, {"model": "b"})
    assert (status, "the file is damaged" in body["error"]["message"]) == (500, True)
    assert served.fleet.ledger.owned.get("model b", 0) == 0


def test_who_answers_is_not_unloaded(children: FakeChildren) -> None:
    """In room for one, two clients that never stop: each gets all its answers, and never are both
    models there."""
    children.answer_s = 0.02
    with running_fleet([A, B], 210 * MB) as served:
        # Neither can be made smaller.
        children.stubborn |= {"a", "b"}
        found: dict[str, list[str]] = {"a": [], "b": []}

        def client(name: str) -> None:
            for _ in range(8):
                found[name].append(by(served.ask(CHAT, {"model": name})))

        threads = [threading.Thread(target=client, args=(name,)) for name in "ab"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert found == {"a": ["a"] * 8, "b": ["b"] * 8}
        assert children.most <= 210 * MB


def test_a_process_that_dies_is_told_of_and_loaded_again(
    served: RunningFleet, children: FakeChildren
) -> None:
    children.answer_s = 2.0
    answers: list[tuple[int, bytes]] = []
    ask = threading.Thread(
        target=lambda: answers.append(served.raw(CHAT, {"model": "a", "stream": True}))
    )
    ask.start()
    wait_for(lambda: bool(children.asked))
    children.workers["a"].kill()
    ask.join(30)
    assert "ended" in answers[0][1].decode().strip().splitlines()[-1]
    children.answer_s = 0.0
    assert by(served.ask(CHAT, {"model": "a"})) == "a"
    assert children.loads == ["a", "a"]


def test_a_process_that_dies_of_a_smaller_share_gives_back_what_it_had(
    served: RunningFleet, children: FakeChildren
) -> None:
    served.ask(CHAT, {"model": "a"})
    children.frail = {"a"}
    assert by(served.ask(CHAT, {"model": "b"})) == "b"
    assert served.ask("/memory")[1]["models"] == {"b": 200 * MB}
    children.frail = {"b"}
    # The other one's is taken again, and both are counted once.
    assert by(served.ask(CHAT, {"model": "a"})) == "a"
    assert served.ask("/memory")[1]["models"] == {"a": 200 * MB}


def test_what_was_fetched_anew_is_what_is_loaded(
    served: RunningFleet, children: FakeChildren
) -> None:
    assert by(served.ask(CHAT, {"model": "a"})) == "a"
    children.path = "/newer.gguf"
    assert served.raw("/api/pull", {"model": "some/repo"})[0] == 200
    # It is there, and stays as it is.
    assert by(served.ask(CHAT, {"model": "a"})) == "a"
    served.ask("/api/generate", {"model": "a", "keep_alive": 0})
    assert by(served.ask(CHAT, {"model": "a"})) == "a"
    assert children.loads == ["a", "a"]
    assert children.workers["a"].path == "/newer.gguf"


def test_a_budget_too_small_is_said(children: FakeChildren) -> None:
    with running_fleet([A], 90 * MB) as served:
        status, body = served.ask(CHAT, {"model": "a"})
        assert status == 400
        assert "a needs 100 MB at least" in body["error"]["message"]
        assert served.ask("/memory", {"memory": "300MB"})[0] == 200
        assert by(served.ask(CHAT, {"model": "a"})) == "a"
        assert served.ask("/memory", {"memory": 120 * MB})[0] == 200
        assert children.alive == {"a": 100 * MB} or sum(children.alive.values()) <= 120 * MB
        assert served.ask("/memory", {"memory": "much"})[0] == 400


def test_names_are_made_and_unmade(
    served: RunningFleet, children: FakeChildren, tmp_path: Path
) -> None:
    made = {"model": "c", "from": "a", "system": "Be brief.", "parameters": {"num_ctx": 64}}
    assert served.raw("/api/create", made)[1].splitlines()[-1] == b'{"status":"success"}'
    assert by(served.ask(CHAT, {"model": "c"})) == "c"
    told = served.ask("/api/show", {"model": "c"})[1]
    assert told["system"] == "Be brief."
    assert served.raw("/api/copy", {"source": "c", "destination": "d"})[0] == 200
    kept = json.loads((tmp_path / "models.json").read_text())["models"]
    assert [(e["name"], e["system"], e["context"]) for e in kept] == [
        ("c", "Be brief.", 64),
        ("d", "Be brief.", 64),
    ]
    assert served.raw("/api/delete", {"model": "c"}, "DELETE")[0] == 200
    assert served.ask(CHAT, {"model": "c"})[0] == 404
    assert "c" not in children.alive
    # What a user gave is no request's to delete, or to replace.
    assert served.ask("/api/delete", {"model": "a"}, "DELETE")[0] == 400
    assert served.ask("/api/copy", {"source": "b", "destination": "a"})[0] == 400
    for wrong in (
        {"model": "e", "from": "a", "template": "{{ .Prompt }}"},
        {"model": "e", "from": "a", "parameters": {"temprature": 1}},
        {"model": "e", "from": "nobody"},
        {"model": "e"},
    ):
        assert served.ask("/api/create", wrong)[0] in (400, 404), wrong


def test_pulling_tells_how_far_it_is(
    served: RunningFleet, children: FakeChildren, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, data = served.raw("/api/pull", {"model": "some/repo:Q4_0"})
    parts = [json.loads(line) for line in data.splitlines()]
    assert parts[0] == {"status": "pulling manifest"}
    assert {"completed": 1, "total": 2}.items() <= parts[1].items()
    assert parts[-1] == {"status": "success"}
    assert children.fetched == ["some/repo:Q4_0"]
    assert by(served.ask(CHAT, {"model": "some/repo:Q4_0"})) == "some/repo:Q4_0"
    removed: list[str] = []
    monkeypatch.setattr("strata.server.fleet.names._remove", removed.append)
    assert served.raw("/api/delete", {"model": "some/repo:Q4_0"}, "DELETE")[0] == 200
    assert removed == ["some/repo:Q4_0"]
    assert served.ask("/api/pull", {"model": "../x"})[0] in (400, 404)


def test_a_file_that_is_no_model_is_told_of(children: FakeChildren) -> None:
    with running_fleet([A, Entry("x", "broken.gguf")], 300 * MB) as served:
        status, body = served.ask(CHAT, {"model": "x"})
        assert status == 500
        assert "it is no model" in body["error"]["message"]
        assert by(served.ask(CHAT, {"model": "a"})) == "a"


def test_a_client_that_goes_away_ends_its_request(
    served: RunningFleet, children: FakeChildren
) -> None:
    children.answer_s = 30.0
    with socket.create_connection(("127.0.0.1", urlsplit(served.url).port or 0)) as client:
        body = b'{"model": "a"}'
        head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)
        wait_for(lambda: bool(children.asked))
    wait_for(lambda: all(m.leases == 0 for m in served.fleet.members()))


@pytest.mark.slow
def test_a_model_is_pulled_from_a_hub_and_answers(
    smollm2_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the process that does so, from a stand-in of the hub; and deleted again, files and all."""
    from support.stand_in_hub import Repository, StandInHub

    hub = StandInHub({"some/repo": Repository({"m.Q4_1.gguf": smollm2_path.read_bytes()})})
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    try:
        with running_fleet([], 460 * MB, saved=tmp_path / "models.json") as served:
            assert served.ask(CHAT, {"model": "some/repo"})[0] == 404
            _, data = served.raw("/api/pull", {"model": "some/repo:Q4_1"})
            parts = [json.loads(line) for line in data.splitlines()]
            assert parts[-1] == {"status": "success"}, parts[-1]
            total = smollm2_path.stat().st_size
            assert any(part.get("completed") == part.get("total") == total for part in parts)
            question = [{"role": "user", "content": "Name three rivers."}]
            body = {"model": "some/repo:Q4_1", "messages": question, "max_tokens": 4}
            status, told = served.ask(CHAT, body)
            assert (status, told.get("usage", told)["completion_tokens"]) == (200, 4)
            # What is there is not fetched twice.
            before = len(hub.downloads())
            assert served.raw("/api/pull", {"model": "some/repo:Q4_1"})[0] == 200
            assert len(hub.downloads()) == before
            _, data = served.raw("/api/pull", {"model": "some/other"})
            assert "some/other" in json.loads(data.splitlines()[-1])["error"]
    finally:
        hub.close()


@pytest.mark.slow
def test_real_models_answer_as_each_alone(smollm2_path: Path, llm: LLM) -> None:
    """Two in room for one and a half, by turns: neither is killed, and answers are as of one that
    is alone."""
    question = [{"role": "user", "content": "Name three rivers."}]
    alone = {
        "a": llm.chat(question, SamplingParams(max_tokens=8)).text,
        "b": llm.chat([{"role": "system", "content": "Shout."}, *question], {"max_tokens": 8}).text,
    }
    entries = [
        Entry("a", str(smollm2_path)),
        Entry("b", str(smollm2_path), system="Shout.", sampling={"max_tokens": 8}),
    ]
    with running_fleet(entries, 460 * MB, keepalive_s=1.0) as served:
        for name in ("a", "b", "a"):
            body = {"model": name, "messages": question, "temperature": 0}
            status, told = served.ask(CHAT, {**body, **({"max_tokens": 8} if name == "a" else {})})
            assert status == 200, told
            assert told["model"] == name
            assert told["choices"][0]["message"]["content"] == alone[name]
        shares = {m.entry.name: m.share for m in served.fleet.loaded}
        assert set(shares) == {"a", "b"}
        assert sum(shares.values()) <= 460 * MB
