"""The tensors of an architecture of ``variants.py``, and the sizes of its layers."""

from __future__ import annotations

import re
from dataclasses import replace

from strata.models import decoder
from strata.models.config import MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.experts import Mixture, Routing, chunk_tensors, mixture_tensors
from strata.models.tensors import Part, Tensor
from strata.models.variants import Variant

_FUSED = "blk.{i}.ffn_up.weight", ""


def layer_config(c: Config, i: int) -> Config:
    """The Config with the heads and the feed-forward width of layer i, which may be 0."""
    heads = c.keys.integers("heads", c.layers, high=MAX_WIDTH)[i]
    kv_heads = c.keys.integers("kv_heads", c.layers, heads, high=MAX_WIDTH)[i] if heads else 0
    if kv_heads and heads % kv_heads:
        key = c.keys.find("kv_heads")[0]
        raise ConfigError(f"'{key}' is {kv_heads} in layer {i}, no divisor of {heads}")
    listed = c.keys.integers("ffn", c.layers, high=16 * MAX_WIDTH)
    # What was halved for one layer is for all.
    ffn = listed[i] * c.ffn // next(n for n in listed if n)
    return replace(c, heads=heads, kv_heads=kv_heads, ffn=ffn)


def tensors(
    c: Config, v: Variant, layers: list[Config], m: Mixture | None = None
) -> dict[str, Tensor]:
    """What the file must hold, and what it may."""
    named = {name: _outside(v, name, t) for name, t in _frame(c, v).items()}
    named |= decoder.rope_tensors(c)
    for i, layer in enumerate(layers):
        routed = m if m is not None and m.layers[i] else None
        for name, tensor in _layer(layer, v, routed).items():
            stored = _stored(v, name, tensor)
            named[_at(name, i)] = replace(
                stored,
                huggingface=stored.huggingface and _at(stored.huggingface, i),
                part=_part_at(stored.part, i),
            )
    unused = re.compile(v.unused)
    return {name: tensor for name, tensor in named.items() if not unused.fullmatch(name)}


def _at(name: str, i: int) -> str:
    return name.replace("{i}", str(i))


def _part_at(part: Part | None, i: int) -> Part | None:
    if part is None:
        return None
    return replace(part, gguf=_at(part.gguf, i), huggingface=_at(part.huggingface, i))


# What most directories call them.
_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
}


def _stored(v: Variant, name: str, tensor: Tensor) -> Tensor:
    """A layer's tensor with the name that directories have for it, if they are meant."""
    if v.directory is None:
        part = tensor.part and replace(tensor.part, huggingface="")
        return replace(tensor, huggingface=None, part=part)
    stem, kind = name.removeprefix("blk.{i}.").rsplit(".", 1)
    names = {**_NAMES, **v.directory.names}
    theirs = names.get(f"{stem}.{kind}") or (stem in names and f"{names[stem]}.{kind}")
    if theirs:
        one, _, other = theirs.partition("|")
        tensor = replace(tensor, huggingface="{p}layers.{i}." + one)
        if other:
            one = f"{{p}}layers.{{i}}.{one}.{kind}"
            part = Part("", "{p}layers.{i}." + other, 0, tensor.shape[0])
            tensor = replace(tensor, huggingface=one, part=part)
    if tensor.part and stem in ("attn_q", "attn_k", "attn_v") and "attn_qkv" in names:
        whole = f"{{p}}layers.{{i}}.{names['attn_qkv']}.{kind}"
        tensor = replace(tensor, part=replace(tensor.part, huggingface=whole))
    if stem in v.directory.turned:
        tensor = replace(tensor, transform="transpose")
    if v.directory.less_one and "_norm" in stem and kind == "weight":
        tensor = replace(tensor, transform="add_one")
    for whole, parts in v.directory.fused.items():
        if stem in parts and kind == "weight":
            rows = tensor.shape[-2]
            place = (rows * parts.index(stem), rows * len(parts))
            part = Part("", "{p}layers.{i}." + whole, *place)
            tensor = replace(tensor, huggingface=None, part=part)
    return tensor if v.directory.layers == "layers" else _moved(tensor, v.directory.layers)


