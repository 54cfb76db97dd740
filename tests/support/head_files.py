"""Heads that were trained to guess for a model, random ones of the shapes of the published files
(EAGLE's, Medusa's), and tiny models that they fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import make_tiny_models
from strata.engine.draft_files import DraftModelFile, open_draft_model
from strata.formats import open_model
from strata.models import build_model
from strata.text import load_tokenizer
from support.guessing_runs import CONTEXT

LAYERS, WIDTH, FFN, VOCABULARY, CHOSEN, HEADS = 8, 64, 96, 272, 100, 3
EPS = 1e-5

Arrays = dict[str, NDArray[Any]]


def write_recurrent_target(path: Path, change: Callable[[Arrays], None]) -> Path:
    """A tiny Qwen3.5, of the same width and vocabulary: layers with state and with attention."""
    golden = make_tiny_models.golden("qwen35")
    made = make_tiny_models.write_directory(path, golden)
    arrays = dict(golden.weights())
    change(arrays)
    save_file(arrays, made / "model.safetensors")
    return made


def write_target(path: Path, change: Callable[[Arrays], None] | None = None) -> Path:
    """A tiny Llama of as many layers as EAGLE-3 sees apart."""
    golden = make_tiny_models.golden("llama")
    shapes = {name: shape for name, shape in golden.shapes.items() if ".layers." not in name}
    for name, shape in golden.shapes.items():
        if ".layers.0." in name:
            shapes |= {name.replace(".0.", f".{i}."): shape for i in range(LAYERS)}
    arrays = {name: make_tiny_models.weight(name, shape) for name, shape in shapes.items()}
    if change is not None:
        change(arrays)
    golden = replace(golden, config={**golden.config, "num_hidden_layers": LAYERS})
    made = make_tiny_models.write_directory(path, golden)
    save_file(arrays, made / "model.safetensors")
    return made


def layer_shapes(into: int) -> dict[str, tuple[int, ...]]:
    return {
        "self_attn.q_proj.weight": (64, into),
        "self_attn.k_proj.weight": (32, into),
        "self_attn.v_proj.weight": (32, into),
        "self_attn.o_proj.weight": (WIDTH, 64),
        "mlp.gate_proj.weight": (FFN, WIDTH),
        "mlp.up_proj.weight": (FFN, WIDTH),
        "mlp.down_proj.weight": (WIDTH, FFN),
        "post_attention_layernorm.weight": (WIDTH,),
    }


def shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Of the tensors of published files."""
    if kind == "eagle3":
        own = {"input_layernorm.weight": (WIDTH,), "hidden_norm.weight": (WIDTH,)}
        layer = {**layer_shapes(2 * WIDTH), **own}
        return {
            "fc.weight": (WIDTH, 3 * WIDTH),
            "norm.weight": (WIDTH,),
            "lm_head.weight": (CHOSEN, WIDTH),
            **{f"midlayer.{name}": shape for name, shape in layer.items()},
        }
    if kind == "eagle":
        return {
            "embed_tokens.weight": (VOCABULARY, WIDTH),
            "fc.weight": (WIDTH, 2 * WIDTH),
            "fc.bias": (WIDTH,),
            **{f"layers.0.{name}": shape for name, shape in layer_shapes(WIDTH).items()},
        }
    found: dict[str, tuple[int, ...]] = {}
    for head, layer in product(range(HEADS), range(2)):
        block = f"blocks.{head}.layers.{layer}" if "blocks" in kind else f"{head}.{layer}.linear"
        found[f"{block}.weight"] = (WIDTH, WIDTH)
        if kind != "blocks":
            found[f"{block}.bias"] = (WIDTH,)
        if kind == "medusa":
            found[f"{head}.2.weight"] = (VOCABULARY, WIDTH)
        elif kind == "blocks":
            found[f"lm_heads.{head}.weight"] = (VOCABULARY, WIDTH)
    return found


CONFIG = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "max_position_embeddings": 200,
    "rms_norm_eps": EPS,
    "vocab_size": VOCABULARY,
    "draft_vocab_size": CHOSEN,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
MEDUSA_CONFIG = {"medusa_num_heads": HEADS, "medusa_num_layers": 2}
# ``shared``: blockwise parallel heads, of which all end in the model's own.
KINDS = ("eagle3", "eagle", "medusa", "blocks", "shared blocks")


def chosen_tokens() -> NDArray[np.int64]:
    return np.sort(np.random.default_rng(5).permutation(VOCABULARY)[:CHOSEN])


def write_heads(
    path: Path,
    kind: str,
    change: Callable[[Arrays], None] | None = None,
    **config: object,
) -> Path:
    path.mkdir()
    arrays: Arrays = {
        name: make_tiny_models.weight(f"heads.{name}", shape)
        for name, shape in shapes(kind).items()
    }
    if kind == "eagle3":
        tokens = chosen_tokens()
        arrays["d2t"] = tokens - np.arange(CHOSEN)
        arrays["t2d"] = np.isin(np.arange(VOCABULARY), tokens)
    if change is not None:
        change(arrays)
    stated = CONFIG if "eagle" in kind else MEDUSA_CONFIG
    (path / "config.json").write_text(json.dumps({**stated, **config}))
    name = "medusa_lm_head" if kind == "medusa" else "model"
    save_file(arrays, path / f"{name}.safetensors")
    return path


def always_the_same(arrays: Arrays) -> None:
    """Layers give nothing and all tokens are embedded alike: the same logits after any text."""
    for name, array in arrays.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            array[:] = 0
    arrays["model.embed_tokens.weight"][:] = arrays["model.embed_tokens.weight"][0]
    # Some tokens are likely.
    arrays["lm_head.weight"] *= 4


def nearly_the_same(arrays: Arrays) -> None:
    """Layers give little and tokens are embedded nearly alike: logits that are much alike after any
    text, and never equal."""
    table = arrays["model.embed_tokens.weight"]
    table[:] = table[0] + 0.16 * table
    for name, array in arrays.items():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            array *= 0.16
    arrays["lm_head.weight"] *= 4


def says_what_the_model_says(kind: str, target: Path) -> Callable[[Arrays], None]:
    """A change of heads that are to be right of a model whose logits are always the same."""
    with open_model(target) as file:
        head, norm = (
            file.read(name).view(np.float32).copy()
            for name in ("lm_head.weight", "model.norm.weight")
        )
    head = head.reshape(VOCABULARY, WIDTH)

    def change(arrays: Arrays) -> None:
        for name, array in arrays.items():
            if name.endswith(("o_proj.weight", "down_proj.weight", "linear.weight")) or (
                "blocks" in kind or name.endswith("bias")
            ):
                array[:] = 0
            if name.startswith("lm_heads") or name.endswith(".2.weight"):
                array[:] = head
        if kind == "eagle3":
            arrays["fc.weight"][:] = np.eye(WIDTH, 3 * WIDTH, k=2 * WIDTH)
            arrays["norm.weight"][:] = norm
            arrays["lm_head.weight"] = head
            arrays["d2t"], arrays["t2d"] = np.zeros(VOCABULARY, np.int64), np.ones(VOCABULARY, bool)
        if kind == "eagle":
            arrays["fc.weight"][:] = np.eye(WIDTH, 2 * WIDTH, k=WIDTH)

    return change


def opened(target: Path, heads: Path, parallel: int = 3) -> DraftModelFile:
    file = open_model(target)
    model = build_model(file, CONTEXT)
    tokenizer = load_tokenizer(file)
    return open_draft_model(heads, file, model, tokenizer, parallel=parallel, threads=2)
