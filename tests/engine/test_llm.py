"""The LLM class on the built-in model: one answer, whichever way it is asked for."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from strata import LLM, Output, SamplingParams, StrataError, UsageError
from strata.backends.base import Step

PROMPTS = ["Once upon a time", "def fibonacci(n):", "1 2 3 4", "The sea is"]
SHORT = SamplingParams(max_tokens=12)


@pytest.fixture(scope="module")
def llm(smollm2_path: Path, backend: str) -> Iterator[LLM]:
    with LLM(smollm2_path, backend=backend, threads=2, context=512, parallel=3) as opened:
        yield opened
        opened.engine.check_integrity()
        assert not opened.engine.busy


def test_a_chat(llm: LLM) -> None:
    output = llm.chat([{"role": "user", "content": "Say hello."}], SamplingParams(max_tokens=40))
    assert output.text
    assert output.finish_reason == "stop"
    assert output.token_ids[-1] in llm.tokenizer.stop_ids
    assert llm.tokenizer.decode(output.token_ids[:-1]) == output.text
    assert output.seed is None
    assert output.timings.ttft_s is not None
    assert output.timings.ttft_s > 0


def test_a_batch_is_what_each_prompt_gives_alone(llm: LLM) -> None:
    together = llm.generate(PROMPTS, SHORT)
    for prompt, output in zip(PROMPTS, together, strict=True):
        alone = llm.generate(prompt, SHORT)
        assert alone.token_ids == output.token_ids
        assert alone.text == output.text
    assert len({output.text for output in together}) == len(PROMPTS)
    assert llm.generate([], SHORT) == []


def test_ids_are_taken_as_they_are(llm: LLM) -> None:
    ids = llm.tokenize(PROMPTS[0], add_special=True, parse_special=True)
    assert llm.generate(ids, SHORT).token_ids == llm.generate(PROMPTS[0], SHORT).token_ids
    both = llm.generate([ids, ids], SHORT)
    assert both[0].token_ids == both[1].token_ids


def test_streams_carry_the_same(llm: LLM) -> None:
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=5, logprobs=2)
    whole = llm.generate(PROMPTS, params)
    texts = ["" for _ in PROMPTS]
    ends: dict[int, Output] = {}
    for chunk in llm.generate(PROMPTS, params, stream=True):
        texts[chunk.index] += chunk.text
        assert chunk.logprob is not None
        assert len(chunk.top) == 2
        assert (chunk.finish_reason is None) == (chunk.output is None)
        if chunk.output is not None:
            ends[chunk.index] = chunk.output
    for index, output in enumerate(whole):
        assert texts[index] == ends[index].text == output.text
        assert ends[index].logprobs == output.logprobs
        assert output.seed == 5


def test_only_a_completion_goes_on_a_text_that_began(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a first word, sentencepiece's space is taken away; not of one that follows a prompt."""
    stream, asked = llm.tokenizer.stream, []

    def watched(*, continuing: bool) -> object:
        asked.append(continuing)
        return stream(continuing=continuing)

    monkeypatch.setattr(llm.tokenizer, "stream", watched)
    llm.generate("Once", SHORT)
    llm.chat([{"role": "user", "content": "Once"}], SHORT)
    assert asked == [True, False]


def test_streams_may_be_read_in_turns(llm: LLM) -> None:
    first = llm.generate(PROMPTS[0], SHORT, stream=True)
    second = llm.generate(PROMPTS[1], SHORT, stream=True)
    texts = ["", ""]
    for a, b in zip(first, second, strict=True):
        texts[0] += a.text
        texts[1] += b.text
    assert texts == [output.text for output in llm.generate(PROMPTS[:2], SHORT)]


def test_a_stream_that_is_left_frees_its_blocks(llm: LLM) -> None:
    stream = llm.generate(PROMPTS * 3, SamplingParams(max_tokens=100), stream=True)
    next(stream)
    assert llm.engine.busy
    stream.close()  # type: ignore[attr-defined]
    assert not llm.engine.busy
    llm.engine.check_integrity()


