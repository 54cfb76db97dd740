"""What callers of the Python class may give, in every form, and errors that name what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import strata
from strata import (
    LLM,
    ArgumentTypeError,
    AsyncLLM,
    SamplingParams,
    StrataError,
    UsageError,
    asking,
)
from strata.decode.defaults import SamplingDefaults

FEW = SamplingParams(max_tokens=4)
HELLO = [{"role": "user", "content": "Say hello."}]


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    with LLM(smollm2_path, threads=2, context=256) as llm:
        yield llm


def texts(outputs: Any) -> Any:
    return [texts(each) for each in outputs] if isinstance(outputs, list) else outputs.text


def test_lists_run_together_and_answer_as_alone(llm: LLM) -> None:
    assert llm.engine.parallel > 1
    prompts = ["Once upon a time", [1, 2, 3], {"prompt": "The"}, {"prompt_token_ids": [5]}]
    alone = [llm.generate(prompt, FEW) for prompt in prompts]  # type: ignore[call-overload]
    before = llm.engine.status().sweeps
    assert texts(llm.generate(prompts, FEW)) == texts(alone)  # type: ignore[call-overload]
    assert llm.engine.status().sweeps - before <= FEW.max_tokens + 1  # type: ignore[operator]


def test_parameters_of_each_prompt(llm: LLM) -> None:
    each = [{"max_tokens": 2}, SamplingParams(max_tokens=3)]
    outputs = llm.generate(["One", "Two"], each)
    assert [len(output.token_ids) for output in outputs] == [2, 3]
    with pytest.raises(UsageError, match="2 prompts, and parameters for 1"):
        llm.generate(["One", "Two"], each[:1])
    with pytest.raises(UsageError, match="did you mean temperature"):
        llm.generate("One", {"temprature": 1})


def test_several_answers_to_each(llm: LLM) -> None:
    drawn = SamplingParams(max_tokens=4, temperature=1.0, seed=7)
    answers = llm.generate(["One", "Two"], drawn, n=3)
    assert [len(each) for each in answers] == [3, 3]
    second = SamplingParams(max_tokens=4, temperature=1.0, seed=8)
    assert answers[1][1].text == llm.generate("Two", second).text
    assert texts(llm.generate("One", drawn, n=3)) == texts(answers[0])
    chunks = list(llm.generate(["One", "Two"], drawn, n=2, stream=True))
    assert {chunk.index for chunk in chunks} == {0, 1, 2, 3}


def test_conversations_together(llm: LLM) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Say hello."}]}]
    one = llm.chat(HELLO, FEW)
    assert texts(llm.chat([HELLO, parts], FEW)) == [one.text, one.text]


class Model:
    """As a class of pydantic's."""

    def __init__(self, value: Any) -> None:
        self.value = value

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}

    @classmethod
    def model_validate_json(cls, text: str) -> Model:
        return cls(json.loads(text))


def test_answers_that_obey_a_schema(llm: LLM) -> None:
    pytest.importorskip("llguidance")
    answer = llm.chat(HELLO, {"max_tokens": 30}, schema=Model)
    assert isinstance(answer.parsed, Model)
    assert list(answer.parsed.value) == ["ok"]
    plain = llm.generate("A", {"max_tokens": 30}, schema=Model.model_json_schema())
    assert plain.parsed == json.loads(plain.text)
    assert llm.generate("A", {"max_tokens": 1}, schema=Model).parsed is None, "cut"
    chosen = llm.generate("Sure?", SamplingParams(grammar=llm.compile(choice=["a.b", "c|d"])))
    assert chosen.text in ("a.b", "c|d")
    with pytest.raises(UsageError, match="exactly one"):
        llm.compile(regex="a", choice=["b"])
    with pytest.raises(ArgumentTypeError, match="a JSON schema"):
        llm.generate("A", schema="object")


