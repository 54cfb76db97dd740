"""MiniMax-M3: Llama's layers with q and k norms and a partial rotation, then experts beside a
shared one, all of them with gpt-oss's clamped SwiGLU.

Its indexer, which chooses among blocks of positions, is left out where it would choose all of them
(``config.read_trained_context``).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import MAX_LAYERS, read_config
from strata.models.errors import ConfigError
from strata.models.keys import Keys
from strata.models.llama import MIXTRAL
from strata.models.rope import read_rope
from strata.models.tensors import Catalog
from strata.program import Builder, Model

_LIMIT = 7.0
"""Of gates and ups before they are multiplied."""
_GAIN = 1.702
_NAMES = replace(MIXTRAL, selection="e_score_correction_bias")
_SPARSE = ("full_attention", "minimax_m3_sparse")


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a MiniMax-M3 file."""
    keys, gguf = Keys(file, architecture), file.kind == "gguf"
    keys = keys if gguf else keys.stating(_stated(keys))
    c = read_config(file, architecture, context, experts=True, keys=keys)
    renormalise = None if gguf else True
    options: dict[str, Any] = {"renormalise": renormalise, "clamp": "oai", "limit": _LIMIT}
    m = experts.read_mixture(c, scoring="sigmoid", names=_NAMES, **options)
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    tensors = {
        **decoder.frame_tensors(c, "add_one"),
        **decoder.norm_tensors(c, "add_one", **norms),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim, "add_one"),
        **experts.mixture_tensors(c, m),
    }
    unused = (*decoder.harmless(c), r"blk\.\d+\.indexer\..*", r".*\.self_attn\.index(er\.|_).*")
    catalog = Catalog(file, tensors, c.layers, harmless=unused)

    def clamped(b: Builder, x: str, i: int, kind: str) -> str:
        """What an expert does, for every row: gate * sigmoid(1.702 gate) * (up + 1)."""
        with b.unit("ffn"):
            gate, up = (b.matmul(x, f"blk.{i}.ffn_{p}{kind}.weight") for p in ("gate", "up"))
            gate, up = b.clamp(gate, -math.inf, _LIMIT), b.clamp(up, -_LIMIT, _LIMIT)
            mixed = b.add(b.glu(gate, up, "gelu_quick"), b.activation(gate, "gelu_quick"))
            return b.matmul(mixed, f"blk.{i}.ffn_down{kind}.weight")

    def feed_forward(b: Builder, x: str, i: int) -> str:
        if m is None or not m.layers[i]:
            return clamped(b, x, i, "")
        out = experts.routed(b, catalog, m, x, i, scaled=False)
        return b.add(out, clamped(b, x, i, "_shexp")) if m.shared else out

    rope = read_rope(c, "neox")
    return decoder.pre_norm_model(c, catalog, rope, qk_norm=True, feed_forward=feed_forward)


def _stated(keys: Keys) -> dict[str, Any]:
    """What a directory says in other words: widths with experts and without, which layers have
    some. Its numbers of the SwiGLU are those that are built."""
    for name, built in (("expert_clamp", _LIMIT), ("clamp_gain", _GAIN)):
        if keys.number(name, built) != built:
            raise ConfigError(f"'{keys.find(name)[0]}': {built:g} is expected")
    layers = keys.integer("layers", high=MAX_LAYERS)
    kinds = keys.texts("layer_types", layers, _SPARSE) or ()
    if _SPARSE[1] in kinds and not keys.stated("indexer_top_k"):
        key = keys.find("indexer_top_k")[0]
        raise ConfigError(f"'{key}' is missing: without it the model cannot be built")
    width = keys.integer("ffn")
    dense = keys.integer("dense_ffn", width)
    return {"ffn": dense, "expert_ffn": width, **experts.kinds_of(keys, layers)}
