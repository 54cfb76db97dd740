"""Health, tokens, figures, and the live picture."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strata import LLM
from strata.formats import open_model
from support.running import NAMES, Running, wait_for

httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is missing")

LIMITS = ("budget_bytes", "peak_bytes")
TEXTS = ["Hello <|im_start|>", "", "naïve 日本語 🦙", " two  spaces\n"]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("parse_special", [True, False])
def test_tokens_there_and_back(server: Running, llm: LLM, text: str, parse_special: bool) -> None:
    body = {"content": text, "parse_special": parse_special}
    answer = httpx.post(f"{server.url}/tokenize", json=body).json()
    assert answer["tokens"] == llm.tokenize(text, parse_special=parse_special)
    assert answer["count"] == len(answer["tokens"])
    back = httpx.post(f"{server.url}/detokenize", json={"tokens": answer["tokens"]}).json()
    assert back == {"content": text}


def test_tokens_that_there_are_not(server: Running, llm: LLM) -> None:
    for token in (llm.model.vocab_size, 2**31, -1):
        answer = httpx.post(f"{server.url}/detokenize", json={"tokens": [token]})
        assert answer.status_code == 400


def figures(server: Running) -> dict[tuple[str, ...], float]:
    text = httpx.get(f"{server.url}/metrics").text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_happens(server: Running) -> None:
    before = figures(server)
    ask: dict[str, Any] = {"model": NAMES[0], "prompt": "The sky", "max_tokens": 5, "n": 2}
    usage = httpx.post(f"{server.url}/v1/completions", json=ask).json()["usage"]
    httpx.post(f"{server.url}/v1/completions", json={**ask, "model": "nothing"})
    httpx.get(f"{server.url}/a/path/that/nobody/has")
    server.wait_until_free()
    after = figures(server)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0)

    assert grown("strata_requests_total", "/v1/completions", "200") == 1
    assert grown("strata_requests_total", "/v1/completions", "404") == 1
    assert grown("strata_requests_total", "other", "404") == 1
    assert grown("strata_time_to_first_token_seconds_count") == 2
    assert grown("strata_output_tokens_total") == usage["completion_tokens"]
    assert grown("strata_prompt_tokens_total") == 2 * usage["prompt_tokens"]
    assert grown("strata_time_per_output_token_seconds_count") == usage["completion_tokens"] - 2
    sweeps = grown("strata_sweeps_total")
    assert grown("strata_tokens_per_sweep_count") == sweeps > 0
    assert grown("strata_tokens_per_sweep_sum") == grown("strata_computed_tokens_total")
    assert after["strata_requests_running",] == after["strata_requests_waiting",] == 0
    assert after["strata_kv_blocks_used",] == 0
    prompts = grown("strata_prefix_hit_tokens_total") + grown("strata_prefix_miss_tokens_total")
    assert prompts == 2 * usage["prompt_tokens"]
    # The last token of an answer is not computed; of guesses those that were right count.
    computed = grown("strata_prefix_miss_tokens_total") + usage["completion_tokens"] - 2
    assert grown("strata_computed_tokens_total") == computed
    assert after["strata_kv_blocks_free",] == server.service.bridge.status.kv_blocks
    assert after["strata_tier_bytes", "weights", "host"] > 50e6
    assert after["strata_memory_peak_bytes",] > after["strata_tier_bytes", "weights", "host"]


def events(server: Running, count: int) -> list[tuple[str, dict[str, Any]]]:
    found: list[tuple[str, dict[str, Any]]] = []
    kind = ""
    with httpx.stream("GET", f"{server.url}/live", timeout=20) as answer:
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                found.append((kind, json.loads(line[6:])))
                if len(found) == count:
                    break
    return found


def test_the_live_picture(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    (kind, model), (_, idle) = events(server, 2)
    assert kind == "model"
    assert [segment["name"] for segment in model["segments"]][:2] == ["embed", "layer.0"]
    assert len(model["segments"]) == 32
    # The embedding is the head's too, and counts once.
    with open_model(server.service.llm.path) as file:
        stored = sum(tensor.nbytes for tensor in file.tensors.values())
    assert sum(segment["bytes"] for segment in model["segments"]) == stored
    assert idle["requests"] == {"running": 0, "waiting": 0}
    ask: dict[str, Any] = {
        "model": NAMES[0],
        "prompt": "The sky",
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": True,
    }
    with monkeypatch.context() as patch:
        # Without guesses every sweep after the prompt's gives one token.
        patch.setattr(server.service.llm.engine, "drafting", None)
        with httpx.stream("POST", f"{server.url}/v1/completions", json=ask, timeout=20):
            wait_for(lambda: server.service.bridge.status.running == 1)
            pictures = [data for _, data in events(server, 5)[1:]]
        server.wait_until_free()
    assert {picture["requests"]["running"] for picture in pictures} == {1}
    assert pictures[0]["sweep"]["count"] < pictures[-1]["sweep"]["count"]
    assert pictures[-1]["sweep"]["tokens_per_sweep"] == 1
    assert pictures[-1]["actual"]["output_tok_s"] > 0
    host = pictures[-1]["tiers"][0]
    assert host["kv_used_bytes"] > 0
    parts = [size for name, size in host.items() if name not in ("name", *LIMITS) and size]
    assert sum(parts) == server.service.llm.ledger.total
    assert pictures[-1]["roofline"]["flops_per_byte"] > 0


def test_health(server: Running) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}


def test_the_page_of_endpoints_names_every_one(server: Running) -> None:
    answer = httpx.get(f"{server.url}/docs")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    document = httpx.get(f"{server.url}/openapi.json").json()
    for path, operations in document["paths"].items():
        for method in operations:
            assert f"<h3>{method.upper()} <code>{path}</code></h3>" in answer.text
    assert "<code>min_p</code>" in answer.text
    assert "<script" not in answer.text


def test_the_document_names_every_endpoint(server: Running) -> None:
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/models",
        "/v1/models/{id}",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/api/chat",
        "/api/generate",
        "/api/tags",
        "/api/show",
        "/api/ps",
        "/api/version",
        "/v1/chat/completions/input_tokens",
        "/v1/responses",
        "/v1/responses/input_tokens",
        "/v1/responses/{id}",
        "/v1/responses/{id}/input_items",
        "/v1/embeddings",
        "/v1/files",
        "/v1/files/{id}",
        "/v1/files/{id}/content",
        "/v1/batches",
        "/v1/batches/{id}",
        "/v1/batches/{id}/cancel",
        "/v1/rerank",
        "/api/embed",
        "/api/embeddings",
        "/predict",
        "/tools",
        "/completion",
        "/infill",
        "/apply-template",
        "/props",
        "/slots",
        "/lora-adapters",
        "/tokenize",
        "/detokenize",
        "/health",
        "/metrics",
        "/memory",
        "/kv",
        "/kv/lookup",
        "/kv/pin",
        "/kv/unpin",
        "/kv/compress",
        "/kv/clear",
    }
    for operations in document["paths"].values():
        for operation in operations.values():
            assert {"200", "400", "401", "413", "429", "503"} <= set(operation["responses"])
            assert "422" not in operation["responses"]
