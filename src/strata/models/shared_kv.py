"""Attention of Gemma 3n and 4: values have a norm without weights, and the last layers read the
keys and values of earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from strata.models import decoder
from strata.models.config import Config
from strata.models.errors import ConfigError
from strata.models.rope import Rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, LayerState, PagedKV, Shared


def kept_by(c: Config, default: int = 0) -> list[int]:
    """For each layer the one that keeps the keys and values that it reads: itself, but for the last
    ones of some models, which read those of the last layer of their kind before them. ``default``
    is how many that are where the file does not say."""
    shared = c.keys.integer("shared_kv_layers", default, low=0, high=c.layers - 1)
    first = c.layers - shared
    sources = list(range(first))
    for i in range(first, c.layers):
        kind = [j for j in range(first) if bool(c.windows[j]) == bool(c.windows[i])]
        if not kind:
            key = c.keys.find("shared_kv_layers")[0]
            raise ConfigError(f"'{key}' is {shared}: no layer keeps what layer {i} reads")
        sources.append(kind[-1])
    return sources


def kept(layers: Sequence[Config], sources: Sequence[int]) -> list[LayerState]:
    """What layers keep."""
    return [
        PagedKV(c.kv_heads, c.head_dim, c.head_dim, c.windows[i])
        if sources[i] == i
        else Shared(sources[i])
        for i, c in enumerate(layers)
    ]


def tensors(c: Config, own: bool) -> dict[str, Tensor]:
    """Attention of a layer; ``own``: it keeps keys and values."""
    bias = c.keys.flag("attention_bias", False)
    found = {
        **decoder.attention_tensors(c, bias=bias, out_bias=bias),
        **decoder.qk_norm_tensors(c.head_dim, c.head_dim),
    }
    others = ("attn_k.", "attn_v.", "attn_k_norm.")
    return found if own else {n: t for n, t in found.items() if not any(o in n for o in others)}


def unused(sources: Sequence[int]) -> tuple[str, ...]:
    """Patterns of tensors of layers that keep nothing, which a file may hold all the same."""
    numbers = "|".join(str(i) for i, source in enumerate(sources) if source != i) or r"(?!)"
    return (
        rf"blk\.({numbers})\.attn_(k|v|k_norm)\..*",
        rf".*layers\.({numbers})\.self_attn\.(k_proj|v_proj|k_norm)\..*",
    )


def attention(
    b: Builder, c: Config, catalog: Catalog, x: str, i: int, *, source: int, rope: Rope, eps: float
) -> str:
    """Attention of layer i over what layer ``source`` keeps. Values are normed, and are the keys
    before their own norm where a file has none."""
    name = f"blk.{i}.attn_"
    k = v = None
    with b.unit("attention"):
        q = decoder.product(b, catalog, x, f"{name}q")
        if source == i:
            k = v = decoder.product(b, catalog, x, f"{name}k")
            if catalog.has(f"{name}v.weight"):
                v = decoder.product(b, catalog, x, f"{name}v")
    q = decoder.rotate(b, c, b.rms_norm(q, f"{name}q_norm.weight", eps), rope)
    if k is not None and v is not None:
        k = decoder.rotate(b, c, b.rms_norm(k, f"{name}k_norm.weight", eps), rope)
        v = b.rms_norm(v, None, eps, c.head_dim)
    mixed = b.attention(
        q,
        k,
        v,
        layer=source,
        heads=c.heads,
        kv_heads=c.kv_heads,
        k_dim=c.head_dim,
        v_dim=c.head_dim,
        scale=1.0,
        window=c.windows[i],
    )
    with b.unit("attention"):
        return decoder.product(b, catalog, mixed, f"{name}output")
