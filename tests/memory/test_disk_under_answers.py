"""A disk that slows down, fails, or has another file while experts are read for answers: the same
tokens later, or an error of one line that says what is wrong. Never another token."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import strata._native as _native
from strata import LLM, SamplingParams
from strata.backends.weights import WeightReadError
from strata.engine import Job

Make = Callable[[str, str | None], Path]
PROMPTS = [[5, 9, 11, 40, 7, 88, 23], [3] * 30, [200, 9]]
PARAMS = SamplingParams(max_tokens=12, ignore_eos=True)
SLOTS = 3


def nothing() -> None:
    """Happens."""


def read_experts(llm: LLM) -> None:
    """From now on experts are read when they are chosen, into a few slots."""
    units = [unit for segment in llm.model.segments for unit in segment.units]
    names = frozenset(unit.name for unit in units if unit.reads == "routed")
    before = llm.runtime.settings
    after = replace(before, streamed=names, expert_slots=SLOTS)
    with llm.driver.alone() as engine:
        engine.rearrange(after, before)
    llm.runtime.settings = after


@pytest.fixture(autouse=True)
def _disk() -> Iterator[None]:
    """Is in order again for the next test."""
    yield
    _native.set_read_faults()


@pytest.fixture
def path(make_model: Make, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(make_model("tiny-qwen3moe", "Q4_K_M"), tmp_path / "model.gguf"))


@pytest.fixture
def llm(path: Path) -> Iterator[LLM]:
    with LLM(path, context=128, parallel=3) as made:
        yield made


def answers(
    llm: LLM, happens: Callable[[], None] = nothing, at: int = 5
) -> tuple[list[list[int]], WeightReadError | None]:
    """Tokens of all prompts together, and what ended them. Something happens after some."""
    out: list[list[int]] = [[] for _ in PROMPTS]
    with llm.driver.submit([Job(list(p), PARAMS, None) for p in PROMPTS]) as run:
        try:
            for number, (index, delta) in enumerate(run):
                out[index].append(delta.sample.token)
                if number == at:
                    happens()
        except WeightReadError as error:
            return out, error
    return out, None


def begin(found: list[list[int]], want: list[list[int]]) -> bool:
    """Whether answers are those that are wanted, as far as they came."""
    return all(part == whole[: len(part)] for part, whole in zip(found, want, strict=True))


@pytest.mark.parametrize("kind", [{"slow_times": 10}, {"delay_us": 1000, "seed": 1}])
def test_a_disk_that_slows_down_gives_the_same_answers(kind: dict[str, int], llm: LLM) -> None:
    """To a tenth, or so that every read waits: those of this size take some ten microseconds."""
    want, _ = answers(llm)
    read_experts(llm)
    assert answers(llm, partial(_native.set_read_faults, **kind)) == (want, None)
    _native.set_read_faults()
    assert answers(llm) == (want, None)


@pytest.mark.parametrize("kind", ["fail_at", "cut_at"])
@pytest.mark.parametrize("at", [1, 9])
def test_a_disk_that_fails_ends_the_answers_under_way(
    llm: LLM, path: Path, kind: str, at: int
) -> None:
    want, _ = answers(llm)
    read_experts(llm)
    found, error = answers(llm, partial(_native.set_read_faults, **{kind: at}))
    assert error is not None
    assert path.name in str(error)
    assert "\n" not in str(error)
    assert begin(found, want)
    assert sum(map(len, found)) > 5
    llm.engine.check_integrity()
    # The disk came round.
    assert answers(llm) == (want, None)


def test_a_file_that_is_replaced_ends_every_answer(llm: LLM, path: Path) -> None:
    want, _ = answers(llm)
    read_experts(llm)
    other = path.with_name("other.gguf")
    whole = path.read_bytes()
    other.write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 :][::-1])
    found, error = answers(llm, lambda: os.replace(other, path))
    for _ in range(2):
        assert "was changed or replaced" in str(error)
        assert begin(found, want)
        llm.engine.check_integrity()
        found, error = answers(llm)


def test_who_asks_over_http_is_told(llm: LLM, path: Path) -> None:
    httpx = pytest.importorskip("httpx", reason="the package httpx is not installed")
    from support.running import NAMES, running

    read_experts(llm)
    asked = {"model": NAMES[0], "prompt": PROMPTS[0], "max_tokens": 8, "temperature": 0}
    with running(llm) as server:

        def ask() -> tuple[int, str]:
            answer = httpx.post(f"{server.url}/v1/completions", json=asked, timeout=60)
            body = answer.json()
            if answer.status_code == 200:
                return 200, body["choices"][0]["text"]
            return answer.status_code, body["error"]["message"]

        want = ask()
        assert want[0] == 200
        _native.set_read_faults(fail_at=4)
        status, message = ask()
        assert status == 500
        assert "model.gguf cannot be read at byte" in message
        assert ask() == want
        os.replace(Path(shutil.copyfile(path, path.with_name("other.gguf"))), path)
        for _ in range(2):
            status, message = ask()
            assert status == 500
            assert "was changed or replaced" in message
        server.wait_until_free()
