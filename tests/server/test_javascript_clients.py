"""Clients in JavaScript, unmodified: ``STRATA_TEST_NODE=.../node_modules`` (npm install openai
@anthropic-ai/sdk ollama ai @ai-sdk/openai-compatible zod) says where they are."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from strata import LLM, SamplingParams
from support.running import NAMES, Running

pytestmark = pytest.mark.slow

QUESTION = "Name three colours."
Run = Callable[[str], Any]

OPENAI = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" });
const asked = { model, messages, temperature: 0, max_tokens: 12 };
const whole = await client.chat.completions.create(asked);
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...asked, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const response = await client.responses.create({
  model, input: question, temperature: 0, max_output_tokens: 16,
});
let done = null;
const events = await client.responses.create({
  model, input: question, temperature: 0, max_output_tokens: 16, stream: true,
});
for await (const event of events) {
  if (event.type === "response.completed" || event.type === "response.incomplete") {
    done = event.response.output[0].content[0].text;
  }
}
const vectors = await client.embeddings.create({ model, input: ["a", "b"] });
const missing = await client.chat.completions.create({ ...asked, model: "other" }).catch((e) => e);
tell({
  whole: whole.choices[0].message.content,
  streamed,
  response: response.output_text,
  events: done,
  vectors: vectors.data.map((each) => each.embedding.length),
  missing: missing.status,
});
"""

ANTHROPIC = """
import Anthropic from "@anthropic-ai/sdk";
const client = new Anthropic({ baseURL: url, apiKey: "none" });
const asked = { model, messages, max_tokens: 12, temperature: 0 };
const whole = await client.messages.create(asked);
const stream = client.messages.stream(asked);
const final = await stream.finalMessage();
const counted = await client.messages.countTokens({ model, messages });
tell({
  whole: whole.content[0].text,
  streamed: final.content[0].text,
  stop: final.stop_reason,
  counted: counted.input_tokens === whole.usage.input_tokens,
});
"""

OLLAMA = """
import { Ollama } from "ollama";
const client = new Ollama({ host: url });
const asked = { model, messages, options: { temperature: 0, num_predict: 12 } };
const whole = await client.chat(asked);
let streamed = "";
for await (const part of await client.chat({ ...asked, stream: true })) {
  streamed += part.message.content;
}
const vectors = await client.embed({ model, input: ["a", "b"] });
const list = await client.list();
tell({
  whole: whole.message.content,
  streamed,
  vectors: vectors.embeddings.map((each) => each.length),
  listed: list.models.some((each) => each.name.startsWith(model)),
});
"""

AI_SDK = """
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, Output, streamText } from "ai";
import { z } from "zod";
const provider = createOpenAICompatible({
  name: "strata", baseURL: `${url}/v1`, supportsStructuredOutputs: true,
});
const asked = {
  model: provider(model), prompt: question, temperature: 0, maxOutputTokens: 12, maxRetries: 0,
};
const whole = await generateText(asked);
let streamed = "";
for await (const part of streamText(asked).textStream) streamed += part;
const schema = z.object({ name: z.string().max(12), warm: z.boolean() });
const made = await generateText({
  ...asked, maxOutputTokens: 80, output: Output.object({ schema }),
});
tell({ whole: whole.text, streamed, object: made.output });
"""


@pytest.fixture
def run(server: Running, tmp_path: Path) -> Run:
    """What a script tells, whose packages are those that are installed."""
    modules = os.environ.get("STRATA_TEST_NODE")
    node = shutil.which("node")
    if not modules or node is None:
        pytest.skip("STRATA_TEST_NODE does not say where packages are, or there is no node")
    (tmp_path / "node_modules").symlink_to(Path(modules).resolve())
    said = {
        "url": server.url,
        "model": NAMES[0],
        "question": QUESTION,
        "messages": [{"role": "user", "content": QUESTION}],
    }
    head = f"const {{ url, model, question, messages }} = {json.dumps(said)};\n"
    head += "const tell = (found) => console.log(JSON.stringify(found));\n"

    def script(text: str) -> Any:
        path = tmp_path / "script.mjs"
        path.write_text(head + text)
        done = subprocess.run(
            [node, str(path)], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return script


@pytest.fixture
def expected(llm: LLM) -> Callable[[int], str]:
    def answer(tokens: int) -> str:
        messages: Any = [{"role": "user", "content": QUESTION}]
        return llm.chat(messages, SamplingParams(max_tokens=tokens)).text

    return answer


def test_openai(run: Run, expected: Callable[[int], str]) -> None:
    found = run(OPENAI)
    assert found["whole"] == found["streamed"] == expected(12)
    assert found["response"] == found["events"] == expected(16)
    assert found["vectors"] == [576, 576]
    assert found["missing"] == 404


def test_anthropic(run: Run, expected: Callable[[int], str]) -> None:
    found = run(ANTHROPIC)
    assert found["whole"] == found["streamed"] == expected(12)
    assert found["stop"] == "max_tokens"
    assert found["counted"]


def test_ollama(run: Run, expected: Callable[[int], str]) -> None:
    found = run(OLLAMA)
    assert found["whole"] == found["streamed"] == expected(12)
    assert found["vectors"] == [576, 576]
    assert found["listed"]


def test_the_ai_sdk(run: Run, expected: Callable[[int], str]) -> None:
    found = run(AI_SDK)
    assert found["whole"] == found["streamed"] == expected(12)
    assert set(found["object"]) == {"name", "warm"}
    assert isinstance(found["object"]["warm"], bool)
