"""Encoders against transformers: rows of a whole text, in float32. Needs torch and transformers.

Directories that transformers wrote are read as they are; for GGUF files their weights are written
under the names that llama.cpp gives them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.backends.base import Backend
from strata.backends.cpu.backend import CpuBackend
from strata.formats import open_model
from strata.formats.gguf_writer import write_gguf
from strata.formats.writing import TensorSource
from strata.quant import by_name
from support.forward import Forward

pytestmark = pytest.mark.slow

VOCABULARY, WIDTH, FFN, LAYERS, HEADS, CONTEXT = 272, 64, 96, 4, 4, 256
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
BERT = {
    r"embeddings\.word_embeddings|embed_tokens|embeddings\.tok_embeddings": "token_embd",
    r"embeddings\.position_embeddings": "position_embd",
    r"embeddings\.token_type_embeddings": "token_types",
    r"embeddings\.(LayerNorm|norm)": "token_embd_norm",
    r"norm|final_norm": "output_norm",
}
# By llama.cpp's names of what is in a layer.
LAYER = {
    "attn_q": r"attention\.self\.query|self_attn\.q_proj",
    "attn_k": r"attention\.self\.key|self_attn\.k_proj",
    "attn_v": r"attention\.self\.value|self_attn\.v_proj",
    "attn_qkv": r"attn\.Wqkv",
    "attn_output": r"attention\.output\.dense|self_attn\.o_proj|attn\.Wo",
    "ffn_gate": r"mlp\.gate_proj",
    "ffn_up": r"intermediate\.dense|mlp\.up_proj|mlp\.Wi",
    "ffn_down": r"output\.dense|mlp\.down_proj|mlp\.Wo",
    "attn_q_norm": r"self_attn\.q_norm",
    "attn_k_norm": r"self_attn\.k_norm",
}
AFTER = {
    "attn_output_norm": r"attention\.output\.LayerNorm|post_attention_layernorm",
    "layer_output_norm": r"output\.LayerNorm|post_mlp_layernorm",
}
BEFORE = {
    "attn_norm": r"input_layernorm|attn_norm",
    "ffn_norm": r"post_attention_layernorm|mlp_norm",
}
GEMMA = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
LAYER_EPS = {"attention.layer_norm_epsilon": 1e-12}
RMS_EPS = {"attention.layer_norm_rms_epsilon": 1e-6}
WINDOWS = {"attention.sliding_window": 16, "rope.freq_base_swa": 10000.0, "rope.freq_base": 1e6}

GEMMA_SIZES = {
    "use_bidirectional_attention": True,
    "sliding_window": 16,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2,
}
GEMMA_KEYS = {
    **RMS_EPS,
    **WINDOWS,
    "attention.key_length": 16,
    "attention.sliding_window_pattern": [True, True, False, False],
}
DENSE = {"dense_2_feat_out": 80}


def random_model(kind: str, **settings: Any) -> tuple[Any, Any]:
    """A model of transformers, and what it gives for tokens."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **settings})
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    model = getattr(transformers, f"{kind}Model")(config).float().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_().mul_(0.3 if weight.ndim == 1 else weight.shape[-1] ** -0.5)

    def run(tokens: Any) -> Any:
        with torch.no_grad():
            ids = torch.tensor(tokens)[None]
            return model(ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0].numpy()

    return model, run


def compare(path: Path, run: Any, counts: tuple[int, ...] = (1, 7, 150)) -> None:
    """Both backends against what transformers gives, over several blocks of keys."""
    backends: tuple[Backend | None, ...] = (None, CpuBackend(threads=2))
    for count in counts:
        tokens = np.random.default_rng(count).integers(3, VOCABULARY, count)
        expected = run(tokens)
        for backend in backends:
            with open_model(path) as file:
                got = Forward(file, backend=backend, embedding=True).logits(tokens.tolist())
            assert got.shape == expected.shape
            # The native products take bf16 or int8 activations.
            most = 1e-3 if backend is None else 0.1
            assert np.abs(got - expected).max() < most * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "XLMRoberta"])
