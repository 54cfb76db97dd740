"""KV as users choose it: its type, its memory, and a store that outlives the process."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import get_args

import pytest

from strata import LLM, SamplingParams, UsageError
from strata.backends.kv_types import KV_TYPES
from strata.backends.settings import KVTypeName
from strata.errors import StrataError
from strata.formats import open_model

PROMPT = [40 + i % 3000 for i in range(200)]
PARAMS = SamplingParams(max_tokens=5, logprobs=1, ignore_eos=True)


def test_a_store_is_found_again_by_the_same_model_and_kv_type(
    smollm2_path: Path, tmp_path: Path
) -> None:
    answers = []
    for kv_type, known in (("f16", 0), ("f16", 192), ("q8_0", 0), (None, 192)):
        with LLM(
            smollm2_path, threads=2, context=300, kv_type=kv_type, kv_store=tmp_path / "kv"
        ) as llm:
            output = llm.generate(PROMPT, PARAMS)
            assert output.cached_tokens == known
            answers.append(output.logprobs)
            assert llm.generate(PROMPT, PARAMS).cached_tokens == 192
    assert answers[0] == answers[1] == answers[3] != answers[2]
    # The context may differ: KV does not depend on it.
    with LLM(smollm2_path, threads=1, context=256, kv_store=tmp_path / "kv") as llm:
        output = llm.generate(PROMPT, PARAMS)
    assert (output.cached_tokens, output.logprobs) == (192, answers[0])


def test_a_directory_with_files_of_others_is_refused_as_it_is(
    smollm2_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    source = tmp_path / "app" / "main.kv"
    source.write_text("Label:\n    text: 'Kivy'")
    with pytest.raises(StrataError, match="which the KV store has not made"):
        LLM(smollm2_path, context=300, kv_store=tmp_path, kv_store_bytes=1 << 22)
    assert source.exists()


def test_a_store_that_vanishes_costs_no_answer(
    smollm2_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with LLM(smollm2_path, threads=2, context=300, kv_store=tmp_path / "kv") as llm:
        right = llm.generate(PROMPT, PARAMS).logprobs
    with LLM(smollm2_path, threads=2, context=300, kv_store=tmp_path / "kv") as llm:
        shutil.rmtree(tmp_path / "kv")
        for _ in range(2):
            assert llm.generate(PROMPT, PARAMS).logprobs == right
            llm.generate(PROMPT[5:], PARAMS)
    assert [record.name for record in caplog.records] == ["strata.kv"]
    assert "KV is not kept while this lasts: No such file" in caplog.text


def test_another_models_kv_is_not_found_though_one_byte_differs(
    smollm2_path: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "model.gguf"
    shutil.copyfile(smollm2_path, copy)
    with open_model(copy) as file:
        place = file.tensors["token_embd.weight"].offset + 40_000
    for known in (0, 192, None):
        if known is None:
            with open(copy, "r+b") as f:
                f.seek(place)
                byte = f.read(1)[0]
                f.seek(place)
                f.write(bytes([byte ^ 1]))
        with LLM(copy, threads=2, context=300, kv_store=tmp_path / "kv") as llm:
            assert llm.generate(PROMPT, PARAMS).cached_tokens == (known or 0)


@pytest.mark.slow
def test_a_model_that_changes_while_it_runs_keeps_nothing_more(
    smollm2_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "model.gguf"
    shutil.copyfile(smollm2_path, copy)
    with LLM(copy, threads=2, context=300, kv_store=tmp_path / "kv") as llm:
        llm.generate(PROMPT, PARAMS)
    kept = sorted((tmp_path / "kv").iterdir())
    with LLM(copy, threads=2, context=300, kv_store=tmp_path / "kv") as llm:
        os.utime(copy, (1, 1))
        assert llm.generate(PROMPT, PARAMS).cached_tokens == 0
        llm.generate(PROMPT[5:], PARAMS)
    assert sorted((tmp_path / "kv").iterdir()) == kept
    assert caplog.text.count("the model's files were changed") == 1


@pytest.mark.slow
def test_kv_memory_is_bounded(smollm2_path: Path) -> None:
    with LLM(smollm2_path, threads=2, context=256, parallel=4, kv_bytes="8MB") as llm:
        assert llm.engine.kv_bytes <= 8_000_000
        together = llm.generate([PROMPT[i:] for i in range(4)], PARAMS)
    with LLM(smollm2_path, threads=2, context=256) as llm:
        alone = [llm.generate(PROMPT[i:], PARAMS) for i in range(4)]
    assert [o.logprobs for o in together] == [o.logprobs for o in alone]
    with pytest.raises(UsageError, match=r"1\.00 MB of KV do not hold a context of 256"):
        LLM(smollm2_path, context=256, kv_bytes="1MB")


def test_unknown_kv_types_are_refused(smollm2_path: Path) -> None:
    with pytest.raises(UsageError, match="no KV type 'q4_0' here; there are: f16, bf16, q8_0"):
        LLM(smollm2_path, context=64, kv_type="q4_0")


def test_every_kv_type_has_its_name() -> None:
    assert get_args(KVTypeName) == tuple(kv_type.name for kv_type in KV_TYPES)


@pytest.mark.slow
def test_keys_and_values_apart_and_by_layer(smollm2_path: Path, tmp_path: Path) -> None:
    """The store, several requests and a Plan with it; its own bits, and those again."""
    answers = []
    for kv_type, known in (("q8_0:int4,0-1=f16", 0), ("q8_0:int4,0-1=f16", 192), ("q8_0:int4", 0)):
        with LLM(
            smollm2_path,
            threads=2,
            context=300,
            parallel=2,
            memory="2GB",  # beside whatever other tests have left in this process
            kv_type=kv_type,
            kv_store=tmp_path / "kv",
        ) as llm:
            assert llm.runtime.plan is not None
            assert llm.runtime.plan.kv_type == kv_type
            first, other = llm.generate([PROMPT, PROMPT[3:]], PARAMS)
            assert first.cached_tokens == known
            answers.append((first.logprobs, other.logprobs))
    assert answers[0] == answers[1] != answers[2]
    with pytest.raises(UsageError, match="names layer 30, and the model's last is 29"):
        LLM(smollm2_path, context=300, kv_type="f16,30=int4")