def _moved(tensor: Tensor, layers: str) -> Tensor:
    """The tensor below another word for the layers."""

    def at(name: str | None) -> str:
        return (name or "").replace("{p}layers.", f"{{p}}{layers}.", 1)

    part = tensor.part and replace(tensor.part, huggingface=at(tensor.part.huggingface))
    return replace(tensor, huggingface=at(tensor.huggingface), part=part)


def _outside(v: Variant, name: str, tensor: Tensor) -> Tensor:
    """What is no layer's, with the name that directories have for it, if they are meant."""
    if v.directory is None:
        return tensor
    stem, kind = name.rsplit(".", 1)
    theirs = v.directory.frame.get(stem)
    if theirs:
        tensor = replace(tensor, huggingface=f"{theirs}.{kind}")
    if v.directory.less_one and name == "output_norm.weight":
        tensor = replace(tensor, transform="add_one")
    return tensor


def _frame(c: Config, v: Variant) -> dict[str, Tensor]:
    table = decoder.frame_tensors(c)
    if v.weightless:
        del table["output_norm.weight"]
    elif v.norm == "layer" or v.norm_bias:
        table["output_norm.bias"] = Tensor("{p}norm.bias", (c.width,), optional=True)
    if v.embed_norm == "weights":
        for kind in ("weight", "bias"):
            table[f"token_embd_norm.{kind}"] = Tensor(None, (c.width,), optional=kind == "bias")
    if v.positions:
        table["position_embd.weight"] = Tensor(None, (c.trained_context, c.width), optional=True)
    table |= decoder.last_bias(c)
    if c.architecture == "gemma-embedding":
        inner = c.keys.integer("dense_inner", c.width, high=16 * MAX_WIDTH)
        table["dense_2.weight"] = Tensor(None, (inner, c.width), optional=True)
        table["dense_3.weight"] = Tensor(None, (c.width, inner), optional=True)
    if c.keys.flag("head_bias", False):
        table["output.bias"] = Tensor("lm_head.bias", (c.vocab,))
    return table


def _layer(c: Config, v: Variant, m: Mixture | None) -> dict[str, Tensor]:
    """The tensors of one layer, whose sizes ``c`` has, and which has the mixture ``m`` if any."""
    out: dict[str, Tensor] = {}
    if c.heads:
        out |= _attention(c, v)
    if c.ffn:
        out |= _ffn(c, v, m)
    if v.skip:
        out["blk.{i}.layer_output_scale.weight"] = Tensor(None, (1,))
    return out


def _norm(
    c: Config, v: Variant, name: str, width: int = 0, optional: bool = False
) -> dict[str, Tensor]:
    if v.weightless:
        return {}
    shape = (width or c.width,)
    named = {f"blk.{{i}}.{name}.weight": Tensor(None, shape, optional)}
    if v.norm == "layer" or v.norm_bias:
        named[f"blk.{{i}}.{name}.bias"] = Tensor(None, shape, optional=True)
    return named


def _after(c: Config, v: Variant, name: str) -> dict[str, Tensor]:
    """A norm after a half: PLaMo's files leave the kind out of its name, some of Grok's have the
    usual one."""
    other = "post_ffw_norm.weight" if name == "layer_output_norm" else name
    part = Part(f"blk.{{i}}.{other}", "", 0, c.width)
    return {key: replace(t, part=part) for key, t in _norm(c, v, name).items()}


