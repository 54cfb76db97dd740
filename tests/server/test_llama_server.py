"""llama-server's own endpoints, with its field names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from strata import LLM, SamplingParams
from strata.server.errors import ApiError
from strata.server.preset import Preset
from strata.server.service import Service
from strata.server.settings import Settings
from support.running import Running

PROMPT = "The capital of France is"
GREEDY: dict[str, Any] = {"temperature": 0, "n_predict": 8}


@pytest.fixture
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


def test_a_completion(http: httpx.Client, llm: LLM) -> None:
    expected = llm.generate(PROMPT, SamplingParams(max_tokens=8))
    for path in ("/completion", "/completions"):
        found = http.post(path, json={"prompt": PROMPT, **GREEDY, "return_tokens": True}).json()
        assert found["content"] == expected.text
        assert found["tokens"] == list(expected.token_ids)
        assert (found["stop"], found["stop_type"], found["truncated"]) == (True, "limit", False)
        assert found["timings"]["predicted_n"] == found["tokens_predicted"] == 8
        assert found["timings"]["prompt_n"] + found["timings"]["cache_n"] == expected.prompt_tokens
        assert found["generation_settings"]["n_predict"] == 8
        assert found["has_new_line"] == ("\n" in expected.text)


def test_the_rate_of_tokens_is_that_of_steps(http: httpx.Client) -> None:
    """The first token comes with the prompt: no step of its own."""
    body = {"prompt": PROMPT, "temperature": 0, "ignore_eos": True}
    one = http.post("/completion", json={**body, "n_predict": 1}).json()["timings"]
    assert (one["predicted_per_second"], one["predicted_per_token_ms"]) == (0, 0)
    many = http.post("/completion", json={**body, "n_predict": 5}).json()["timings"]
    assert many["predicted_per_second"] == pytest.approx(4e3 / many["predicted_ms"])
    assert many["predicted_per_token_ms"] == pytest.approx(many["predicted_ms"] / 4)


def test_an_answer_that_tells_its_prompt(http: httpx.Client, llm: LLM) -> None:
    body: Any = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    prompt = llm.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True)
    told = http.post("/v1/chat/completions", json={**body, "verbose": True}).json()
    assert told["__verbose"]["prompt"] == prompt
    assert told["__verbose"]["tokens_evaluated"] == told["usage"]["prompt_tokens"]
    assert "__verbose" not in http.post("/v1/chat/completions", json=body).json()


def test_every_answer_tells_its_prompt_where_the_server_is_verbose(llm: LLM) -> None:
    from starlette.testclient import TestClient

    service = Service(
        llm, ["smollm2"], Settings(verbose=True, without=("metrics", "slots", "page"))
    )
    client = TestClient(service.app(), base_url="http://localhost")
    for path in ("/metrics", "/slots"):
        answer = client.get(path)
        assert answer.status_code == 501
        assert f"--without {path[1:]}" in answer.json()["error"]["message"]
    assert client.get("/").status_code == client.get("/web/main.js").status_code == 404
    props = client.get("/props").json()
    assert (props["endpoint_metrics"], props["endpoint_slots"]) == (False, False)
    assert service.close()


def streamed(http: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with http.stream("POST", path, json={**body, "stream": True}) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if "data: {" in line]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("path", ["/completion", "/v1/completions", "/v1/chat/completions"])
def test_how_far_a_prompt_has_come(http: httpx.Client, path: str) -> None:
    text = f"Count {path} one by one. " * 30
    asked = (
        {"messages": [{"role": "user", "content": text}]} if "chat" in path else {"prompt": text}
    )
    body = {**asked, "max_tokens": 2, "temperature": 0, "timings_per_token": True}
    for known in (False, True):
        chunks = streamed(http, path, {**body, "return_progress": True})
        told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
        first, last = told[0], told[-1]
        assert first["processed"] == first["cache"] == last["cache"]
        assert (first["cache"] > 0) is known
        done = [each["processed"] for each in told]
        assert done == sorted(set(done))
        assert done[-1] == last["total"] > 100
        timed = [chunk["timings"] for chunk in chunks if "prompt_progress" in chunk]
        assert timed[0]["prompt_n"] == timed[0]["prompt_ms"] == timed[0]["predicted_n"] == 0
        assert timed[-1]["prompt_n"] == last["total"] - last["cache"]
        assert timed[-1]["prompt_ms"] > 0
        # After it come the tokens, each with its own.
        after = chunks[
            chunks.index(next(c for c in reversed(chunks) if "prompt_progress" in c)) + 1 :
        ]
        assert after
        assert any(chunk["timings"]["predicted_n"] for chunk in after if "timings" in chunk)
    assert not any("prompt_progress" in chunk for chunk in streamed(http, path, body))


def test_how_far_the_prompt_of_a_response_has_come(http: httpx.Client) -> None:
    body = {"input": "Say it again. " * 20, "max_output_tokens": 2, "temperature": 0}
    events = streamed(
        http, "/v1/responses", {**body, "return_progress": True, "timings_per_token": True}
    )
    told = [event for event in events if "prompt_progress" in event]
    assert {event["type"] for event in told} == {"response.in_progress"}
    assert told[-1]["prompt_progress"]["processed"] == told[-1]["prompt_progress"]["total"]
    timed = [event["type"] for event in events if "timings" in event]
    assert "response.output_text.delta" in timed
    assert timed[-1] in ("response.completed", "response.incomplete")


def test_probabilities_of_what_tokens_are_drawn_from(http: httpx.Client) -> None:
    body = {"prompt": PROMPT, "n_predict": 3, "temperature": 1.5, "top_k": 4, "top_p": 1, "seed": 1}
    asked = {**body, "min_p": 0, "n_probs": 10, "post_sampling_probs": True}
    found = http.post("/completion", json=asked).json()
    assert found["generation_settings"]["post_sampling_probs"] is True
    for token in found["completion_probabilities"]:
        each = {top["id"]: top["prob"] for top in token["top_probs"]}
        assert len(each) == 4
        assert sum(each.values()) == pytest.approx(1, abs=1e-5)
        assert each[token["id"]] == token["prob"] > 0
    assert http.post("/completion", json=body).json()["content"] == found["content"]


def test_the_first_chunk_has_a_role_and_no_text(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    first = streamed(http, "/v1/chat/completions", body)[0]["choices"][0]
    assert first["delta"] == {"role": "assistant", "content": None}


def test_several_requests_in_one_body_as_vertex_ai_sends_them(http: httpx.Client) -> None:
    chat = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3, "temperature": 0}
    completion = {"prompt": PROMPT, **GREEDY}
    instances = [
        {"@requestFormat": "chatCompletions", **chat, "stream": True},
        {"@requestFormat": "/completion", **completion},
        {"@requestFormat": "applyTemplate", "messages": chat["messages"]},
        {"@requestFormat": "chatCompletions", "messages": []},
        {"@requestFormat": "predict", "instances": []},
        {},
    ]
    found = http.post("/predict", json={"instances": instances, "parameters": {"a": 1}})
    assert found.status_code == 200
    assert "'parameters'" in found.headers["x-strata-warning"]
    first, second, third, *wrong = found.json()["predictions"]
    expected = http.post("/v1/chat/completions", json=chat).json()
    assert first["choices"] == expected["choices"]
    assert second["content"] == http.post("/completion", json=completion).json()["content"]
    assert third == http.post("/apply-template", json={"messages": chat["messages"]}).json()
    assert [list(each) for each in wrong] == [["error"]] * 3
    assert "one of apiChat, apiEmbed," in wrong[2]["error"]["message"]
    assert http.post("/predict", json={"instances": [{}] * 129}).status_code == 400


def test_what_several_requests_take_is_counted_together(llm: LLM) -> None:
    from starlette.testclient import TestClient

    service = Service(llm, ["smollm2"], Settings(requests_bytes=400_000))
    with TestClient(service.app(), base_url="http://localhost") as client:
        short = {"@requestFormat": "/completion", "prompt": "a", "n_predict": 0}
        answer = client.post("/predict", json={"instances": [short] * 64})
        assert answer.status_code == 200
        told = answer.json()["predictions"]
        wrong = [each["error"]["message"] for each in told if "error" in each]
        assert 0 < len(wrong) < len(told)
        assert all("the answers to all instances are large" in message for message in wrong)
        assert service.admission.held == 0
        # This one would never be served beside the body that it came in.
        alone = {"@requestFormat": "applyTemplate", "messages": [{"role": "user", "content": "a"}]}
        alone["messages"][0]["content"] = "a" * 40_000
        answer = client.post("/predict", json={"instances": [alone]})
        assert answer.status_code == 413
        assert "beside the whole request" in answer.json()["error"]["message"]
        assert client.post("/apply-template", json=alone).status_code == 200
    assert service.close()


def test_only_one_message_is_continued(http: httpx.Client) -> None:
    said = {"role": "assistant", "content": "Yes"}
    body: Any = {"messages": [{"role": "user", "content": "Hi"}, said, said], "max_tokens": 1}
    refused = http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400
    assert "the last two messages are the assistant's" in refused.json()["error"]["message"]
    body["continue_final_message"] = False
    assert http.post("/v1/chat/completions", json=body).status_code == 200


def test_names_of_headers_are_written_as_usual(http: httpx.Client) -> None:
    names = {name for name, _ in http.get("/metrics").headers.raw}
    assert {b"Process-Start-Time-Unix", b"Content-Type", b"X-Request-Id"} <= names


def test_an_alias_for_every_name(llm: LLM) -> None:
    service = Service(llm, ["smollm2", "*"], Settings())
    assert service.names == ("smollm2",)
    service.check_model("gpt-4o")
    with pytest.raises(ApiError, match="there is no model 'gpt-4o' here"):
        Service(llm, ["smollm2"], Settings()).check_model("gpt-4o")


def test_whether_models_think_is_the_servers_where_requests_do_not_say_it(
    http: httpx.Client, server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    render = server.service.chat_text

    async def chat_text(messages: Any, **options: Any) -> str:
        seen.append(options["variables"].get("enable_thinking"))
        return await render(messages, **options)

    monkeypatch.setattr(server.service, "chat_text", chat_text)
    monkeypatch.setattr(server.service, "preset", Preset(reasoning=False))
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
    http.post("/v1/chat/completions", json=body).raise_for_status()
    http.post("/v1/messages", json=body).raise_for_status()
    http.post("/api/chat", json={"model": "smollm2", **body}).raise_for_status()
    said = {**body, "reasoning_effort": "high"}
    http.post("/apply-template", json=said).raise_for_status()
    assert seen == [False, False, False, True]


def test_prompts_of_every_kind(http: httpx.Client, llm: LLM) -> None:
    ids = llm.tokenize(PROMPT, add_special=True)
    prompts = [PROMPT, ids, {"prompt_string": PROMPT}]
    found = http.post("/completion", json={"prompt": prompts, **GREEDY}).json()
    assert len(found) == 3
    assert len({answer["content"] for answer in found}) == 1
    mixed = [*ids[:2], llm.tokenizer.decode(ids[2:])]
    one = http.post("/completion", json={"prompt": mixed, **GREEDY}).json()
    assert one["content"] == found[0]["content"]


def test_a_stream_is_the_answer_in_pieces(http: httpx.Client, llm: LLM) -> None:
    wanted = {"prompt": PROMPT, **GREEDY, "n_probs": 2, "stream": True}
    lines = http.post("/completion", json=wanted).text.splitlines()
    parts = [json.loads(line.removeprefix("data: ")) for line in lines if line[:1] == "d"]
    assert [part["stop"] for part in parts] == [False] * 8 + [True]
    expected = llm.generate(PROMPT, SamplingParams(max_tokens=8, logprobs=2))
    assert "".join(part["content"] for part in parts) == expected.text
    assert expected.logprobs is not None
    for part, sample in zip(parts, expected.logprobs, strict=False):
        (probable,) = part["completion_probabilities"]
        assert (probable["id"], probable["logprob"]) == (sample.token, sample.logprob)
        assert [(t["id"], t["logprob"]) for t in probable["top_logprobs"]] == list(sample.top)


def test_fields_that_are_chosen(http: httpx.Client) -> None:
    fields = ["content", "generation_settings/n_predict"]
    found = http.post(
        "/completion", json={"prompt": PROMPT, **GREEDY, "response_fields": fields}
    ).json()
    assert list(found) == fields


@pytest.mark.parametrize("as_text", [False, True])
@pytest.mark.parametrize("as_object", [False, True])
def test_biases(http: httpx.Client, llm: LLM, as_text: bool, as_object: bool) -> None:
    plain = llm.generate(PROMPT, SamplingParams(max_tokens=1))
    who: Any = plain.text if as_text else plain.token_ids[0]
    biases: Any = {str(who): -100} if as_object else [[who, False]]
    body = {"prompt": PROMPT, "temperature": 0, "n_predict": 1, "logit_bias": biases}
    found = http.post("/completion", json={**body, "return_tokens": True}).json()
    assert found["tokens"] != list(plain.token_ids)


@pytest.mark.parametrize("who", ["--5", "\u00b2", "9" * 5000])
def test_a_bias_of_what_looks_like_a_number(http: httpx.Client, who: str) -> None:
    body = {"prompt": PROMPT, "n_predict": 1, "logit_bias": [[who, 1.0]]}
    assert http.post("/completion", json=body).status_code in (200, 400)


@pytest.mark.parametrize("bias", ["1e40", "-1" + "0" * 400])
def test_a_bias_that_makes_no_logit_is_the_clients_error(http: httpx.Client, bias: str) -> None:
    body = f'{{"prompt": "a", "n_predict": 1, "logit_bias": [[5, {bias}]]}}'
    found = http.post("/completion", content=body.encode())
    assert found.status_code == 400
    assert "a bias is at most 1e+30" in found.text


def test_limits_of_tokens(http: httpx.Client, llm: LLM) -> None:
    nothing = http.post("/completion", json={"prompt": PROMPT, "n_predict": 0}).json()
    assert (nothing["content"], nothing["tokens_predicted"]) == ("", 0)
    chat = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 0}
    silent = http.post("/v1/chat/completions", json=chat).json()
    assert silent["usage"]["completion_tokens"] == 0
    assert silent["choices"][0]["message"]["content"] == ""
    # -1: what there is room for, or an end token.
    ids = [5] * (llm.context - 3)
    all_of_it = {"prompt": ids, "n_predict": -1, "ignore_eos": True}
    found = http.post("/completion", json=all_of_it).json()
    assert found["tokens_predicted"] == 3
    assert found["truncated"]


def test_paths_without_v1_and_no_model(http: httpx.Client) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4, "model": None}
    answers = [http.post(f"{path}/chat/completions", json=body).json() for path in ("", "/v1")]
    assert answers[0]["choices"] == answers[1]["choices"]
    assert http.get("/models").json()["data"] == http.get("/v1/models").json()["data"]


def test_a_prompt_that_is_too_long(http: httpx.Client, llm: LLM) -> None:
    messages = [{"role": "user", "content": "word " * 2000}]
    error = http.post("/chat/completions", json={"messages": messages}).json()["error"]
    assert (error["code"], error["type"]) == (400, "exceed_context_size_error")
    assert "exceeds the available context size" in error["message"]
    assert error["n_prompt_tokens"] > error["n_ctx"] == llm.context
    error = http.post("/v1/chat/completions", json={"messages": messages}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["message"].startswith(f"This model's maximum context length is {llm.context} tok")
    error = http.post("/v1/completions", json={"prompt": "word " * 2000}).json()["error"]
    assert (error["param"], error["code"]) == ("prompt", "context_length_exceeded")
    assert "reduce the length of the prompt" in error["message"]
    body = {"messages": messages, "max_tokens": 5}
    error = http.post("/v1/messages", json=body).json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith("prompt is too long: ")


def test_the_oldest_turns_are_left_out_where_that_is_asked_for(http: httpx.Client) -> None:
    turns = [{"role": "user", "content": f"{number} " + "word " * 200} for number in range(8)]
    body = {"messages": turns, "max_tokens": 8}
    found = http.post("/v1/chat/completions", json={**body, "truncation": "auto"})
    assert "messages are left out, the oldest" in found.headers["x-strata-warning"]
    assert 600 < found.json()["usage"]["prompt_tokens"] <= 1016
    assert http.post("/v1/chat/completions", json=body).status_code == 400


def test_tokens_and_templates(http: httpx.Client, llm: LLM) -> None:
    text = "Unicode 媽 and 🤗"
    plain = http.post("/tokenize", json={"content": text}).json()["tokens"]
    assert plain == llm.tokenize(text)
    pieces = http.post("/tokenize", json={"content": text, "with_pieces": True}).json()["tokens"]
    assert [piece["id"] for piece in pieces] == plain
    data = [p if isinstance(p, list) else list(p.encode()) for p in (x["piece"] for x in pieces)]
    assert bytes(byte for piece in data for byte in piece).decode() == text
    assert http.post("/tokenize", json={"content": ""}).json() == {"tokens": [], "count": 0}
    messages = [{"role": "user", "content": "Hi"}]
    prompt = http.post("/apply-template", json={"messages": messages}).json()["prompt"]
    assert prompt == llm.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    options = {"messages": messages, "add_generation_prompt": False}
    assert prompt.startswith(http.post("/apply-template", json=options).json()["prompt"])


def test_what_the_server_is(http: httpx.Client, llm: LLM) -> None:
    props = http.get("/props").json()
    assert props["model_path"] == llm.path.name
    assert props["total_slots"] == len(http.get("/slots").json()) == 4
    assert props["default_generation_settings"]["n_ctx"] == llm.context
    assert props["default_generation_settings"]["params"]["temperature"] == 0
    assert http.get("/lora-adapters").json() == []
    assert http.post("/props", json={}).status_code == 501
    assert http.head("/health").status_code == http.get("/v1/health").status_code == 200
    metrics = http.get("/metrics")
    assert "llamacpp:tokens_predicted_total" in metrics.text
    assert "process-start-time-unix" in metrics.headers
    for name in ("n_tokens_max", "spec_decode_num_drafts_total"):
        assert f"# HELP llamacpp:{name} " in metrics.text
        assert f"# TYPE llamacpp:{name} counter" in metrics.text


def test_filling_in_needs_tokens_for_it(http: httpx.Client) -> None:
    body = {"input_prefix": "def f():\n", "input_suffix": "\n"}
    answer = http.post("/infill", json=body)
    assert answer.status_code == 501
    assert "no tokens for filling in" in answer.json()["error"]["message"]
    assert http.post("/infill", json={"input_prefix": "a"}).status_code == 400


def test_unknown_fields_are_told_of(http: httpx.Client) -> None:
    answer = http.post("/completion", json={"prompt": "a", "n_predict": 1, "n_predct": 5})
    assert answer.status_code == 200
    assert "'n_predct' (did you mean 'n_predict'?)" in answer.headers["x-strata-warning"]
    harmless = {"cache_prompt": True, "id_slot": 1, "typical_p": 1.0, "mirostat": 0, "odd": None}
    answer = http.post("/completion", json={"prompt": "a", "n_predict": 1, **harmless})
    assert "x-strata-warning" not in answer.headers
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "temprature": 1}
    answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code == 400
    assert "'temprature' (did you mean 'temperature'?)" in answer.json()["error"]["message"]
    options = {"num_ctx": 999_999, "num_predict": 1, "temprature": 1, "num_gpu": 5}
    body = {"model": "smollm2", "prompt": "a", "stream": False, "options": options}
    told = http.post("/api/generate", json=body).headers["x-strata-warning"]
    assert "'options.temprature'" in told
    assert "num_ctx is 999999" in told
    assert "num_gpu" not in told
