"""Embeddings of texts: what they are of, that nothing but the text changes a bit, and refusals."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("strata._native")

from strata import LLM, SamplingParams, UsageError
from strata.backends.base import Backend
from strata.backends.cpu.backend import CpuBackend
from strata.backends.weights import WeightSource
from strata.engine import Engine, KVSettings, Runner
from strata.formats import open_model
from strata.models import build_model
from strata.plan import BudgetTooSmall
from support.encoders import CONTEXT, VOCABULARY, encoder
from support.forward import Forward

TEXTS = ["The cat sat on the mat.", "A cat is sitting on a rug.", "Revenue rose by 3 %. " * 30]


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Any:
    with LLM(smollm2_path, embedding=True, threads=2, parallel=3, context=512) as llm:
        yield llm


@pytest.mark.parametrize(("pooling", "rows"), [("mean", slice(None)), ("first", 0), ("last", -1)])
def test_they_are_made_of_the_last_norm(
    llm: LLM, smollm2_path: Path, pooling: Any, rows: Any
) -> None:
    tokens = llm.tokenize(TEXTS[0], add_special=True)
    with open_model(smollm2_path) as file:
        each = Forward(file, backend=CpuBackend(threads=2), embedding=True).logits(tokens)
        # What the head multiplies gives the model's logits.
        head = WeightSource(file).floats(build_model(file).segments[0].weights[0])
        logits = Forward(file, backend=CpuBackend(threads=2)).logits(tokens)
    assert np.abs(each @ head.T - logits).max() < 0.02 * np.abs(logits).max()
    expected = np.atleast_2d(each[rows]).astype(np.float64).mean(axis=0)
    got = llm.embed([TEXTS[0]], pooling=pooling, normalize=False)[0]
    assert np.array_equal(got, expected.astype(np.float32))
    whole = llm.embed(TEXTS[0], pooling=pooling)
    assert np.allclose(whole, expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.slow
def test_nothing_but_the_text_changes_a_bit(llm: LLM, smollm2_path: Path) -> None:
    together = llm.embed(TEXTS)
    assert together.shape == (3, 576)
    for text, expected in zip(TEXTS, together, strict=True):
        assert np.array_equal(llm.embed(text), expected)
    for other in ({"threads": 1}, {"memory": "2GB", "threads": 2}):
        with LLM(smollm2_path, embedding=True, context=512, **other) as another:
            assert np.array_equal(another.embed(TEXTS), together)
    with open_model(smollm2_path) as file:
        model = llm.model
        backend = CpuBackend(threads=2)
        engine = Engine(
            Runner(backend, model, WeightSource(file)), context=512, parallel=2, token_budget=7
        )
        ids = [llm.tokenize(text, add_special=True) for text in TEXTS]
        assert np.array_equal(engine.embed(ids, "mean"), llm.embed(TEXTS, normalize=False))


def test_meaning_is_near(llm: LLM) -> None:
    a, b, c = llm.embed(TEXTS)
    assert a @ b > a @ c


def test_dimensions_are_the_first_ones(llm: LLM) -> None:
    raw = llm.embed(TEXTS[:1], normalize=False)
    short = llm.embed(TEXTS[:1], dimensions=10)
    assert short.shape == (1, 10)
    assert np.allclose(short[0], raw[0, :10] / np.linalg.norm(raw[0, :10]), atol=1e-6)


def test_refusals(llm: LLM, smollm2_path: Path) -> None:
    with pytest.raises(UsageError, match="continues none"):
        llm.generate("Hello")
    with pytest.raises(UsageError, match=r"text 2 has .* the context 512"):
        llm.embed(["short", "long " * 600])
    with pytest.raises(UsageError, match="embeddings have 576"):
        llm.embed("a", dimensions=577)
    with pytest.raises(UsageError, match="empty"):
        llm.embed([[]])


@pytest.mark.slow
def test_a_model_that_continues_texts_embeds_them_too(llm: LLM, smollm2_path: Path) -> None:
    expected, ids = llm.embed(TEXTS), None
    with pytest.raises(BudgetTooSmall) as caught:
        LLM(smollm2_path, threads=2, context=512, memory=1)
    # In the smallest budget most of it is streamed, the head too.
    for memory in (None, caught.value.smallest + (20 << 20)):
        with LLM(smollm2_path, threads=2, context=512, memory=memory) as usual:
            before = usual.generate("Once upon", SamplingParams(max_tokens=6))
            assert np.array_equal(usual.embed(TEXTS), expected)
            after = usual.generate("Once upon", SamplingParams(max_tokens=6))
            assert before.token_ids == after.token_ids
            assert ids in (None, after.token_ids)
            ids = after.token_ids


def embedded(
    file: Any, texts: Sequence[Sequence[int]], backend: Backend, **settings: Any
) -> np.ndarray[Any, Any]:
    model = build_model(file)
    runner = Runner(backend, model, WeightSource(file))
    engine = Engine(runner, context=CONTEXT, token_budget=CONTEXT, kv=KVSettings(), **settings)
    return engine.embed(texts, "mean")


def test_an_encoder_sees_whole_texts_whatever_its_company(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    texts = [random.integers(0, VOCABULARY, n).tolist() for n in (1, 9, 130, 256, 70, 5)]
    with open_model(encoder(tmp_path / "m.gguf")) as file:
        together = embedded(file, texts, CpuBackend(threads=2), parallel=4)
        alone = [embedded(file, [text], CpuBackend(threads=1))[0] for text in texts]
        rows = [Forward(file, backend=CpuBackend(threads=2)).logits(text) for text in texts]
    assert np.array_equal(together, alone)
    means = [each.astype(np.float64).mean(axis=0) for each in rows]
    assert np.allclose(together, means, atol=1e-6)
    # The first token sees the last.
    with open_model(tmp_path / "m.gguf") as file:
        changed = [*texts[2][:-1], (texts[2][-1] + 1) % VOCABULARY]
        first = Forward(file, backend=CpuBackend(threads=2)).logits(changed)[0]
    assert not np.array_equal(first, rows[2][0])


def test_an_unknown_pooling_is_named(tmp_path: Path) -> None:
    from strata.models import ConfigError, ModelError, read_pooling

    with (
        open_model(encoder(tmp_path / "m.gguf", **{"bert.pooling_type": 9})) as file,
        pytest.raises(ConfigError, match="not known"),
    ):
        read_pooling(file)
    # One that ranks has a classifier.
    with (
        open_model(encoder(tmp_path / "m.gguf", **{"bert.pooling_type": 4})) as file,
        pytest.raises(ModelError, match=r"cls\.output"),
    ):
        build_model(file)
    for number, name in ((1, "mean"), (2, "first"), (3, "last"), (0, None)):
        with open_model(encoder(tmp_path / "m.gguf", **{"bert.pooling_type": number})) as file:
            assert read_pooling(file) == name
