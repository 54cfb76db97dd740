"""Embeddings and rankings by every protocol are those of the class."""

from __future__ import annotations

import base64
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from strata import LLM
from strata.server import embedding
from support.encoders import CONTEXT, encoder
from support.running import NAMES, Running, running

TEXTS = ["The cat sat on the mat.", "Revenue rose by 3 %.", ""]
MODEL = NAMES[0]


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_the_openai_client(server: Running, llm: LLM) -> None:
    openai = pytest.importorskip("openai", reason="the package openai is not installed")
    expected = llm.embed(TEXTS[:2])
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        # It asks for base64, whose bits are those of the class.
        found = client.embeddings.create(model=MODEL, input=TEXTS[:2])
        assert np.array_equal(np.array([d.embedding for d in found.data], np.float32), expected)
        assert found.usage.prompt_tokens == sum(
            len(llm.tokenize(text, add_special=True)) for text in TEXTS[:2]
        )
        short = client.embeddings.create(model=MODEL, input=TEXTS[0], dimensions=7)
        assert np.array_equal(
            np.array(short.data[0].embedding, np.float32), llm.embed(TEXTS[0], dimensions=7)
        )
        ids = llm.tokenize(TEXTS[0], add_special=True)
        for given in (ids, [ids]):
            one = client.embeddings.create(model=MODEL, input=given)
            assert np.array_equal(np.array(one.data[0].embedding, np.float32), expected[0])
        with pytest.raises(openai.BadRequestError, match="embeddings have 576"):
            client.embeddings.create(model=MODEL, input="a", dimensions=600)
        with pytest.raises(openai.BadRequestError) as caught:
            client.embeddings.create(model=MODEL, input="word " * 3000)
        assert caught.value.code == "context_length_exceeded"


def test_the_ollama_client(server: Running, llm: LLM) -> None:
    ollama = pytest.importorskip("ollama", reason="the package ollama is not installed")
    client = ollama.Client(host=server.url)
    expected = llm.embed(TEXTS[:2])
    found = client.embed(model=MODEL, input=TEXTS[:2], keep_alive=0)
    assert np.array_equal(np.array(found.embeddings, np.float32), expected)
    old = client.embeddings(model=MODEL, prompt=TEXTS[0])
    raw = llm.embed(TEXTS[0], normalize=False)
    assert np.array_equal(np.array(old.embedding, np.float32), raw)
    # What is too long loses its end, unless that is refused.
    ids = llm.tokenize("word " * 3000, add_special=True)[: llm.context]
    cut = client.embed(model=MODEL, input="word " * 3000)
    assert np.array_equal(np.array(cut.embeddings[0], np.float32), llm.embed([ids])[0])
    with pytest.raises(ollama.ResponseError, match="exceeds the context length"):
        client.embed(model=MODEL, input="word " * 3000, truncate=False)


def test_ids_beside_lists_are_refused(http: httpx.Client) -> None:
    for given in ([2, [5, 6]], ["hi", {"prompt_string": "hi"}, 7]):
        answer = http.post("/v1/embeddings", json={"input": given})
        assert answer.status_code == 400
        assert "beside texts only" in answer.text


