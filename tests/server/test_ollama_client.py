"""The ``ollama`` package, unmodified, against a running server."""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import httpx
import pytest

from strata import LLM, SamplingParams, __version__
from strata.server.ollama.models import OLLAMA_VERSION
from support.running import NAMES, Running

ollama = pytest.importorskip("ollama", reason="the package ollama is not installed")

MODEL = NAMES[0]
MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]
GREEDY: Any = {"temperature": 0, "num_predict": 12}


@pytest.fixture
def client(server: Running) -> Any:
    return ollama.Client(host=server.url)


def test_chat(client: Any, llm: LLM) -> None:
    expected = llm.chat(MESSAGES, SamplingParams(max_tokens=12))
    whole = client.chat(MODEL, MESSAGES, options=GREEDY)
    assert whole.message.content == expected.text
    assert (whole.done, whole.done_reason) == (True, expected.finish_reason)
    assert whole.prompt_eval_count == expected.prompt_tokens
    assert whole.eval_count == len(expected.token_ids)
    assert whole.total_duration >= whole.eval_duration > 0
    assert whole.prompt_eval_duration > 0
    parts = list(client.chat(MODEL, MESSAGES, options=GREEDY, stream=True))
    assert "".join(part.message.content for part in parts) == expected.text
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count


def test_generate(client: Any, llm: LLM) -> None:
    system = {"role": "system", "content": "Be brief."}
    user = {"role": "user", "content": "Hi!"}
    expected = llm.chat([system, user], SamplingParams(max_tokens=12))
    whole = client.generate(MODEL, "Hi!", system="Be brief.", options=GREEDY)
    assert whole.response == expected.text
    parts = list(client.generate(MODEL, "Hi!", system="Be brief.", options=GREEDY, stream=True))
    assert "".join(part.response for part in parts) == expected.text
    raw = client.generate(MODEL, "The sky is", raw=True, options=GREEDY)
    continued = llm.generate("The sky is", SamplingParams(max_tokens=12))
    assert raw.response == continued.text
    assert raw.context == [*llm.tokenize("The sky is", add_special=True), *continued.token_ids]
    further = client.generate(MODEL, " Then", raw=True, context=raw.context, options=GREEDY)
    ids = [*raw.context, *llm.tokenize(" Then")]
    assert further.response == llm.generate(ids, SamplingParams(max_tokens=12)).text
    assert client.generate(MODEL, "").done_reason == "load"


@pytest.mark.parametrize("stream", [False, True])
def test_formats(client: Any, stream: bool) -> None:
    schema: Any = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }
    answer = client.chat(MODEL, MESSAGES, format=schema, options={"seed": 1}, stream=stream)
    text = "".join(part.message.content for part in (answer if stream else [answer]))
    assert json.loads(text)["colour"] in ("red", "blue")
    assert client.generate(MODEL, "x", format="json", options=GREEDY).response.startswith("{")


def test_options_reach_the_sampler(client: Any, llm: LLM) -> None:
    answer = client.chat(
        MODEL,
        MESSAGES,
        options={"seed": 4, "top_k": 20, "top_p": 0.8, "num_predict": 10, "stop": ["\n"]},
        logprobs=True,
        top_logprobs=1,
    )
    params = SamplingParams(
        temperature=0.8, seed=4, top_k=20, top_p=0.8, max_tokens=10, stop="\n", logprobs=1
    )
    expected = llm.chat(MESSAGES, params)
    assert answer.message.content == expected.text
    assert expected.logprobs is not None
    assert answer.logprobs[0].logprob == expected.logprobs[0].logprob


def test_tools_and_their_results_are_told(client: Any) -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    answer = client.chat(
        MODEL,
        [
            *MESSAGES,
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": "2", "tool_name": "add"},
        ],
        tools=[{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
        options=GREEDY,
    )
    assert answer.done


def test_models(client: Any, server: Running) -> None:
    assert [model.model for model in client.list().models] == list(NAMES)
    (model,) = client.ps().models
    assert model.model == NAMES[0]
    assert model.context_length == 1024
    shown = client.show(MODEL + ":latest")
    assert shown.details.family == "llama"
    assert shown.details.quantization_level == "Q4_1"
    assert shown.modelinfo["llama.block_count"] == 30
    assert "im_start" in shown.template
    assert shown.capabilities == ["completion", "tools"]
    with urllib.request.urlopen(f"{server.url}/api/version") as reply:
        assert json.load(reply) == {"version": OLLAMA_VERSION, "strata": __version__}


def test_limits_below_one_are_none(client: Any, llm: LLM) -> None:
    expected = llm.chat(MESSAGES, SamplingParams(stop="."))
    for limit in (0, -1, -2):
        options = {"temperature": 0, "num_predict": limit, "top_k": -1, "stop": ["."]}
        assert client.chat(MODEL, MESSAGES, options=options).message.content == expected.text


@pytest.mark.parametrize("path", ["/api/chat", "/api/generate"])
def test_a_larger_context_than_the_servers_is_warned_of(server: Running, path: str) -> None:
    """Ollama, too, answers with the context that there is, and says so."""
    body: dict[str, Any] = {"model": MODEL, "stream": False, "messages": MESSAGES, "prompt": "Hi"}
    for size in (1024, 1_000_000):
        options = {**GREEDY, "num_predict": 2, "num_ctx": size}
        answer = httpx.post(server.url + path, json={**body, "options": options}, timeout=60)
        assert answer.status_code == 200
        told = answer.headers.get("x-strata-warning", "")
        assert ("num_ctx is 1000000, but the context is 1024" in told) == (size > 1024)


@pytest.mark.parametrize("path", ["/", "/health", "/api/tags", "/api/version"])
def test_clients_ask_whether_anybody_is_there(server: Running, path: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(server.url + path, method="HEAD")) as reply:
        assert (reply.status, reply.read()) == (200, b"")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "options", "status"),
    [("nothing", {}, 404), (MODEL, {"temperature": -1}, 400), (MODEL, {"num_predict": "x"}, 400)],
)
def test_errors_are_those_of_the_client(
    client: Any, model: str, options: Any, status: int, stream: bool
) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        list(client.chat(model, MESSAGES, options=options, stream=stream))
    assert caught.value.status_code == status
    assert caught.value.error
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate(MODEL, "a", suffix="b")
    assert caught.value.status_code == 400
    assert "no tokens for filling in" in caught.value.error
    with pytest.raises(ollama.ResponseError) as caught:
        client.generate(MODEL, "a", images=[b"b"])
    assert "reads text only" in caught.value.error
