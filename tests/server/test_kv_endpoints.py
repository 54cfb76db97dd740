"""What is kept of prompts, looked up and changed over HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from strata.backends.base import KV_BLOCK
from strata.errors import UsageError
from strata.kv.store import PrefixStore
from strata.kv.store_contents import StoreContents
from strata.kv.store_directory import StoreDirectory
from support.running import Running, load, running, wait_for
from support.store_chains import NBYTES, save

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")

PROMPT = [(7 * i) % 900 + 20 for i in range(2 * KV_BLOCK + 10)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "kv"


@pytest.fixture(scope="module")
def keeping(smollm2_path: Path, folder: Path) -> Iterator[Running]:
    with load(smollm2_path, serving=True, kv_store=str(folder)) as llm, running(llm) as server:
        # Of another model, which no request reaches.
        other = hashlib.sha256(b"another").digest()
        save(PrefixStore(StoreDirectory(folder, 1 << 30), other, NBYTES, "another, f16"), "ab")
        yield server


def post(server: Running, path: str, body: Any) -> Any:
    return httpx.post(f"{server.url}/kv/{path}", json=body, timeout=60)


def kept(server: Running) -> list[dict[str, Any]]:
    reply = httpx.get(f"{server.url}/kv", timeout=60)
    assert reply.status_code == 200
    found: list[dict[str, Any]] = reply.json()["entries"]
    return found


def test_a_prompt_is_kept_and_changed(keeping: Running, folder: Path) -> None:
    assert kept(keeping) == []
    assert post(keeping, "lookup", {"prompt": PROMPT}).json() == {
        "tokens": len(PROMPT),
        "memory": 0,
        "store": 0,
    }
    ask = {"prompt": PROMPT, "n_predict": 3, "temperature": 0}
    first = httpx.post(f"{keeping.url}/completion", json=ask, timeout=60).json()["content"]
    wait_for(lambda: bool(kept(keeping)))
    (one,) = kept(keeping)
    assert (one["first"], one["tokens"], one["pinned"]) == (0, 2 * KV_BLOCK, False)
    assert one["age_s"] < 600
    known = {"tokens": len(PROMPT), "memory": 2 * KV_BLOCK, "store": 2 * KV_BLOCK}
    assert post(keeping, "lookup", {"prompt": PROMPT}).json() == known
    (pinned,) = post(keeping, "pin", {"entries": [one["id"][:6]]}).json()["entries"]
    assert pinned["pinned"]
    small = post(keeping, "compress", {"entries": "all"}).json()
    assert small["bytes"] < one["bytes"]
    assert small["entries"][0]["compressed"]
    assert small["entries"][0]["pinned"]
    (free,) = post(keeping, "unpin", {"entries": [one["id"]]}).json()["entries"]
    assert not free["pinned"]
    # What is compressed is found again, with the same answer.
    with keeping.service.llm.driver.alone() as engine:
        engine.forget_prefixes()
    assert post(keeping, "lookup", {"prompt": PROMPT}).json() == known | {"memory": 0}
    again = httpx.post(f"{keeping.url}/completion", json=ask, timeout=60).json()
    assert again["content"] == first
    assert again["tokens_cached"] >= 2 * KV_BLOCK
    gone = post(keeping, "clear", {"entries": [one["id"]], "memory": True}).json()
    assert [e["id"] for e in gone["entries"]] == [one["id"]]
    assert kept(keeping) == []
    assert post(keeping, "lookup", {"prompt": PROMPT}).json()["store"] == 0
    (other,) = StoreContents(StoreDirectory(folder, 0)).kept()
    assert post(keeping, "clear", {"entries": [other.id]}).status_code == 400
    assert post(keeping, "clear", {"entries": "all"}).status_code == 200
    assert len(StoreContents(StoreDirectory(folder, 0)).kept()) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("pin", {"entries": []}),
        ("pin", {}),
        ("clear", {"entries": ["zzzzzz"]}),
        ("clear", {"entries": "some"}),
        ("compress", {"entries": [7]}),
        ("unpin", {"entries": ["abc"]}),
        ("lookup", {}),
        ("lookup", {"prompt": [-1]}),
        ("lookup", {"prompt": "word " * 5000}),
    ],
)
def test_wrong_requests_are_one_line(keeping: Running, path: str, body: Any) -> None:
    reply = post(keeping, path, body)
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def test_a_text_is_looked_up(keeping: Running) -> None:
    found = post(keeping, "lookup", {"prompt": "The sky is blue."}).json()
    assert 0 < found["tokens"] < 10
    assert post(keeping, "lookup", {"prompt": ""}).json()["tokens"] == 0


def test_without_a_store_there_is_only_memory(smollm2_path: Path) -> None:
    with load(smollm2_path, serving=True) as llm:
        with running(llm) as server:
            refused = httpx.get(f"{server.url}/kv")
            assert refused.status_code == 404
            assert "--kv-store" in refused.json()["error"]["message"]
            assert post(server, "lookup", {"prompt": [1, 2]}).json()["store"] == 0
            with pytest.raises(UsageError, match="one prompt"):
                llm.known_tokens([[1], [2]])  # type: ignore[list-item]
        assert llm.known_tokens([1, 2, 3]) == (0, 0)


def test_it_can_be_left_out(smollm2_path: Path) -> None:
    with load(smollm2_path, serving=True) as llm, running(llm, without=("kv",)) as server:
        assert httpx.get(f"{server.url}/kv").status_code == 501
        for path in ("pin", "unpin", "compress", "clear"):
            assert post(server, path, {"entries": "all"}).status_code == 501
        assert post(server, "lookup", {"prompt": "a"}).status_code == 501
