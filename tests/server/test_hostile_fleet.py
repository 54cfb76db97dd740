"""What strangers may send to a server of several models: bounds of bodies, names and texts, and
files that are none of theirs. The processes are fake. `bench/fuzz_fleet.py` tries many more."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.hub.downloads import ModelNotFound
from strata.hub.references import parse
from strata.server.durations import seconds_of
from strata.server.fleet import bodies
from strata.server.fleet import fleet as fleet_module
from strata.server.fleet.entries import Entry
from support.fake_children import MB, FakeChildren
from support.running import wait_for
from support.running_fleet import RunningFleet, running_fleet
from support.sampling import every

CHAT = "/v1/chat/completions"
CREATE = {"model": "c", "from": "a"}


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> FakeChildren:
    children = FakeChildren()
    monkeypatch.setattr(fleet_module, "Child", children)
    monkeypatch.setattr(fleet_module, "HELPER_BYTES", 50 * MB)
    return children


@pytest.fixture
def served(children: FakeChildren, tmp_path: Path) -> Iterator[RunningFleet]:
    model = tmp_path / "secret" / "one.gguf"
    model.parent.mkdir()
    model.touch()
    entries = [Entry("a", str(model)), Entry("b", "two.gguf"), Entry("x", "broken.gguf")]
    with running_fleet(entries, 300 * MB, saved=tmp_path / "models.json") as server:
        yield server


@pytest.mark.parametrize(
    "parameters",
    every(
        3,
        [
            {"stop": 5},
            {"stop": None},
            {"stop": [[]]},
            {"stop": ["a"] * 65},
            {"stop": ["a" * 1025]},
            {"num_ctx": True},
            {"num_ctx": 10**9},
            {"temperature": "warm"},
        ],
    ),
)
def test_parameters_that_make_no_sense(served: RunningFleet, parameters: dict[str, Any]) -> None:
    status, body = served.ask("/api/create", {**CREATE, "parameters": parameters})
    assert status == 400, body


def test_bodies_are_counted_before_they_are_parsed(
    served: RunningFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[int] = []
    whole = bodies.parsed

    async def noting(body: bytes, kind: Any) -> Any:
        parsed.append(len(body))
        return await whole(body, kind)

    monkeypatch.setattr(bodies, "parsed", noting)
    monkeypatch.setattr("strata.server.fleet.front.parsed", noting)
    many = {"ignored": [[]] * 100_000}
    for path, body in (
        ("/api/create", {**CREATE, "files": [[]] * 3_000}),
        ("/api/create", {**CREATE, "system": "x" * 2_000_000}),
        ("/api/show", {"model": "a", **many}),
        ("/memory", {"memory": 10**8, **many}),
        (CHAT, {"model": "a", **many}),
    ):
        assert served.ask(path, body)[0] == 413, path
    assert served.raw("/api/show", json.loads("[" * 70 + "]" * 70))[0] == 400
    assert parsed == []
    assert served.fleet.ledger.owned["front"] == 0


def test_kept_names_have_bounds(served: RunningFleet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served.ask("/api/create", {**CREATE, "system": "x" * 70_000})[0] == 400
    monkeypatch.setattr("strata.server.fleet.entries._MOST_MADE", 3)
    monkeypatch.setattr("strata.server.fleet.entries._MOST_TEXTS", 10_000)
    found = [served.raw("/api/copy", {"source": "a", "destination": f"c{n}"})[0] for n in range(5)]
    assert found == [200, 200, 200, 400, 400]
    # One that is there may be made anew, within the bound of all texts.
    assert served.raw("/api/create", {"model": "c1", "from": "a", "system": "x" * 8_000})[0] == 200
    assert served.ask("/api/create", {"model": "c2", "from": "a", "system": "x" * 8_000})[0] == 400
    assert served.raw("/api/delete", {"model": "c0"}, "DELETE")[0] == 200
    assert served.raw("/api/copy", {"source": "a", "destination": "c5"})[0] == 200


def test_nobody_is_told_what_files_there_are(served: RunningFleet, tmp_path: Path) -> None:
    (tmp_path / "secret" / "diary.txt").touch()
    for name in ("/secret/diar", "/secret/diary.txt", "/secret/one.gguf"):
        status, data = served.raw("/api/pull", {"model": f"{tmp_path}{name}"})
        assert status == 400
        assert b"diary.txt?" not in data
        assert data == served.raw("/api/pull", {"model": f"{tmp_path}{name}"})[1]
    there = served.raw("/api/pull", {"model": f"{tmp_path}/secret/diary.txt"})[1]
    absent = served.raw("/api/pull", {"model": f"{tmp_path}/secret/diary.xyz"})[1]
    assert there.replace(b"txt", b"xyz") == absent
    assert served.raw("/api/copy", {"source": "a", "destination": "c"})[0] == 200
    shown = served.raw("/api/show", {"model": "c"})[1] + served.raw("/api/tags")[1]
    assert b"one.gguf" in shown
    assert b"secret" not in shown
    assert served.raw("/api/pull", {"model": "c"})[0] == 200


def test_a_reference_without_files_looks_at_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "repo").touch()
    (tmp_path / "llama9").touch()
    assert str(parse("user/repo", local=False)) == "user/repo"
    with pytest.raises(ModelNotFound) as error:
        parse("llama8", local=False)
    assert "llama9" not in str(error.value)


def test_what_was_here_before_is_not_deleted(
    served: RunningFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    monkeypatch.setattr("strata.server.fleet.names._remove", removed.append)
    for name in ("some/here", "some/new", "hf.co/some/new"):
        assert served.raw("/api/pull", {"model": name})[0] == 200
        if name != "some/new":
            assert served.raw("/api/delete", {"model": name}, "DELETE")[0] == 200
    assert removed == [], "it is other programs' as well, or that of another name"
    assert served.raw("/api/delete", {"model": "some/new"}, "DELETE")[0] == 200
    assert removed == ["some/new"]


def test_a_model_that_is_deleted_while_it_loads_leaves_nothing(
    served: RunningFleet, children: FakeChildren
) -> None:
    assert served.raw("/api/copy", {"source": "a", "destination": "c"})[0] == 200
    children.load_s = 0.6
    answers: list[int] = []
    ask = threading.Thread(target=lambda: answers.append(served.raw(CHAT, {"model": "c"})[0]))
    ask.start()
    wait_for(lambda: children.loads == ["c"])
    assert served.raw("/api/delete", {"model": "c"}, "DELETE")[0] == 200
    ask.join(30)
    assert answers[0] in (200, 404)
    wait_for(lambda: not children.alive and not served.fleet.ledger.owned["model c"])


def test_who_is_deleted_twice_is_not_found(served: RunningFleet, children: FakeChildren) -> None:
    assert served.raw("/api/copy", {"source": "a", "destination": "c"})[0] == 200
    children.answer_s = 0.5
    ask = threading.Thread(target=served.raw, args=(CHAT, {"model": "c"}))
    ask.start()
    wait_for(lambda: bool(children.asked))
    answers: list[int] = []

    def delete() -> None:
        answers.append(served.raw("/api/delete", {"model": "c"}, "DELETE")[0])

    threads = [threading.Thread(target=delete) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in [*threads, ask]:
        thread.join(30)
    assert sorted(answers) == [200, 404, 404]


def test_a_file_that_is_none_is_not_looked_at_by_everybody(
    served: RunningFleet, monkeypatch: pytest.MonkeyPatch, children: FakeChildren
) -> None:
    started: list[str] = []
    start = children.start

    async def counting(kind: str, asked: dict[str, Any]) -> Any:
        started.append(kind)
        return await start(kind, asked)

    monkeypatch.setattr("strata.server.fleet.members._WRONG_S", 1e6)
    served.ask("/api/tags")
    monkeypatch.setattr(children, "start", counting)
    for _ in range(5):
        names = [model["name"] for model in served.ask("/api/tags")[1]["models"]]
        assert names == ["a", "b"]
        assert served.ask(CHAT, {"model": "x"})[0] == 500
    # A further name for a model is known by what is known of that.
    served.raw("/api/copy", {"source": "a", "destination": "c"})
    assert len(served.ask("/api/tags")[1]["models"]) == 3
    assert started == []


@pytest.mark.parametrize("value", ["1" * 20_000, [], "nan", float("nan"), 10**400, "", "5 m"])
def test_durations_that_are_none_are_found_at_once(value: Any) -> None:
    with pytest.raises(ValueError, match="duration"):
        seconds_of(value)


@pytest.mark.parametrize("value", [[], {}, "1" * 20_000, "nan"])
def test_a_keep_alive_that_is_none_is_the_models_to_refuse(
    served: RunningFleet, value: Any
) -> None:
    assert served.ask("/api/chat", {"model": "a", "keep_alive": value})[0] == 200
    assert served.fleet.find("a").keep_alive_s == 300.0
