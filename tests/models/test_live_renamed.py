"""Directories whose code transformers does not have, and whose layers are Llama's by other names:
its Llama, with tensors and settings renamed, gives their logits.

Needs torch and transformers.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from strata.formats import open_model
from support.forward import logits
from support.native_agreement import check_native
from support.random_weights import fill

pytestmark = pytest.mark.slow

HEADS, KV_HEADS, DIM = 4, 2, 16
EXAONE = {
    r"model\.layers\.": "transformer.h.",
    r"self_attn\.o_proj": "attn.attention.out_proj",
    r"self_attn\.": "attn.attention.",
    "input_layernorm": "ln_1",
    "post_attention_layernorm": "ln_2",
    "gate_proj": "c_fc_0",
    "up_proj": "c_fc_1",
    "down_proj": "c_proj",
    r"model\.embed_tokens": "transformer.wte",
    r"model\.norm": "transformer.ln_f",
}
INTERNLM2 = {
    r"self_attn\.o_proj": "attention.wo",
    r"self_attn\.wqkv": "attention.wqkv",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    r"mlp\.gate_proj": "feed_forward.w1",
    r"mlp\.up_proj": "feed_forward.w3",
    r"mlp\.down_proj": "feed_forward.w2",
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
}
KEYS = {
    "ExaoneForCausalLM": {
        "num_hidden_layers": "num_layers",
        "rms_norm_eps": "layer_norm_epsilon",
        "hidden_act": "activation_function",
    },
}


def by_head(tensors: dict[str, Any]) -> dict[str, Any]:
    """q, k and v of each layer in one tensor, key head after key head."""
    import torch

    out = dict(tensors)
    for name in [n for n in tensors if n.endswith("q_proj.weight")]:
        q, k, v = (out.pop(name.replace("q_proj", f"{p}_proj")) for p in "qkv")
        q = q.reshape(KV_HEADS, HEADS // KV_HEADS * DIM, -1)
        k, v = (x.reshape(KV_HEADS, DIM, -1) for x in (k, v))
        whole = torch.cat((q, k, v), dim=1).flatten(0, 1)
        out[name.replace("q_proj", "wqkv")] = whole
    return out


# What is above the settings of a text, where a model sees.
INTERNVL = {"architectures": ["InternVLChatModel"], "vision_config": {"hidden_size": 32}}
RENAMED: list[tuple[str, dict[str, str], dict[str, Any]]] = [
    ("ExaoneForCausalLM", EXAONE, {}),
    ("InternLM2ForCausalLM", INTERNLM2, {}),
    ("AquilaForCausalLM", {}, {}),
    ("InternLM3ForCausalLM", {}, {"attention_bias": True, "mlp_bias": True, "head_dim": 24}),
    ("LLaMAForCausalLM", {}, {"num_key_value_heads": 4}),
    ("YiForCausalLM", {}, {"rope_theta": 5e6}),
    ("InternVLChatModel", {"^": "language_model."}, {}),
]


@pytest.mark.parametrize(("architecture", "names", "settings"), RENAMED)
def test_logits_are_those_of_llama(
    architecture: str, names: dict[str, str], settings: dict[str, Any], tmp_path: Path
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    written = pytest.importorskip("safetensors.torch")
    sizes: dict[str, Any] = {
        "vocab_size": 272,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-3,
    }
    config = transformers.LlamaConfig(**{**sizes, **settings})
    torch.manual_seed(1)
    model = transformers.LlamaForCausalLM(config).float().eval()
    tokens = np.random.default_rng(1).integers(0, 272, 60)
    with torch.no_grad():
        fill(model)
        expected = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
    tensors = dict(model.state_dict())
    if architecture == "InternLM2ForCausalLM":
        tensors = by_head(tensors)
    for old, new in names.items():
        tensors = {re.sub(old, new, n): t for n, t in tensors.items()}
    whole = {n: t.contiguous() for n, t in tensors.items()}
    written.save_file(whole, tmp_path / "model.safetensors", metadata={"format": "pt"})
    keys = KEYS.get(architecture, {})
    stated = {keys.get(key, key): value for key, value in config.to_dict().items()}
    stated["architectures"] = [architecture]
    if architecture == INTERNVL["architectures"][0]:
        stated = {**INTERNVL, "llm_config": {**stated, "architectures": ["LlamaForCausalLM"]}}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with open_model(tmp_path) as file:
        for chunks in ([len(tokens)], [1] * len(tokens)):
            found = logits(file, tokens.tolist(), chunks=chunks)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
        check_native(file, tokens.tolist())