def test_llama_servers_form(http: httpx.Client, llm: LLM) -> None:
    for body in ({"content": TEXTS[0]}, {"input": {"prompt_string": TEXTS[0]}}):
        (found,) = http.post("/embedding", json=body).json()
        assert np.array_equal(np.array(found["embedding"][0], np.float32), llm.embed(TEXTS[0]))
    seen = {"prompt_string": TEXTS[0], "multimodal_data": ["AAAA"]}
    for path in ("/embedding", "/v1/embeddings"):
        refused = http.post(path, json={"input": [TEXTS[0], seen]})
        assert refused.status_code == 400
        assert "reads text only" in refused.json()["error"]["message"]
    body = {"input": TEXTS[0], "encoding_format": "base64"}
    data = http.post("/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert np.array_equal(np.frombuffer(base64.b64decode(data), "<f4"), llm.embed(TEXTS[0]))


def test_a_ranking_without_a_reranker_is_by_nearness(http: httpx.Client, llm: LLM) -> None:
    query, texts = "A cat is sitting on a rug.", [TEXTS[1], TEXTS[0]]
    a, *rest = llm.embed([query, *texts])
    scores = [float(vector @ a) for vector in rest]
    body = {"query": query, "documents": texts, "return_documents": True}
    found = http.post("/v1/rerank", json=body).json()["results"]
    assert [r["index"] for r in found] == sorted(range(2), key=lambda i: -scores[i])
    assert [r["document"]["text"] for r in found] == [texts[r["index"]] for r in found]
    assert [r["relevance_score"] for r in found] == pytest.approx(sorted(scores)[::-1], abs=1e-6)
    plain = http.post("/rerank", json={"query": query, "texts": texts, "top_n": 1}).json()
    assert [(r["index"], set(r)) for r in plain] == [(found[0]["index"], {"index", "score"})]
    for wrong in ([], None, 123, [1]):
        body = {"query": query, "documents": wrong}
        assert http.post("/rerank", json=body).status_code == 400


def test_while_others_are_answered(http: httpx.Client, server: Running, llm: LLM) -> None:
    from concurrent.futures import ThreadPoolExecutor

    asked = {"prompt": "Once upon a time", "max_tokens": 40, "temperature": 0}
    alone = http.post("/v1/completions", json=asked).json()["choices"]
    with ThreadPoolExecutor(2) as pool:
        beside = pool.submit(httpx.post, f"{server.url}/v1/completions", json=asked, timeout=60)
        found: Any = http.post("/v1/embeddings", json={"input": TEXTS[:2] * 8}).json()["data"]
        assert beside.result().json()["choices"] == alone
    assert [found[0]["embedding"]] * 8 == [entry["embedding"] for entry in found[::2]]


def words(tokens: int) -> dict[str, Any]:
    """A vocabulary of so many words."""
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "▁the", "▁cat", "▁sat", "▁mat"]
    names += [f"▁w{i}" for i in range(tokens - len(names))]
    return {
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.tokens": names,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
    }


@pytest.mark.parametrize("ranks", [False, True])
def test_a_server_of_an_encoder(tmp_path: Path, ranks: bool) -> None:
    path = encoder(tmp_path / "encoder.gguf", ranks=ranks, types=1 if ranks else 2, **words(97))
    with LLM(path, serving=True, context=CONTEXT) as served, running(served) as server:
        body: dict[str, Any] = {"query": "the cat", "documents": ["the mat", "cat sat"]}
        ranking = httpx.post(f"{server.url}/v1/rerank", json=body).json()
        assert len(ranking["results"]) == 2
        found = httpx.post(f"{server.url}/v1/embeddings", json={"input": "the cat"})
        chat = {"messages": [{"role": "user", "content": "Hi"}]}
        refused = httpx.post(f"{server.url}/v1/chat/completions", json=chat)
        assert refused.status_code == 400
        if ranks:
            assert "scores texts" in found.json()["error"]["message"]
            scores = served.rank("the cat", body["documents"])
            assert ranking["results"][0]["relevance_score"] == float(scores.max())
        else:
            vector = np.array(found.json()["data"][0]["embedding"], np.float32)
            assert np.array_equal(vector, served.embed("the cat"))


def test_pairs_are_made_as_they_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has the query again: all of them at once would be as many times what was sent."""
    made, most = list[int](), list[int | None]()
    pair = embedding.pair_ids

    def counted(*args: Any, **options: Any) -> array[int]:
        ids = pair(*args, **options)
        made.append(len(ids))
        most.append(options["most"])
        return ids

    monkeypatch.setattr(embedding, "pair_ids", counted)
    path = encoder(tmp_path / "encoder.gguf", ranks=True, types=1, **words(97))
    with LLM(path, serving=True, context=CONTEXT) as served, running(served) as server:
        scored, rank = list[tuple[int, int]](), served.rank

        def watched(query: str, texts: Any) -> Any:
            scored.append((len(made), sum(map(len, texts))))
            return rank(query, texts)

        monkeypatch.setattr(served, "rank", watched)
        url = f"{server.url}/v1/rerank"
        documents = ["the cat sat"] * (3 * CONTEXT // 10)
        found = httpx.post(url, json={"query": "the mat", "documents": documents}).json()
        assert len(found["results"]) == len(documents)
        assert len(scored) >= 3
        assert scored[0][0] < len(documents)
        assert all(tokens <= served.engine.token_budget for _, tokens in scored)
        made.clear()
        asked = {"query": "cat " * 10 * CONTEXT, "documents": documents}
        refused = httpx.post(url, json=asked)
        assert refused.status_code == 400
        assert "too large" in refused.json()["error"]["message"]
        assert len(made) == 1
        assert set(most) == {CONTEXT + 1}
