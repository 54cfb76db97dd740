"""PLaMo 2: Mamba mixers whose heads share B and C, or attention, with norms before and after.

Source: Preferred Networks' model cards; names and layout are those of its GGUF files.
"""

from __future__ import annotations

import math

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.rope import Rope, read_rope
from strata.models.state_space import Kept, Sizes, read_sizes
from strata.models.tensors import Catalog, Part, Tensor, on_layers
from strata.program import Builder, Model


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a PLaMo 2 file."""
    if file.kind != "gguf":
        raise ConfigError("PLaMo 2 is read from GGUF files alone: use a GGUF of it")
    c = read_config(file, architecture, context, mixed=True)
    attends = [n > 0 for n in c.keys.integers("kv_heads", c.layers)]
    s = read_sizes(c, version=2, groups=1)
    rank = max(64, c.width // 16)
    name = "blk.{i}."
    tensors = {
        **decoder.frame_tensors(c),
        **{
            f"{name}{norm}": Tensor(None, (c.width,))
            for norm in (
                *("attn_norm.weight", "post_attention_norm"),
                *("ffn_norm.weight", "post_ffw_norm"),
            )
        },
        f"{name}ffn_down.weight": Tensor(None, (c.width, c.ffn)),
        **decoder.scale_tensors(c, "ffn_down"),
        **_fused(f"{name}ffn_up.weight", {"ffn_gate": c.ffn, "ffn_rise": c.ffn}, c.width),
        **on_layers(_attention_tensors(c), [i for i in range(c.layers) if attends[i]]),
        **on_layers(_mixer_tensors(c, s, rank), [i for i in range(c.layers) if not attends[i]]),
    }
    catalog = Catalog(file, tensors, c.layers, harmless=decoder.harmless(c))
    rope, eps, kept = read_rope(c, "neox"), decoder.rms_eps(c), Kept()

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if attends[i]:
            h = _attention(b, c, catalog, kept, h, i, rope, eps)
        else:
            h = _mixer(b, s, catalog, kept, h, i, eps)
        x = b.add(x, b.rms_norm(h, f"blk.{i}.post_attention_norm", eps))
        h = b.rms_norm(x, f"blk.{i}.ffn_norm.weight", eps)
        with b.unit("ffn"):
            gate, up = (_product(b, catalog, h, f"blk.{i}.ffn_{part}") for part in ("gate", "rise"))
            h = _product(b, catalog, b.glu(gate, up, "silu"), f"blk.{i}.ffn_down")
        return b.add(x, b.rms_norm(h, f"blk.{i}.post_ffw_norm", eps))

    return decoder.normed(c, catalog, layer, eps, state=kept.state)


def _product(b: Builder, catalog: Catalog, x: str, name: str) -> str:
    """Of the scales beside weights only that of attention's output counts, as llama.cpp has it."""
    return decoder.product(b, catalog, x, name, scaled=False)


def _fused(whole: str, rows: dict[str, int], columns: int) -> dict[str, Tensor]:
    out, start = {}, 0
    for part, count in rows.items():
        place = Part(whole, "", start, sum(rows.values()))
        out[f"blk.{{i}}.{part}.weight"] = Tensor(None, (count, columns), part=place, apart=False)
        scale = Part(whole.replace(".weight", ".scale"), "", 0, 1)
        out[f"blk.{{i}}.{part}.scale"] = Tensor(None, (1,), True, part=scale, apart=False)
        start += count
    return out


def _attention_tensors(c: Config) -> dict[str, Tensor]:
    qkv = {"attn_q": c.q_width, "attn_k": c.kv_width, "attn_v": c.kv_width}
    return {
        **_fused("blk.{i}.attn_qkv.weight", qkv, c.width),
        "blk.{i}.attn_q_norm.weight": Tensor(None, (c.heads, c.head_dim)),
        "blk.{i}.attn_k_norm.weight": Tensor(None, (c.kv_heads, c.head_dim)),
        "blk.{i}.attn_output.weight": Tensor(None, (c.width, c.q_width)),
        **decoder.scale_tensors(c, "attn_output"),
    }


def _mixer_tensors(c: Config, s: Sizes, rank: int) -> dict[str, Tensor]:
    name = "blk.{i}.ssm_"
    parts = {"ssm_x_b": s.states, "ssm_x_c": s.states, "ssm_x_dt": rank}
    return {
        f"{name}in.weight": Tensor(None, (2 * s.inner, c.width)),
        f"{name}conv1d.weight": Tensor(None, (s.inner, s.taps)),
        **_fused(f"{name}x.weight", parts, s.inner),
        f"{name}dt.weight": Tensor(None, (s.heads, rank)),
        f"{name}dt.bias": Tensor(None, (s.heads,)),
        f"{name}a": Tensor(None, (s.heads,)),
        f"{name}d": Tensor(None, (s.heads,)),
        f"{name}out.weight": Tensor(None, (c.width, s.inner)),
        **decoder.scale_tensors(c, "ssm_in"),
        **decoder.scale_tensors(c, "ssm_out"),
        f"{name}b_norm": Tensor(None, (s.states,)),
        f"{name}c_norm": Tensor(None, (s.states,)),
        f"{name}dt_norm": Tensor(None, (rank,)),
    }


def _attention(
    b: Builder,
    c: Config,
    catalog: Catalog,
    kept: Kept,
    x: str,
    i: int,
    rope: Rope,
    eps: float,
) -> str:
    name = f"blk.{i}.attn_"
    with b.unit("attention"):
        q, k, v = (_product(b, catalog, x, f"{name}{part}") for part in "qkv")
    q = b.grouped_rms_norm(q, f"{name}q_norm.weight", c.heads, eps)
    k = b.grouped_rms_norm(k, f"{name}k_norm.weight", c.kv_heads, eps)
    q, k = (
        b.rope(y, head_dim=c.head_dim, inv_freq=rope.inv_freq, style=rope.style, mscale=rope.mscale)
        for y in (q, k)
    )
    mixed = b.attention(
        *(q, k, v),
        layer=kept.kv(c, i),
        heads=c.heads,
        kv_heads=c.kv_heads,
        k_dim=c.head_dim,
        v_dim=c.head_dim,
        scale=1 / math.sqrt(c.head_dim),
    )
    with b.unit("attention"):
        return decoder.product(b, catalog, mixed, f"{name}output")


def _mixer(b: Builder, s: Sizes, catalog: Catalog, kept: Kept, x: str, i: int, eps: float) -> str:
    name, dim = f"blk.{i}.ssm_", s.inner // s.heads
    with b.unit("ssm"):
        both = _product(b, catalog, x, f"{name}in")
        z, x = (b.columns(both, head_dim=2 * dim, start=start, width=dim) for start in (0, dim))
        layer = kept.rows(s.taps, s.inner)
        x = b.activation(b.short_conv(x, f"{name}conv1d.weight", layer=layer), "silu")
        bs, cs, dt = (
            b.rms_norm(b.matmul(x, f"{name}x_{part}.weight"), f"{name}{part}_norm", eps)
            for part in ("b", "c", "dt")
        )
        y = b.ssm_scan(
            *(x, b.matmul(dt, f"{name}dt.weight", f"{name}dt.bias"), bs, cs),
            a=f"{name}a",
            d=f"{name}d",
            layer=kept.matrices(s.heads, s.states, dim),
            groups=1,
            states=s.states,
        )
        return _product(b, catalog, b.glu(z, y, "silu"), f"{name}out")
