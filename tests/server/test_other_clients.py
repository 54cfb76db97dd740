"""Clients that stand on those of the protocols, unmodified, each where it is installed."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from strata import LLM, SamplingParams
from support.running import NAMES, Running

pytestmark = pytest.mark.slow

MODEL = NAMES[0]
MESSAGES: Any = [{"role": "user", "content": "Name three colours."}]


class Colour(BaseModel):
    """What is asked for in a form."""

    name: str
    warm: bool


@pytest.fixture
def expected(llm: LLM) -> str:
    return llm.chat(MESSAGES, SamplingParams(max_tokens=12)).text


def package(name: str) -> Any:
    return pytest.importorskip(name, reason=f"the package {name} is not installed")


def test_litellm(server: Running, expected: str) -> None:
    litellm = package("litellm")
    asked: Any = {"messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    for kind, base in (("openai", "/v1"), ("ollama_chat", "")):
        found = litellm.completion(
            model=f"{kind}/{MODEL}", api_base=server.url + base, api_key="none", **asked
        )
        assert found.choices[0].message.content == expected
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(
            model=f"openai/{MODEL}",
            api_base=f"{server.url}/v1",
            api_key="none",
            messages=[{"role": "user", "content": "word " * 3000}],
        )
    vectors = litellm.embedding(
        model=f"openai/{MODEL}", api_base=f"{server.url}/v1", api_key="none", input=["a", "b"]
    )
    assert len(vectors.data) == 2


def test_langchain(server: Running, expected: str) -> None:
    langchain = package("langchain_openai")
    options: Any = {"base_url": f"{server.url}/v1", "api_key": "none", "model": MODEL}
    chat = langchain.ChatOpenAI(**options, temperature=0, max_tokens=12)
    assert chat.invoke("Name three colours.").content == expected
    assert "".join(part.content for part in chat.stream("Name three colours.")) == expected
    form = langchain.ChatOpenAI(**options, temperature=0, max_tokens=60)
    for method in ("json_schema", "function_calling"):
        answer = form.with_structured_output(Colour, method=method).invoke("Name a colour.")
        assert isinstance(answer, Colour)
    vectors = langchain.OpenAIEmbeddings(**options, check_embedding_ctx_length=False)
    assert len(vectors.embed_query("a")) == 576


def test_llama_index(server: Running, expected: str) -> None:
    like = package("llama_index.llms.openai_like")
    messages = package("llama_index.core.llms")
    model = like.OpenAILike(
        model=MODEL,
        api_base=f"{server.url}/v1",
        api_key="none",
        is_chat_model=True,
        temperature=0,
        max_tokens=12,
    )
    asked = [messages.ChatMessage(role="user", content="Name three colours.")]
    assert model.chat(asked).message.content == expected


def test_instructor(server: Running) -> None:
    instructor, openai = package("instructor"), package("openai")
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            found = instructor.from_openai(client, mode=mode).chat.completions.create(
                model=MODEL,
                messages=MESSAGES,
                response_model=Colour,
                max_tokens=60,
                temperature=0,
                max_retries=0,
            )
        assert isinstance(found, Colour)


def test_pydantic_ai(server: Running, expected: str) -> None:
    pydantic_ai = package("pydantic_ai")
    models, providers = (
        package("pydantic_ai.models.openai"),
        package("pydantic_ai.providers.openai"),
    )
    provider = providers.OpenAIProvider(base_url=f"{server.url}/v1", api_key="none")
    settings: Any = {"temperature": 0, "max_tokens": 12}
    for kind in (models.OpenAIChatModel, models.OpenAIResponsesModel):
        agent = pydantic_ai.Agent(kind(MODEL, provider=provider), model_settings=settings)
        assert agent.run_sync("Name three colours.").output == expected
    agent = pydantic_ai.Agent(
        models.OpenAIChatModel(MODEL, provider=provider),
        output_type=Colour,
        model_settings={**settings, "max_tokens": 80},
    )
    assert isinstance(agent.run_sync("Name a colour.").output, Colour)