def test_an_interrupt_leaves_the_llm_in_order(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = llm.generate(PROMPTS[0], SHORT).token_ids
    backend = llm.engine.runner.backend
    run, calls = backend.run, 0

    def interrupted(loaded: object, step: Step, *rest: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise KeyboardInterrupt
        return run(loaded, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(backend, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, SHORT)
    assert not llm.engine.busy
    llm.engine.check_integrity()
    assert llm.generate(PROMPTS[0], SHORT).token_ids == expected


def test_stop_strings(llm: LLM) -> None:
    full = llm.generate("1, 2, 3, 4, 5, 6,", SamplingParams(max_tokens=30)).text
    stop = full[7:10]
    output = llm.generate("1, 2, 3, 4, 5, 6,", SamplingParams(max_tokens=30, stop=stop))
    assert output.text == full[: full.index(stop)]
    assert output.finish_reason == "stop"


def test_seeds(llm: LLM) -> None:
    def text(seed: int | None) -> str:
        return llm.generate(
            PROMPTS[0], SamplingParams(temperature=1, seed=seed, max_tokens=20)
        ).text

    assert text(1) == text(1) != text(2)
    output = llm.generate(PROMPTS[0], SamplingParams(temperature=1, max_tokens=20))
    assert output.text == text(output.seed)


def test_greedy_tokens_have_the_highest_logprob(llm: LLM) -> None:
    output = llm.generate(PROMPTS[0], SamplingParams(max_tokens=5, logprobs=3))
    assert output.logprobs is not None
    assert len(output.logprobs) == 5
    for sample in output.logprobs:
        assert sample.top[0] == (sample.token, sample.logprob)
        assert sum(math.exp(logprob) for _, logprob in sample.top) <= 1


def test_perplexity_prefers_english(llm: LLM) -> None:
    english = "The cat sat on the mat and looked out of the window at the birds. " * 3
    shuffled = " ".join(sorted(english.split(), key=lambda word: word[::-1]))
    good = llm.perplexity(english, context=32)
    assert good.perplexity < llm.perplexity(shuffled, context=32).perplexity
    assert good.tokens == good.chunks * 15


def test_what_cannot_be_asked(llm: LLM, smollm2_path: Path) -> None:
    with pytest.raises(UsageError, match="context of 512"):
        llm.generate("a " * 600, SHORT)
    with pytest.raises(UsageError, match="do not fit"):
        llm.generate(["fine", "a"], SamplingParams(max_tokens=512), stream=True)
    with pytest.raises(UsageError, match="empty"):
        llm.generate("", SHORT)
    with pytest.raises(UsageError, match="vocabulary"):
        llm.generate([10**6], SHORT)
    with pytest.raises(UsageError, match="no backend 'gpu'"):
        LLM(smollm2_path, backend="gpu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="context"):
        LLM(smollm2_path, backend="reference", context=10**6)
    with pytest.raises(StrataError):
        LLM("/no/such/model.gguf")


def test_a_closed_llm_says_so(smollm2_path: Path) -> None:
    opened = LLM(smollm2_path, context=64)
    opened.close()
    opened.close()
    with pytest.raises(UsageError, match="closed"):
        opened.generate("a")


def test_a_stream_of_a_closed_llm_says_so(smollm2_path: Path) -> None:
    opened = LLM(smollm2_path, threads=1, context=64)
    stream = opened.generate(PROMPTS[0], SHORT, stream=True)
    next(stream)
    opened.close()
    with pytest.raises(UsageError, match="closed"):
        list(stream)


def test_closing_frees_the_weights_at_once(smollm2_path: Path) -> None:
    opened = LLM(smollm2_path, threads=1, context=64)
    opened.generate(PROMPTS[0], SamplingParams(max_tokens=1))
    segments = [weakref.ref(segment) for segment in opened.engine.runner.loaded]
    gc.disable()
    try:
        opened.close()
        assert [ref() for ref in segments] == [None] * len(segments)
    finally:
        gc.enable()


def test_threads_may_share_an_llm(llm: LLM) -> None:
    expected = [output.text for output in llm.generate(PROMPTS, SHORT)]
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        calls = [pool.submit(llm.generate, prompt, SHORT) for prompt in PROMPTS * 2]
        assert [call.result(60).text for call in calls] == expected * 2
    assert not llm.engine.busy


def test_importing_strata_is_cheap() -> None:
    code = "import sys, strata; strata.__version__; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    code = "from strata import LLM, SamplingParams, Output, Chunk, StrataError; import strata; "
    code += "assert set(strata.__all__) <= set(dir(strata)); strata.nothing"
    failed = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"has no attribute 'nothing'" in failed.stderr