def test_directories_of_transformers(kind: str, tmp_path: Path) -> None:
    offset = 0 if kind == "Bert" else 2
    model, run = random_model(
        kind, max_position_embeddings=CONTEXT + offset, pad_token_id=offset // 2
    )
    model.save_pretrained(tmp_path)
    compare(tmp_path, run)


@pytest.mark.parametrize(
    ("architecture", "kind", "settings", "names", "keys"),
    [
        ("bert", "Bert", {}, AFTER, LAYER_EPS),
        (
            "nomic-bert",
            "NomicBert",
            {},
            AFTER,
            {**LAYER_EPS, "rope.freq_base": 1000.0},
        ),
        (
            "modern-bert",
            "ModernBert",
            {"local_attention": 16, "global_attn_every_n_layers": 3},
            BEFORE,
            {
                "attention.layer_norm_epsilon": 1e-5,
                **WINDOWS,
                "rope.freq_base": 160000.0,
                "attention.sliding_window_pattern": 3,
            },
        ),
        (
            "eurobert",
            "EuroBert",
            {"rope_parameters": {"rope_type": "default", "rope_theta": 250000.0}},
            BEFORE,
            {"attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 250000.0},
        ),
        (
            "gemma-embedding",
            "Gemma3Text",
            GEMMA_SIZES,
            GEMMA,
            GEMMA_KEYS,
        ),
        ("gemma-embedding", "Gemma3Text", GEMMA_SIZES, GEMMA, {**GEMMA_KEYS, **DENSE}),
    ],
)
def test_gguf_files(
    architecture: str,
    kind: str,
    settings: dict[str, Any],
    names: Mapping[str, str],
    keys: Mapping[str, Any],
    tmp_path: Path,
) -> None:
    model, run = random_model(kind, **settings)
    metadata: dict[str, Any] = {
        "general.architecture": architecture,
        f"{architecture}.block_count": LAYERS,
        f"{architecture}.embedding_length": WIDTH,
        f"{architecture}.feed_forward_length": FFN,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.context_length": CONTEXT,
        **{f"{architecture}.{key}": value for key, value in keys.items()},
    }
    tensors = []
    for name, value in model.state_dict().items():
        stem, kind_of = name.rsplit(".", 1)
        found = re.fullmatch(r"(?:encoder\.)?(?:layers|layer)\.(\d+)\.(.*)", stem)
        table = {**LAYER, **names} if found else {v: k for k, v in BERT.items()}
        part = found[2] if found else stem
        fitting = [n for n, pattern in table.items() if re.fullmatch(pattern, part)]
        if not fitting:
            assert "pooler" in name or "rotary" in name or "position_ids" in name, name
            continue
        array = value.float().numpy()
        if architecture == "gemma-embedding" and array.ndim == 1:
            array = array + 1
        where = f"blk.{found[1]}." if found else ""
        stored = f"{where}{fitting[-1]}.{kind_of}"
        tensors.append(TensorSource.of(stored, array.shape, by_name("F32"), array))
    path, given = tmp_path / "model.gguf", run
    if "dense_2_feat_out" in keys:
        # Two products behind the pooling of EmbeddingGemma, here of every row.
        rng, inner = np.random.default_rng(2), keys["dense_2_feat_out"]
        for name, shape in (("dense_2", (inner, WIDTH)), ("dense_3", (WIDTH, inner))):
            made = (rng.standard_normal(shape) * shape[1] ** -0.5).astype(np.float32)
            tensors.append(TensorSource.of(f"{name}.weight", shape, by_name("F32"), made))
            given = partial(products, given, made)
    write_gguf(path, metadata, tensors)
    # Products of the last Segment take as many rows at once as there is room for logits.
    compare(path, given, (1, 7, 60) if given is not run else (1, 7, 150))


def products(run: Any, matrix: Any, tokens: Any) -> Any:
    """What ``run`` gives for tokens, each row times a matrix."""
    return run(tokens) @ matrix.T