def _attention(c: Config, v: Variant) -> dict[str, Tensor]:
    out: dict[str, Tensor] = {}
    if c.kv_heads:
        d = v.directory
        free = d is not None and d.bias == "free"
        bias = free or (d is not None and d.bias != "" and c.keys.flag("attention_bias", d.biased))
        every = bias and d is not None and d.bias != "qkv"
        made = decoder.attention_tensors(c, bias=bias, out_bias=every)
        if d is not None and d.by_head:
            rows = c.q_width + 2 * c.kv_width
            made = {name: t for name, t in made.items() if "attn_output" in name}
            made["blk.{i}.attn_qkv.weight"] = Tensor(None, (rows, c.width))
            made["blk.{i}.attn_qkv.bias"] = Tensor(None, (rows,), optional=True)
        out |= _free(made, free)
    else:
        out["blk.{i}.attn_output.weight"] = Tensor(None, (c.width, c.width))
        out["blk.{i}.attn_output.bias"] = Tensor(None, (c.width,), optional=True)
    if v.before:
        out |= _norm(c, v, "attn_norm", optional=v.bare_first)
    if v.parallel == "always":
        out |= _norm(c, v, "attn_norm_2", optional=True)
    if v.after:
        out |= _after(c, v, v.after_names[0])
    if v.qk_norm:
        wide = {"head": (1, 1), "heads": (c.heads, c.kv_heads), "all": (c.heads, c.kv_heads)}
        for letter, count in zip("qk", wide[v.qk_norm], strict=True):
            if v.weightless and letter == "k":
                continue
            dim = 1 if v.weightless else c.head_dim
            shape = (count, dim) if v.qk_norm == "heads" else (count * dim,)
            free = v.qk_free or (v.qk_norm != "head" and not v.weightless)
            for kind in ("weight", "bias"):
                out[f"blk.{{i}}.attn_{letter}_norm.{kind}"] = Tensor(
                    None, shape, optional=free or kind == "bias"
                )
    if v.gate:
        rows = c.heads if v.gate == "head" else c.q_width
        out["blk.{i}.attn_gate.weight"] = Tensor(None, (rows, c.width))
        out |= decoder.scale_tensors(c, "attn_gate")
    if v.sub_norms:
        out |= _norm(c, v, "attn_sub_norm", c.q_width)
    if v.sinks:
        out["blk.{i}.attn_sinks.weight"] = Tensor(None, (c.heads,), optional=v.sinks == "some")
    return out


def _ffn(c: Config, v: Variant, m: Mixture | None) -> dict[str, Tensor]:
    out = _products(c, v) if m is None else _experts(c, v, m)
    if v.before and v.parallel != "always":
        missing = v.qk_norm == "heads" and not v.weightless
        out |= _norm(c, v, v.before_ffn, optional=missing)
    if v.after:
        out |= _after(c, v, v.after_names[1])
    if v.sub_norms:
        out |= _norm(c, v, "ffn_sub_norm", c.ffn)
    return out


def _experts(c: Config, v: Variant, m: Mixture) -> dict[str, Tensor]:
    r = v.mixture or Routing()
    out, beside = mixture_tensors(c, replace(m, layers=(True,)), bias=r.biased), r.beside
    if r.chunks:
        out |= chunk_tensors(c, m)
    if beside == "entry":
        out |= _products(replace(c, ffn=c.width), v) | _norm(c, v, "ffn_norm_exps")
    elif beside == "mean":
        out |= {name: replace(t, optional=True) for name, t in _products(c, v).items()}
    return out


def _free(tensors: dict[str, Tensor], free: bool) -> dict[str, Tensor]:
    """The tensors, of which biases may be left out where that is ``free``."""
    return {
        name: replace(t, optional=True) if free and name.endswith(".bias") else t
        for name, t in tensors.items()
    }


def _products(c: Config, v: Variant) -> dict[str, Tensor]:
    free = v.directory is not None and v.directory.bias == "free"
    out = _free(decoder.gated_tensors(c, bias=free), free)
    if not v.gated:
        out = {name: tensor for name, tensor in out.items() if "ffn_gate" not in name}
    if v.fused:
        for start, part in enumerate(("gate", "up")):
            out[f"blk.{{i}}.ffn_{part}.weight"] = Tensor(
                None,
                (c.ffn, c.width),
                part=Part(*_FUSED, start * c.ffn, 2 * c.ffn),
                apart=False,
            )
            out |= decoder.scale_tensors(c, f"ffn_{part}", fused="ffn_up")
        out = {name: tensor for name, tensor in out.items() if ".bias" not in name}
    if v.act_scales:
        out["blk.{i}.ffn.act.scales"] = Tensor(None, (c.ffn,), optional=True)
    return out
