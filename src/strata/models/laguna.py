"""Laguna (Poolside): attention with windows and a softplus gate for each head or each column, heads
that differ from layer to layer, experts beside a shared one.

Layers with a window have a rotation of their own, over dimensions of their own.
"""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.composed_tensors import layer_config
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import Keys
from strata.models.rope import read_local_rope, read_rope
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model, PagedKV

# As they are published; transformers moves them where it loads them.
_NAMES = experts.HuggingFaceNames(
    shared="shared_expert", selection="experts.e_score_correction_bias"
)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Laguna file."""
    keys = Keys(file, architecture)
    heads = keys.raw("num_attention_heads_per_layer")
    if heads is not None:
        keys = keys.stating({"heads": heads})
    if keys.raw("moe_router_logit_softcapping"):
        raise ConfigError("'moe_router_logit_softcapping' is set: this is not built")
    c = read_config(file, architecture, context, experts=True, uneven=True, keys=keys)
    c = _with_windows(c)
    layers = [layer_config(c, i) for i in range(c.layers)]
    count = c.keys.integer("shared_experts", 1, low=0, high=experts.MAX_EXPERTS)
    width = c.keys.integer("shared_ffn", 0, low=0) or count * c.keys.integer("expert_ffn", c.ffn)
    # Directories do not say that weights are renormalised.
    renormalise = None if file.kind == "gguf" else True
    m = experts.read_mixture(
        c, scoring="sigmoid", renormalise=renormalise, shared=width, names=_NAMES
    )
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, attn_norm="input_layernorm", ffn_norm="post_attention_layernorm"),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim),
        **experts.mixture_tensors(c, m),
    }
    bias = file.kind != "gguf" and c.keys.flag("attention_bias", False)
    for i, own in enumerate(layers):
        attention = decoder.attention_tensors(own, bias=bias, out_bias=bias)
        names = (f"blk.{i}.attn_gate.weight", f"model.layers.{i}.self_attn.g_proj.weight")
        gate = next((file.tensors[name] for name in names if name in file.tensors), None)
        rows = own.heads if gate is None or gate.shape[0] == own.heads else own.q_width
        attention["blk.{i}.attn_gate.weight"] = Tensor(
            "{p}layers.{i}.self_attn.g_proj.weight", (rows, c.width)
        )
        tensors |= on_layers(attention, [i])
    unused = (*decoder.harmless(c), r"blk\.\d+\.attn_gate\.scale")
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    full, local = read_rope(c, "neox"), read_local_rope(c, "neox")
    eps = decoder.rms_eps(c)

    def attend(b: Builder, x: str, i: int) -> str:
        rope = local if c.windows[i] else full
        return decoder.attention(
            b, layers[i], catalog, x, i, rope=rope, norm_eps=eps, gate="softplus"
        )

    return decoder.pre_norm_model(
        c,
        catalog,
        None,
        attend=attend,
        state=[
            PagedKV(own.kv_heads, own.head_dim, own.v_dim, c.windows[i])
            for i, own in enumerate(layers)
        ],
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i, scaled=False),
    )


def _with_windows(c: Config) -> Config:
    """Windows as the file lists them, else in all layers but every fourth from the first on."""
    window = c.keys.integer("window", 0, low=0)
    if c.keys.stated("layer_types") or isinstance(c.keys.find("window_pattern")[1], list):
        return decoder.with_windows(c, window, 4)
    period = c.keys.integer("window_pattern", 4, low=0)
    full = [period > 0 and i % period == 0 for i in range(c.layers)]
    return replace(c, windows=tuple(0 if f else window for f in full))
