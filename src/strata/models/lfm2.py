"""LFM2, dense or with experts: gated short convolutions, every few layers attention
(arXiv:2511.23404)."""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.rope import read_rope
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Part, Tensor, on_layers
from strata.program import Builder, Model

_TYPES = {"conv", "full_attention"}


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of an LFM2."""
    attends, taps = attending(c), read_taps(c)
    stored, name = "{p}layers.{i}.conv.", "blk.{i}.shortconv."
    convolution = {
        f"{name}conv.weight": Tensor(f"{stored}conv.weight", (c.width, taps), unit_axes=True),
        f"{name}out_proj.weight": Tensor(f"{stored}out_proj.weight", (c.width, c.width)),
    }
    for number, part in enumerate("bcx"):
        whole = (f"{name}in_proj.weight", f"{stored}in_proj.weight", number * c.width, 3 * c.width)
        convolution[f"{name}in_{part}.weight"] = Tensor(
            None, (c.width, c.width), part=Part(*whole), apart=False
        )
    attention = {
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim),
    }
    names = {"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
    for canonical, t in attention.items():
        found = t.huggingface or ""
        for ours, theirs in names.items():
            found = found.replace(f".{ours}.", f".{theirs}.")
        attention[canonical] = replace(t, huggingface=found)
    ffn = experts.mixture_tensors(c, _mixture(c))
    for part, letter in (("gate", "w1"), ("up", "w3"), ("down", "w2")):
        key = f"blk.{{i}}.ffn_{part}.weight"
        if key not in ffn:
            continue
        ffn[key] = replace(ffn[key], huggingface=f"{{p}}layers.{{i}}.feed_forward.{letter}.weight")
    frame = decoder.frame_tensors(c)
    # The last norm, which files name as if it came after the embedding.
    del frame["output_norm.weight"]
    return {
        **frame,
        "token_embd_norm.weight": Tensor("{p}embedding_norm.weight", (c.width,)),
        **decoder.norm_tensors(c, attn_norm="operator_norm", ffn_norm="ffn_norm"),
        **on_layers(attention, [i for i in range(c.layers) if attends[i]]),
        **on_layers(convolution, [i for i in range(c.layers) if not attends[i]]),
        **ffn,
    }


def _mixture(c: Config) -> experts.Mixture | None:
    names = experts.HuggingFaceNames(
        block="feed_forward", gate="w1", up="w3", down="w2", selection="expert_bias"
    )
    scoring = "softmax" if c.keys.kind == "gguf" else "sigmoid"
    return experts.read_mixture(c, scoring=scoring, renormalise=True, shared=0, names=names)


def attending(c: Config) -> list[bool]:
    """Which layers have attention."""
    if c.keys.kind == "gguf":
        return [n > 0 for n in c.keys.integers("kv_heads", c.layers)]
    listed = c.keys.texts("layer_types", c.layers, _TYPES)
    return [kind != "conv" for kind in listed or ["full_attention"] * c.layers]


def read_taps(c: Config) -> int:
    """Of the convolutions."""
    return c.keys.integer("conv_taps", low=2, high=64)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of an LFM2 file, with experts or without."""
    gguf = file.kind == "gguf"
    c = read_config(file, architecture, context, mixed=True, tied=True, experts=True)
    if gguf:
        window = c.keys.integer("window", 0, low=0)
        c = replace(c, windows=(window,) * c.layers)
    elif _mixture(c) is None:
        c = replace(c, ffn=_adjusted(c))
    elif not c.keys.flag("expert_norm", True):
        raise ConfigError("'norm_topk_prob' is false: this architecture renormalises")
    attends, taps = attending(c), read_taps(c)
    catalog = Catalog(file, tensors(c), c.layers, harmless=decoder.harmless(c))
    rope = read_rope(c, "neox", base=1e6)
    eps = c.keys.number("rms_eps", 1e-5, low=1e-12, high=1.0)
    kept, m = Kept(), _mixture(c)

    def convolution(b: Builder, x: str, i: int) -> str:
        name = f"blk.{i}.shortconv."
        with b.unit("conv"):
            before, after, x = (b.matmul(x, f"{name}in_{part}.weight") for part in "bcx")
            layer = kept.rows(taps, c.width)
            y = b.short_conv(b.mul(before, x), f"{name}conv.weight", layer=layer)
            return b.matmul(b.mul(after, y), f"{name}out_proj.weight")

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if attends[i]:
            number = kept.kv(c, i)
            h = decoder.attention(b, c, catalog, h, i, rope=rope, norm_eps=eps, layer=number)
        else:
            h = convolution(b, h, i)
        x = b.add(x, h)
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        return b.add(x, experts.feed_forward(b, catalog, m, h, i, scaled=False))

    return decoder.normed(c, catalog, layer, eps, state=kept.state, norm="token_embd_norm.weight")


def _adjusted(c: Config) -> int:
    """The width of the feed-forward: two thirds of what config.json says, rounded up."""
    if not c.keys.flag("ffn_adjusted", True):
        return c.ffn
    multiple = c.keys.integer("ffn_multiple", 256)
    width = int(c.keys.number("ffn_multiplier", 1.0) * int(2 * c.ffn / 3))
    return -(-width // multiple) * multiple
