"""Encoders with random weights, as GGUF files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.quant import by_name

WIDTH, LAYERS, VOCABULARY, CONTEXT = 64, 2, 97, 256


def encoder(path: Path, *, types: int = 2, ranks: bool = False, **keys: Any) -> Path:
    """A BERT with random weights, and no tokenizer unless ``keys`` say one. ``ranks``: with a
    classifier."""
    random = np.random.default_rng(0)
    shapes: dict[str, Sequence[int]] = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "token_types.weight": (types, WIDTH),
        "position_embd.weight": (CONTEXT, WIDTH),
        "token_embd_norm": (WIDTH,),
    }
    for i in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            shapes[f"blk.{i}.{name}"] = (WIDTH, WIDTH)
        shapes[f"blk.{i}.ffn_up"], shapes[f"blk.{i}.ffn_down"] = (96, WIDTH), (WIDTH, 96)
        shapes[f"blk.{i}.attn_output_norm"] = shapes[f"blk.{i}.layer_output_norm"] = (WIDTH,)
    if ranks:
        shapes |= {"cls": (WIDTH, WIDTH), "cls.output": (1, WIDTH)}
        keys = {"bert.pooling_type": 4, **keys}
    for name in [name for name in shapes if not name.endswith("weight")]:
        shape = shapes.pop(name)
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = shape, shape[:1]
    tensors = [
        TensorSource.of(
            name,
            tuple(shape),
            by_name("F32"),
            random.standard_normal(shape).astype(np.float32) * np.float32(shape[-1] ** -0.5),
        )
        for name, shape in shapes.items()
    ]
    metadata = {
        "general.architecture": "bert",
        "bert.block_count": LAYERS,
        "bert.embedding_length": WIDTH,
        "bert.feed_forward_length": 96,
        "bert.attention.head_count": 4,
        "bert.context_length": CONTEXT,
        "bert.attention.layer_norm_epsilon": 1e-12,
        **keys,
    }
    write_gguf(path, metadata, tensors)
    return path


def words(*texts: str) -> dict[str, Any]:
    """A Unigram vocabulary of the words of texts, as files of XLM-RoBERTa have it."""
    found = sorted({word for text in texts for word in text.split()})
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *(f"\u2581{word}" for word in found)]
    spare = VOCABULARY - len(tokens)
    return {
        "tokenizer.ggml.model": "t5",
        "tokenizer.ggml.tokens": [*tokens, *(f"<spare{i}>" for i in range(spare))],
        "tokenizer.ggml.scores": [0.0] * 4 + [-2.0] * len(found) + [-99.0] * spare,
        "tokenizer.ggml.token_type": [3, 3, 3, 2] + [1] * len(found) + [5] * spare,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 3,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_space_prefix": True,
    }
