"""Latent attention: keys and values of all heads are made from one short vector a position.

Source: DeepSeek-V2 (arXiv:2405.04434). Where a file has the two halves of what makes keys and
values apart, the first is applied to the query and the second to the outcome (the absorbed form):
then only the short vector and the rotated part of the key are kept, and the value is a part of the
key. Otherwise keys and values are made and kept for every head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from strata.models import decoder
from strata.models.config import MAX_WIDTH, Config
from strata.models.errors import ConfigError
from strata.models.keys import REQUIRED
from strata.models.rope import Rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, PagedKV
from strata.records import dataclass


@dataclass(frozen=True)
class Latent:
    """Widths: of the vectors from which queries (0: they are made at once) and keys and values are
    made, and of a head's parts: of its key without and with positions, of its value. The normed
    vectors are multiplied by ``q_scale`` and ``kv_scale``."""

    q_rank: int
    rank: int
    nope: int
    rope: int
    value: int
    absorbed: bool
    q_scale: float = 1.0
    kv_scale: float = 1.0

    @property
    def key(self) -> int:
        """Width of a head's key."""
        return self.nope + self.rope

    def state(self, heads: int, window: int = 0, *, chosen: bool = False) -> PagedKV:
        """What a layer keeps; ``chosen``: an indexer says what of it a row sees."""
        if self.absorbed:
            width = self.rank + self.rope
            return PagedKV(1, width, self.rank, window, v_in_k=True, chosen=chosen)
        return PagedKV(heads, self.key, self.value, window, chosen=chosen)


def read_latent(
    c: Config, *, absorbed: bool, local: bool = False, bare: bool = False
) -> tuple[Config, Latent]:
    """The widths that a file states, and the Config with heads as wide as their rotated part.

    ``local``: those of the layers with a sliding window, where a family has some of their own.
    ``bare``: no part of a key has positions.
    """
    keys, of = c.keys, "_local" if local else ""
    if keys.kind == "gguf":
        name = f"latent_key{of}" if keys.integer(f"latent_key{of}", 0, low=0) else "head_dim"
        key = keys.integer(name, high=MAX_WIDTH)
        rope = keys.integer("rope_dim", low=0, high=0 if bare else MAX_WIDTH)
        value = keys.integer(f"latent_value{of}", 0, low=0, high=MAX_WIDTH) or keys.integer(
            "value_dim", high=MAX_WIDTH
        )
        nope = key - rope
    else:
        nope = keys.integer(f"nope_dim{of}", high=MAX_WIDTH)
        key = keys.integer(f"head_dim{of}", 0, low=0, high=MAX_WIDTH) if local else 0
        rope = keys.integer(f"pe_dim{of}", max(key - nope, 0) or REQUIRED, high=MAX_WIDTH)
        value = keys.integer(f"v_head_dim{of}", high=MAX_WIDTH)
    if nope < (1 if absorbed else 0) or (rope < 2 and not bare):
        raise ConfigError(
            f"latent attention: keys of {nope + rope} of which {rope} are rotated; some must be, "
            f"and some not"
        )
    q_rank = keys.integer("q_rank", 0, low=0, high=MAX_WIDTH)
    if local and keys.kind == "huggingface":
        q_rank = keys.integer("q_rank_local", q_rank, high=MAX_WIDTH)
    rank = keys.integer(f"kv_rank{of}", high=MAX_WIDTH)
    latent = Latent(q_rank, rank, nope, rope, value, absorbed)
    if keys.kind == "huggingface":
        # All of that part is turned, whatever share of a key the file says it is.
        c = replace(c, keys=keys.stating({"rope_width": rope}))
    return replace(c, head_dim=max(rope, 1)), latent


def inner_eps(c: Config, eps: float) -> float:
    """Under the norms of what is made: ``eps`` in GGUF files, 1e-6 in transformers' families that
    leave it to the norm."""
    return eps if c.keys.kind == "gguf" else 1e-6


def latent_tensors(c: Config, a: Latent) -> dict[str, Tensor]:
    """Projections of latent attention and the norms between them."""
    stored = "{p}layers.{i}.self_attn."
    q_from, q = (a.q_rank or c.width), c.heads * a.key
    wanted: dict[str, tuple[str | None, tuple[int, ...]]] = {
        "attn_kv_a_mqa": ("kv_a_proj_with_mqa", (a.rank + a.rope, c.width)),
        "attn_kv_a_norm": ("kv_a_layernorm", (a.rank,)),
        "attn_output": ("o_proj", (c.width, c.heads * a.value)),
    }
    if a.q_rank:
        wanted["attn_q_a"] = ("q_a_proj", (a.q_rank, c.width))
        wanted["attn_q_a_norm"] = ("q_a_layernorm", (a.q_rank,))
        wanted["attn_q_b"] = ("q_b_proj", (q, q_from))
    else:
        wanted["attn_q"] = ("q_proj", (q, q_from))
    if a.absorbed:
        wanted["attn_k_b"] = (None, (c.heads, a.rank, a.nope))
        wanted["attn_v_b"] = (None, (c.heads, a.value, a.rank))
    else:
        wanted["attn_kv_b"] = ("kv_b_proj", (c.heads * (a.nope + a.value), a.rank))
    tensors = {
        f"blk.{{i}}.{name}.weight": Tensor(
            theirs and f"{stored}{theirs}.weight", shape, unit_axes=len(shape) == 3
        )
        for name, (theirs, shape) in wanted.items()
    }
    return {**tensors, **decoder.scale_tensors(c, "attn_output")}


