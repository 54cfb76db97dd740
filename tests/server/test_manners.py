"""What clients of each protocol take for granted: names, origins, headers, loading, last turns."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from strata import LLM, SamplingParams
from strata.errors import StrataError
from strata.server.listening import bind
from strata.server.settings import Settings
from strata.server.waiting import Waiting
from support.running import NAMES, Running

MODEL = NAMES[0]
BEGUN = [
    {"role": "user", "content": "Name three colours."},
    {"role": "assistant", "content": "The three colours are red,"},
]


@pytest.fixture
def http_client(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *((name, 200) for name in ("localhost", "127.0.0.2:80", "0.0.0.0", "[::1]:8000")),
        *((name, 200) for name in ("host.docker.internal", "box.local", "app.localhost:3000")),
        *((name, 200) for name in ("192.168.1.7", "10.0.0.2", socket.gethostname())),
        *((name, 403) for name in ("evil.example", "localhost.evil.example", "8.8.8.8", "local")),
    ],
)
def test_names_of_this_machine(http_client: httpx.Client, host: str, status: int) -> None:
    assert http_client.get("/health", headers={"host": host}).status_code == status


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        *((f"http://{name}", 200) for name in ("localhost:3000", "127.0.0.1", "[::1]:80")),
        *((origin, 200) for origin in ("https://app.localhost", "app://obsidian.md", "file://")),
        *((f"{kind}://abc", 200) for kind in ("tauri", "vscode-webview", "chrome-extension")),
        *((f"http://{name}", 403) for name in ("evil.example", "localhost.evil.example")),
        ("null", 403),
    ],
)
def test_origins_of_this_machine(http_client: httpx.Client, origin: str, status: int) -> None:
    body = {"content": "a"}
    answer = http_client.post("/tokenize", json=body, headers={"origin": origin})
    assert answer.status_code == status
    allowed = answer.headers.get("access-control-allow-origin")
    assert allowed == (origin if status == 200 else None)


def test_origins_with_a_star() -> None:
    settings = Settings(cors_origins=("http://localhost:*", "https://*.example.org"))
    for origin in ("http://localhost:81", "https://a.example.org"):
        assert settings.origins.fullmatch(origin)
    for origin in ("https://example.org.evil", "https://evil/.example.org", "https://example.org"):
        assert not settings.origins.fullmatch(origin)


def test_every_answer_has_an_id(http_client: httpx.Client) -> None:
    first, second = (http_client.get("/v1/models").headers["x-request-id"] for _ in range(2))
    assert first != second
    given = http_client.get("/health", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == "mine-1"
    wrong = http_client.post("/v1/messages", json={})
    assert wrong.headers["request-id"] == wrong.headers["x-request-id"]


def test_anthropics_models(server: Running) -> None:
    anthropic = pytest.importorskip("anthropic", reason="the package anthropic is not installed")
    with anthropic.Anthropic(base_url=server.url, api_key="none") as client:
        assert [model.id for model in client.models.list()] == list(NAMES)
        assert client.models.retrieve(MODEL).type == "model"


def test_documents_are_read(http_client: httpx.Client) -> None:
    def tokens(*blocks: Any) -> int:
        messages = [{"role": "user", "content": [*blocks, {"type": "text", "text": "Why?"}]}]
        answer = http_client.post("/v1/messages/count_tokens", json={"messages": messages})
        return int(answer.json()["input_tokens"]) if answer.status_code == 200 else 0

    text = {"type": "text", "media_type": "text/plain", "data": "The sky is blue."}
    document = {"type": "document", "title": "Sky", "source": text}
    result = {
        "type": "search_result",
        "source": "https://example.org",
        "title": "Sky",
        "content": [{"type": "text", "text": "The sky is blue."}],
    }
    plain = tokens()
    assert tokens(document) > plain + 8
    assert tokens(result) > tokens(document)
    assert tokens({"type": "document", "source": {"type": "base64", "data": "AAAA"}}) == 0


def test_a_last_message_of_the_assistant_is_continued(http_client: httpx.Client, llm: LLM) -> None:
    text = llm.tokenizer.apply_chat_template(
        BEGUN, add_generation_prompt=False, continue_final_message=True
    )
    expected = llm.generate(text, SamplingParams(max_tokens=8)).text
    chat = {"messages": BEGUN, "max_tokens": 8, "temperature": 0}
    found = http_client.post("/v1/chat/completions", json=chat).json()
    assert found["choices"][0]["message"]["content"] == expected
    options = {"temperature": 0, "num_predict": 8}
    body = {"model": MODEL, "messages": BEGUN, "stream": False, "options": options}
    assert http_client.post("/api/chat", json=body).json()["message"]["content"] == expected
    said = {"add_generation_prompt": True}
    anew = http_client.post("/v1/chat/completions", json={**chat, **said}).json()
    assert anew["usage"]["prompt_tokens"] > found["usage"]["prompt_tokens"]
    both = {**said, "continue_final_message": True}
    assert http_client.post("/v1/chat/completions", json={**chat, **both}).status_code == 400


def test_ollama_leaves_the_oldest_turns_out(http_client: httpx.Client) -> None:
    turns = [
        {"role": role, "content": "word " * 60} for _ in range(20) for role in ("user", "assistant")
    ]
    body = {
        "model": MODEL,
        "messages": [*turns, {"role": "user", "content": "Name a colour."}],
        "stream": False,
        "options": {"num_predict": 4},
    }
    found = http_client.post("/api/chat", json=body)
    assert "messages are left out, the oldest" in found.headers["x-strata-warning"]
    assert 500 < found.json()["prompt_eval_count"] <= 1020
    assert http_client.post("/api/chat", json={**body, "truncate": False}).status_code == 400
    asked = {"model": MODEL, "keep_alive": 0}
    assert http_client.post("/api/generate", json=asked).json()["done_reason"] == "unload"


@pytest.mark.parametrize("as_tool", [False, True])
def test_schemas_that_others_accept(http_client: httpx.Client, as_tool: bool) -> None:
    schema = {
        "type": "object",
        "properties": {
            "ids": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 2, "uniqueItems": True}
        },
        "required": ["ids"],
        "propertyNames": {"pattern": "^[a-z]+$"},
    }
    body: dict[str, Any] = {"messages": BEGUN[:1], "temperature": 0, "max_tokens": 60}
    if as_tool:
        function = {"name": "f", "parameters": schema}
        body |= {"tools": [{"type": "function", "function": function}], "tool_choice": "any"}
    else:
        form = {"name": "f", "schema": schema}
        body |= {"response_format": {"type": "json_schema", "json_schema": form}}
    answer = http_client.post("/v1/chat/completions", json=body)
    message = answer.json()["choices"][0]["message"]
    written = message["tool_calls"][0]["function"]["arguments"] if as_tool else message["content"]
    assert set(json.loads(written)["ids"]) <= {1, 2}
    told = answer.headers["x-strata-warning"]
    assert told.endswith("parts of its schema: properties.ids.uniqueItems, propertyNames")


@pytest.mark.parametrize(
    "form",
    [
        {"guided_choice": ["red", "blue"]},
        {"structured_outputs": {"choice": ["red", "blue"]}},
        {"guided_regex": "red|blue"},
        {"structured_outputs": {"regex": "red|blue"}},
        {"guided_grammar": 'root ::= "red" | "blue"'},
    ],
)
def test_vllms_forms_of_an_answer(http_client: httpx.Client, form: dict[str, Any]) -> None:
    body = {"messages": BEGUN[:1], "temperature": 0, "max_tokens": 20, **form}
    found = http_client.post("/v1/chat/completions", json=body).json()
    assert found["choices"][0]["message"]["content"] in ("red", "blue")
    two = {**body, "guided_json": {"type": "object"}}
    assert http_client.post("/v1/chat/completions", json=two).status_code == 400


def test_scores_of_a_prompt_are_those_in_process(http_client: httpx.Client, llm: LLM) -> None:
    """What lm-evaluation-harness asks for: a context and its continuation, echoed with scores."""
    ids = llm.tokenize("The capital of France is Paris", add_special=True)
    with llm.driver.alone() as engine:
        expected = engine.logprobs(ids, 0).tolist()
    body = {"prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0}
    found = http_client.post("/v1/completions", json=body).json()["choices"][0]["logprobs"]
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:-1] == expected
    assert len(found["tokens"]) == len(ids) + 1
    for logprob, top in zip(expected, found["top_logprobs"][1:-1], strict=True):
        assert max(top.values()) >= logprob
    alone = http_client.post("/v1/completions", json={**body, "max_tokens": 0}).json()
    assert alone["choices"][0]["logprobs"]["token_logprobs"] == [None, *expected]
    assert alone["usage"]["completion_tokens"] == 0
    scored = {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 2}
    rows = http_client.post("/v1/completions", json=scored).json()["choices"][0]["prompt_logprobs"]
    assert rows[0] is None
    pairs = zip(ids[1:], rows[1:], strict=True)
    assert [row[str(id)]["logprob"] for id, row in pairs] == expected


def test_the_best_of_several(http_client: httpx.Client) -> None:
    body = {"prompt": "Once", "max_tokens": 6, "seed": 3, "temperature": 1.0, "logprobs": 0}
    all_of_them = http_client.post("/v1/completions", json={**body, "n": 4}).json()["choices"]
    best = http_client.post("/v1/completions", json={**body, "best_of": 4}).json()["choices"]

    def likely(choice: dict[str, Any]) -> float:
        logprobs = choice["logprobs"]["token_logprobs"]
        return float(sum(logprobs) / len(logprobs))

    assert [best[0]["text"]] == [max(all_of_them, key=likely)["text"]]


def test_end_tokens_are_kept_off(http_client: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Say: ok"}], "temperature": 0}
    long = http_client.post(
        "/v1/chat/completions", json={**body, "min_tokens": 30, "max_tokens": 40}
    )
    assert long.json()["usage"]["completion_tokens"] >= 30
    first = http_client.post("/completion", json={"prompt": "Once", "n_predict": 1}).json()
    token = http_client.post("/tokenize", json={"content": first["content"]}).json()["tokens"]
    ends = {"prompt": "Once", "stop_token_ids": token, "max_tokens": 5, "temperature": 0}
    ended = http_client.post("/v1/completions", json=ends).json()
    assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("", "stop")


def test_events_are_whole_lines_to_who_splits_by_unicode(http_client: httpx.Client) -> None:
    text = "a\x85b\u2028c\u2029d\x0be\x1cf"
    body = {"model": MODEL, "prompt": text, "echo": True, "max_tokens": 1, "stream": True}
    with http_client.stream("POST", "/v1/completions", json=body) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
    said = "".join(c["text"] for line in lines for c in json.loads(line)["choices"])
    assert said.startswith(text)
    assert (
        len(http_client.post("/v1/completions", json={**body, "stream": False}).text.splitlines())
        == 1
    )


@pytest.mark.parametrize(
    ("path", "stops"),
    [
        ("/v1/completions", {"stop": ""}),
        ("/v1/chat/completions", {"stop": ["", ""]}),
        ("/v1/messages", {"stop_sequences": [""]}),
        ("/api/generate", {"options": {"stop": [""]}, "stream": False}),
        ("/completion", {"stop": [""]}),
    ],
)
def test_empty_stop_strings_are_none(
    http_client: httpx.Client, path: str, stops: dict[str, Any]
) -> None:
    body = {"model": MODEL, "prompt": "Once", "max_tokens": 3, **stops}
    if path.endswith(("messages", "chat/completions")):
        body["messages"] = BEGUN[:1]
        del body["prompt"]
    assert http_client.post(path, json=body).status_code == 200


def test_functions_as_they_were(http_client: httpx.Client) -> None:
    function = {"name": "weather", "parameters": {"type": "object", "properties": {}}}
    body = {
        "messages": BEGUN[:1],
        "functions": [function],
        "function_call": {"name": "weather"},
        "temperature": 0,
    }
    (choice,) = http_client.post("/v1/chat/completions", json=body).json()["choices"]
    assert choice["message"]["function_call"] == {"name": "weather", "arguments": "{}"}
    assert choice["finish_reason"] == "function_call"


def test_who_asks_while_a_model_is_loaded_is_told_how_far_it_is() -> None:
    settings = Settings(port=0)
    with bind(settings) as listening:
        host, port = listening.sockets[0].getsockname()
        with pytest.raises(StrataError, match="in use; choose another with --port"):
            bind(Settings(port=port))
        with Waiting(listening) as waiting:
            waiting.progress("loading", 30, 120)
            for method, path in (("GET", "/health"), ("POST", "/v1/messages"), ("HEAD", "/")):
                connection = http.client.HTTPConnection(host, port, timeout=10)
                connection.request(method, path, body=None if method == "GET" else b"{}" * 2000)
                answer = connection.getresponse()
                assert (answer.status, answer.getheader("retry-after")) == (503, "1")
                data = answer.read()
                if method != "HEAD":
                    found = json.loads(data)
                    assert found["progress"] == {"step": "loading", "done": 30, "total": 120}
                    assert "loading (25%)" in found["error"]["message"]
                connection.close()
        waiting.end()
