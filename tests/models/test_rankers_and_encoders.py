"""A causal model that ranks, against its own logits; distances within an encoder (ALiBi), against
what the papers say."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_models
from strata import LLM, UsageError
from strata.backends.cpu.backend import CpuBackend
from strata.formats import open_model
from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.models import ConfigError, MissingTensor, TensorShape, build_model
from strata.quant import by_name
from support.encoders import words
from support.forward import Forward
from support.small_programs import Floats

pytest.importorskip("strata._native")

F32 = by_name("F32")
QUERY, TEXTS = "what is a panda", ["a bear", "it is warm in the south of the land", "a"]
TEMPLATE = "judge <Query>: {query} <Document>: {document} now"
YES, NO = 41, 17


def write(path: Path, metadata: dict[str, object], arrays: dict[str, Floats]) -> Path:
    sources = [TensorSource.of(n, a.shape, F32, np.float32(a)) for n, a in arrays.items()]
    write_gguf(path, metadata, sources)
    return path


def qwen3(path: Path, *, ranks: bool, drop: str = "", **changed: object) -> Path:
    """A tiny Qwen3 as a GGUF file, and with rows of its head for yes and no."""
    golden = make_tiny_models.golden("qwen3")
    arrays = dict(make_tiny_models.gguf_arrays(golden))
    metadata = {**make_tiny_models.gguf_keys(golden), **words(QUERY, *TEXTS, TEMPLATE)}
    if ranks:
        head = arrays.get("output.weight", arrays["token_embd.weight"])
        arrays["cls.output.weight"] = head[[YES, NO]]
        metadata["qwen3.pooling_type"] = 4
        metadata["tokenizer.chat_template.rerank"] = TEMPLATE
    arrays.pop(drop, None)
    return write(path, {**metadata, **changed}, arrays)


def test_yes_or_no_of_a_causal_model(tmp_path: Path) -> None:
    plain = qwen3(tmp_path / "plain.gguf", ranks=False)
    path = qwen3(tmp_path / "ranker.gguf", ranks=True)
    expected = []
    with LLM(path, embedding=True, backend="reference", context=64) as llm:
        got = llm.rank(QUERY, TEXTS)
        for text in TEXTS:
            whole = TEMPLATE.replace("{query}", QUERY).replace("{document}", text)
            ids = llm.tokenize(whole)
            with open_model(plain) as file:
                last = Forward(file).logits(ids)[-1].astype(np.float64)
            expected.append(1 / (1 + math.exp(last[NO] - last[YES])))
        assert np.allclose(got, expected, rtol=1e-5)
        assert len(set(got)) == len(TEXTS)
    with LLM(path, embedding=True, threads=2, parallel=3, context=64) as llm:
        together = llm.rank(QUERY, TEXTS)
        assert np.allclose(together, expected, atol=0.02)
        alone = [llm.rank(QUERY, [text])[0] for text in TEXTS]
        assert np.array_equal(together, alone)
        with pytest.raises(UsageError, match="embeds none"):
            llm.embed("a")
    with pytest.raises(UsageError, match="embeds texts"):
        LLM(path)


def test_a_ranker_without_its_rows_is_refused(tmp_path: Path) -> None:
    path = qwen3(tmp_path / "m.gguf", ranks=True, drop="cls.output.weight")
    with open_model(path) as whole, pytest.raises(MissingTensor, match=r"cls\.output\.weight"):
        build_model(whole)
    with open_model(qwen3(tmp_path / "n.gguf", ranks=True)) as opened:
        file: Any = opened
        other = {"cls.output.weight": file.tensors["blk.0.attn_q.weight"]}
        file.tensors = {**file.tensors, **other}
        with pytest.raises(TensorShape):
            build_model(file)
    wrong = qwen3(tmp_path / "o.gguf", ranks=True, **{"qwen3.pooling_type": 9})
    with open_model(wrong) as whole, pytest.raises(ConfigError, match="pooling_type"):
        build_model(whole)


WIDTH, FFN, LAYERS, HEADS, VOCABULARY = 48, 64, 3, 6, 90


def jina(seed: int = 3) -> dict[str, Floats]:
    """Random weights of a small JinaBERT 2."""
    random = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "token_types.weight": (2, WIDTH),
    }
    norms = ["token_embd_norm"]
    for i in range(LAYERS):
        name = f"blk.{i}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"{name}{part}.weight"] = (WIDTH, WIDTH)
            shapes[f"{name}{part}.bias"] = (WIDTH,)
        shapes |= {f"{name}ffn_{part}.weight": (FFN, WIDTH) for part in ("gate", "up")}
        shapes |= {f"{name}ffn_down.weight": (WIDTH, FFN), f"{name}ffn_down.bias": (WIDTH,)}
        norms += [f"{name}attn_output_norm", f"{name}layer_output_norm"]
    for norm in norms:
        shapes |= {f"{norm}.weight": (WIDTH,), f"{norm}.bias": (WIDTH,)}
    return {
        name: random.standard_normal(shape) * (1 if len(shape) == 1 else shape[-1] ** -0.5)
        for name, shape in shapes.items()
    }


def by_the_papers(arrays: dict[str, Floats], tokens: list[int]) -> Floats:
    """BERT's layers (arXiv:1810.04805) with GEGLU (arXiv:2002.05202), and ALiBi (arXiv:2108.12409)
    on both sides of a row (arXiv:2310.19923), in float64. Of six heads the first four have the
    slopes of four, the others every second one of eight."""

    def linear(x: Floats, name: str) -> Floats:
        return x @ arrays[f"{name}.weight"].T + arrays.get(f"{name}.bias", 0.0)

    def norm(x: Floats, name: str) -> Floats:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-12)
        return x * arrays[f"{name}.weight"] + arrays[f"{name}.bias"]

    gelu = np.vectorize(lambda v: v * 0.5 * (1 + math.erf(v / math.sqrt(2))))
    slopes = [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8, 2.0**-1, 2.0**-3]
    count = len(tokens)
    distance = np.abs(np.arange(count)[:, None] - np.arange(count))
    x = norm(
        arrays["token_embd.weight"][tokens] + arrays["token_types.weight"][0], "token_embd_norm"
    )
    for i in range(LAYERS):
        name = f"blk.{i}."
        q, k, v = (
            linear(x, f"{name}attn_{part}").reshape(count, HEADS, -1).transpose(1, 0, 2)
            for part in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(WIDTH // HEADS)
        scores = scores - np.array(slopes)[:, None, None] * distance
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = weights / weights.sum(-1, keepdims=True) @ v
        out = linear(mixed.transpose(1, 0, 2).reshape(count, WIDTH), f"{name}attn_output")
        x = norm(x + out, f"{name}attn_output_norm")
        inner = gelu(linear(x, f"{name}ffn_gate")) * linear(x, f"{name}ffn_up")
        x = norm(x + linear(inner, f"{name}ffn_down"), f"{name}layer_output_norm")
    return x


@pytest.mark.parametrize("count", [1, 9, 150])
def test_distances_within_an_encoder(count: int, tmp_path: Path) -> None:
    arrays = {name: np.float64(np.float32(a)) for name, a in jina().items()}
    keys = {
        "general.architecture": "jina-bert-v2",
        "jina-bert-v2.block_count": LAYERS,
        "jina-bert-v2.embedding_length": WIDTH,
        "jina-bert-v2.feed_forward_length": FFN,
        "jina-bert-v2.attention.head_count": HEADS,
        "jina-bert-v2.context_length": 256,
        "jina-bert-v2.attention.layer_norm_epsilon": 1e-12,
    }
    path = write(tmp_path / "m.gguf", keys, arrays)
    tokens = np.random.default_rng(count).integers(0, VOCABULARY, count).tolist()
    want = by_the_papers(arrays, tokens)
    with open_model(path) as file:
        got = Forward(file, embedding=True).logits(tokens)
        native = Forward(file, backend=CpuBackend(threads=2), embedding=True).logits(tokens)
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
    # Keys and values are rounded to 16 bits, of which 11 count.
    assert np.abs(native - want).max() < 0.01 * np.abs(want).max()
