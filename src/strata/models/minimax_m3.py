"""MiniMax-M3: Llama's layers with q and k norms and a partial rotation, then experts beside a
shared one, all of them with gpt-oss's clamped SwiGLU.

Its indexer, which chooses among blocks of positions, is left out where it would choose all of them
(``config.read_trained_context``).
"""

from __future__ import annotations

import math

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog
from strata.program import Builder, Model

_LIMIT = 7.0
"""Of gates and ups before they are multiplied."""


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a MiniMax-M3 file."""
    c = read_config(file, architecture, context, experts=True)
    m = experts.read_mixture(c, scoring="sigmoid", clamp="oai", limit=_LIMIT)
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim),
        **experts.mixture_tensors(c, m),
    }
    unused = (*decoder.harmless(c), r"blk\.\d+\.indexer\..*")
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