def test_log_probabilities_of_a_prompt(llm: LLM) -> None:
    ids = llm.tokenize("Once upon a time", add_special=True)
    found = llm.prompt_logprobs("Once upon a time")
    assert len(found) == len(ids)
    assert found[0] is None
    assert found == llm.prompt_logprobs(ids)
    said = llm.generate(ids[:-1], SamplingParams(max_tokens=1, logprobs=100)).logprobs
    assert said is not None
    assert dict(said[0].top)[ids[-1]] == pytest.approx(found[-1], abs=1e-6)


@pytest.mark.parametrize(
    "given", [None, 5, 1.5, b"text", [None], [1.5], [True], [1, "a"], [["a"]], {"prompt": 5}]
)
def test_what_is_no_prompt(given: object) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        asking.prompts_of(given)
    assert isinstance(caught.value, (TypeError, StrataError))


@pytest.mark.parametrize("given", [{}, {"text": "a"}, {"prompt": "a", "prompt_token_ids": [1]}])
def test_what_is_no_prompt_in_a_dict(given: object) -> None:
    with pytest.raises(UsageError, match="either prompt or prompt_token_ids"):
        asking.prompts_of(given)


@pytest.mark.parametrize(
    "given",
    [
        *("text", None, [], [[]], ["text"], [{}], [{"role": "user"}], [HELLO, "text"]),
        *([{"role": "user", "content": 5}], [{"role": "user", "content": [{"image": 1}]}]),
    ],
)
def test_what_is_no_conversation(given: object) -> None:
    with pytest.raises(UsageError):
        asking.conversations_of(given)


@pytest.mark.parametrize("given", [5, "hot", [5]])
def test_what_are_no_parameters(given: object) -> None:
    with pytest.raises(ArgumentTypeError):
        asking.params_of(given, SamplingDefaults(SamplingParams(), {}, None), 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("threads", "2"), ("context", "99"), ("memory", 1.5), ("plan", 3), ("parallel", True)],
)
def test_what_is_no_option(smollm2_path: Path, name: str, value: object) -> None:
    with pytest.raises(ArgumentTypeError, match=name):
        LLM(smollm2_path, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="model"):
        LLM(5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["stop", "stop_token_ids", "logit_bias", "ignore_eos", "grammar"])
def test_what_is_no_parameter(name: str) -> None:
    with pytest.raises(UsageError, match=name):
        SamplingParams(**{name: 5})  # type: ignore[arg-type]


def test_every_exported_name_is_there() -> None:
    for name in strata.__all__:
        assert getattr(strata, name) is not None
    assert issubclass(strata.BudgetTooSmall, StrataError)


def test_progress_counts_answers(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b"], FEW, progress=True)
    assert "[2/2]" in capsys.readouterr().err
    llm.generate(["a", "b"], FEW)
    assert capsys.readouterr().err == "", "no terminal"


def test_asynchronous_callers(llm: LLM) -> None:
    alone = [llm.generate(prompt, FEW).text for prompt in ("One", "Two")]
    spoken = llm.chat(HELLO, FEW).text
    beams = llm.beam_search("One", beam_width=2, max_tokens=3)

    async def ask() -> None:
        asked = AsyncLLM(llm)
        both, chat = await asyncio.gather(
            asked.generate(["One", "Two"], FEW), asked.chat(HELLO, FEW)
        )
        assert [output.text for output in both] == alone
        assert chat.text == spoken
        pieces = [chunk.text async for chunk in asked.stream("One", FEW)]
        assert "".join(pieces) == alone[0]
        assert await asked.beam_search("One", beam_width=2, max_tokens=3) == beams
        for work in (
            asked.generate("One", SamplingParams(ignore_eos=True)),
            asked.beam_search("One", max_tokens=200, ignore_eos=True),
        ):
            long = asyncio.create_task(work)
            await asyncio.sleep(0.05)
            long.cancel()
            with pytest.raises(asyncio.CancelledError):
                await long
        with pytest.raises(ArgumentTypeError):
            await asked.generate(5)
        with pytest.raises(UsageError):
            [chunk async for chunk in asked.stream("", FEW)]

    asyncio.run(ask())
