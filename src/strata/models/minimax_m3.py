"""MiniMax-M3: Llama's layers with q and k norms and a partial rotation, then experts beside a
shared one, all of them with gpt-oss's clamped SwiGLU.

Indexers choose blocks of positions, for each head of keys its own: those whose best key weighs
most by a small query, and the last ones. Heads of keys are attended to one by one then, each with
a state of its own. Where no more positions come than are chosen, they are left out.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import MAX_LAYERS, MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import Keys
from strata.models.llama import MIXTRAL
from strata.models.rope import Rope, read_rope
from strata.models.sparse_index import unread
from strata.models.state_space import Kept
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model, PagedKV
from strata.records import dataclass

_LIMIT = 7.0
"""Of gates and ups before they are multiplied."""
_GAIN = 1.702
_NAMES = replace(MIXTRAL, selection="e_score_correction_bias")
_SPARSE = ("full_attention", "minimax_m3_sparse")


@dataclass(frozen=True)
class BlockIndex:
    """A query for each head of keys, and one key, of ``width``; ``most`` blocks of ``block``
    positions are chosen, of which the last are ``local``. Not all ``layers`` have one."""

    heads: int
    width: int
    most: int
    block: int
    local: int
    layers: tuple[bool, ...]

    def choose(self, b: Builder, x: str, i: int, rope: Rope, eps: float, kept: Kept) -> list[str]:
        """Positions that rows of layer i see, for each head of keys."""
        name, found = f"blk.{i}.indexer.", []
        for part in "qk":
            y = b.matmul(x, f"{name}{part}_proj.weight")
            y = b.rms_norm(y, f"{name}{part}_norm.weight", eps)
            found.append(
                b.rope(
                    y,
                    head_dim=self.width,
                    inv_freq=rope.inv_freq,
                    style=rope.style,
                    mscale=rope.mscale,
                    factors=rope.factors,
                )
            )
        layer = kept.add(PagedKV(1, self.width, 1, v_in_k=True, index=True))
        most = self.most * self.block
        chosen = b.top_keys(*found, layer=layer, most=most, block=self.block, local=self.local)
        return _parts(b, chosen, self.heads, most)


def _parts(b: Builder, x: str, count: int, width: int) -> list[str]:
    """x in so many parts of a width."""
    whole = count * width
    return [b.columns(x, head_dim=whole, start=i * width, width=width) for i in range(count)]


def _sparse_layers(keys: Keys, layers: int) -> tuple[bool, ...]:
    """Which layers have indexers; ``keys`` are as the file has them."""
    if keys.kind == "gguf":
        first = keys.integer("dense_layers", 0, low=0, high=layers)
        return tuple(i >= first for i in range(layers))
    kinds = keys.texts("layer_types", layers, _SPARSE)
    if kinds is not None:
        return tuple(kind == _SPARSE[1] for kind in kinds)
    return tuple(n > 0 for n in keys.integers("indexer_layers", layers, 0, high=1))


def _read_index(c: Config, layers: tuple[bool, ...]) -> BlockIndex | None:
    """What a file states of its indexers; None where no more positions come than are chosen."""
    most = c.keys.integer("indexer_top_k", 0, low=0)
    block = c.keys.integer("indexer_block", 1, low=0) or 1
    if not most or not any(layers) or c.trained_context <= most * block:
        return None
    heads = c.keys.integer("indexer_heads", high=4096)
    if heads != c.kv_heads:
        key = c.keys.find("indexer_heads")[0]
        raise ConfigError(f"'{key}' is {heads}: one for each of {c.kv_heads} heads of keys is read")
    if heads * most * block > MAX_WIDTH:
        key = c.keys.find("indexer_top_k")[0]
        raise ConfigError(f"'{key}' is {most}: of a row {MAX_WIDTH} positions are chosen at most")
    width = c.keys.integer("indexer_width", high=MAX_WIDTH)
    local = c.keys.integer("indexer_local", 1, low=0, high=most)
    return BlockIndex(heads, width, most, block, local, layers)


def _index_tensors(c: Config, index: BlockIndex | None) -> dict[str, Tensor]:
    if index is None:
        return {}
    found = {}
    for part, heads in (("q", index.heads), ("k", 1)):
        name, stored = f"blk.{{i}}.indexer.{part}", f"{{p}}layers.{{i}}.self_attn.index_{part}"
        shape = (heads * index.width, c.width)
        found[f"{name}_proj.weight"] = Tensor(f"{stored}_proj.weight", shape)
        found[f"{name}_norm.weight"] = Tensor(
            f"{stored}_norm.weight", (index.width,), transform="add_one"
        )
    return on_layers(found, [i for i, own in enumerate(index.layers) if own])


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a MiniMax-M3 file."""
    keys, gguf = Keys(file, architecture), file.kind == "gguf"
    keys = keys if gguf else keys.stating(_stated(keys))
    c = read_config(file, architecture, context, experts=True, keys=keys)
    renormalise = None if gguf else True
    options: dict[str, Any] = {"renormalise": renormalise, "clamp": "oai", "limit": _LIMIT}
    m = experts.read_mixture(c, scoring="sigmoid", names=_NAMES, **options)
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    index, kept, eps = _read_index(c, _sparse_layers(keys, c.layers)), Kept(), decoder.rms_eps(c)
    tensors = {
        **decoder.frame_tensors(c, "add_one"),
        **decoder.norm_tensors(c, "add_one", **norms),
        **decoder.attention_tensors(c, bias=False, out_bias=False),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim, "add_one"),
        **experts.mixture_tensors(c, m),
        **_index_tensors(c, index),
    }
    unused = (*decoder.harmless(c), *unread(index))
    catalog = Catalog(file, tensors, c.layers, harmless=unused)
    rope = read_rope(c, "neox")

    def attend(b: Builder, x: str, i: int) -> str:
        if index is None or not index.layers[i]:
            layer = kept.kv(c, i)
            return decoder.attention(b, c, catalog, x, i, rope=rope, norm_eps=eps, layer=layer)
        name = f"blk.{i}.attn_"
        with b.unit("attention"):
            q, k, v = (decoder.product(b, catalog, x, f"{name}{p}") for p in "qkv")
            chosen = index.choose(b, x, i, rope, eps, kept)
            q = decoder.rotate(b, c, b.rms_norm(q, f"{name}q_norm.weight", eps), rope)
            k = decoder.rotate(b, c, b.rms_norm(k, f"{name}k_norm.weight", eps), rope)
            each = (c.heads // c.kv_heads * c.head_dim, c.head_dim, c.v_dim)
            parts = (_parts(b, y, c.kv_heads, n) for y, n in zip((q, k, v), each, strict=True))
            out = ""
            for *qkv, seen in zip(*parts, chosen, strict=True):
                part = b.attention(
                    *qkv,
                    layer=kept.add(PagedKV(1, c.head_dim, c.v_dim, chosen=True)),
                    heads=c.heads // c.kv_heads,
                    kv_heads=1,
                    k_dim=c.head_dim,
                    v_dim=c.v_dim,
                    scale=1 / math.sqrt(c.head_dim),
                    chosen=seen,
                )
                out = b.join(out, part, heads=1) if out else part
            return decoder.product(b, catalog, out, f"{name}output")

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

    return decoder.pre_norm_model(
        c, catalog, rope, attend=attend, state=kept.state, feed_forward=feed_forward
    )


def _stated(keys: Keys) -> dict[str, Any]:
    """What a directory says in other words: widths with experts and without, which layers have
    some. Its numbers of the SwiGLU are those that are built."""
    for name, built in (("expert_clamp", _LIMIT), ("clamp_gain", _GAIN)):
        if keys.number(name, built) != built:
            raise ConfigError(f"'{keys.find(name)[0]}': {built:g} is expected")
    layers = keys.integer("layers", high=MAX_LAYERS)
    for name in ("indexer_top_k", "indexer_block") if any(_sparse_layers(keys, layers)) else ():
        if not keys.stated(name):
            key = keys.find(name)[0]
            raise ConfigError(f"'{key}' is missing: without it the model cannot be built")
    width = keys.integer("ffn")
    dense = keys.integer("dense_ffn", width)
    return {"ffn": dense, "expert_ffn": width, **experts.kinds_of(keys, layers)}