def attention(
    b: Builder,
    c: Config,
    catalog: Catalog,
    a: Latent,
    x: str,
    i: int,
    *,
    rope: Rope | None,
    eps: float,
    score_scale: float = 1.0,
    layer: int | None = None,
    k_norm: bool = False,
    gated: bool = False,
    scaled: bool = True,
    sinks: str | None = None,
    choose: Callable[[str, str], str] | None = None,
) -> str:
    """Latent attention of layer i; scores are scaled by ``score_scale`` / sqrt(key width).

    ``layer`` is the number of its state, i unless given. ``k_norm``: the rotated part of keys has a
    norm. ``gated``: what each head, or each column, gives is multiplied by a sigmoid. ``scaled``: a
    scale beside the last product counts. ``choose`` says which positions rows see, from x and from
    what queries are made of.
    """
    name = f"blk.{i}.attn_"

    def turned(y: str) -> str:
        if rope is None:
            return y
        return b.rope(
            y,
            head_dim=a.rope,
            inv_freq=rope.inv_freq,
            style=rope.style,
            mscale=rope.mscale,
            factors=rope.factors,
        )

    with b.unit("attention"):
        if a.q_rank:
            q = b.rms_norm(b.matmul(x, f"{name}q_a.weight"), f"{name}q_a_norm.weight", eps)
            made_of = b.scale(q, a.q_scale)
            q = b.matmul(made_of, f"{name}q_b.weight")
        else:
            made_of, q = x, b.matmul(x, f"{name}q.weight")
        both = b.matmul(x, f"{name}kv_a_mqa.weight")
        gate = b.matmul(x, f"{name}gate.weight") if gated else ""
        whole = a.rank + a.rope
        latent = b.columns(both, head_dim=whole, start=0, width=a.rank)
        latent = b.scale(b.rms_norm(latent, f"{name}kv_a_norm.weight", eps), a.kv_scale)
        k_pe = q_pe = ""
        if a.rope:
            k_pe = b.columns(both, head_dim=whole, start=a.rank, width=a.rope)
            k_pe = turned(b.rms_norm(k_pe, f"{name}k_norm.weight", eps) if k_norm else k_pe)
            q_pe = turned(b.columns(q, head_dim=a.key, start=a.nope, width=a.rope))
        if a.nope:
            q = b.columns(q, head_dim=a.key, start=0, width=a.nope)
        v: str | None = None
        if a.absorbed:
            q = b.matmul(q, f"{name}k_b.weight")
            k = b.join(latent, k_pe, heads=1) if k_pe else latent
        else:
            made, each = b.matmul(latent, f"{name}kv_b.weight"), a.nope + a.value
            # Every head has the rotated part behind its own.
            k = b.join(made, k_pe, heads=c.heads, shared=True)
            own = b.columns(k, head_dim=each + a.rope, start=0, width=a.nope) if a.nope else ""
            k = b.columns(k, head_dim=each + a.rope, start=each, width=a.rope)
            k = b.join(own, k, heads=c.heads) if own else k
            v = b.columns(made, head_dim=each, start=a.nope, width=a.value)
        if q_pe:
            q = b.join(q, q_pe, heads=c.heads) if a.nope else q_pe
        temperature = c.keys.number("temperature_scale", 0.0)
        if temperature:
            q = b.position_scale(q, c.keys.integer("temperature_length"), temperature)
        chosen = choose(x, made_of) if choose is not None else None
        state = a.state(c.heads)
        mixed = b.attention(
            q,
            k,
            v,
            layer=i if layer is None else layer,
            heads=c.heads,
            kv_heads=state.kv_heads,
            k_dim=state.k_dim,
            v_dim=state.v_dim,
            scale=score_scale / math.sqrt(a.key),
            window=c.windows[i],
            sinks=sinks,
            chosen=chosen,
        )
        if a.absorbed:
            mixed = b.matmul(mixed, f"{name}v_b.weight")
        if gated:
            mixed = b.mul(mixed, b.activation(gate, "sigmoid"))
        return decoder.product(b, catalog, mixed, f"{name}output", scaled=scaled)
