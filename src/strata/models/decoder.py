"""What decoder-only families are put together from: attention, feed-forward, and the frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from strata.models.config import MAX_LAYERS, Config
from strata.models.errors import ConfigError
from strata.models.rope import Rope
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder, LayerState, Model, PagedKV
from strata.program.model import Transform
from strata.program.program import Shape

Shape2 = tuple[int, int]
# Directories have these blocks beside the layers, or behind the last (``without_further``).
_FURTHER = r"(.*\.)?mtp(_\w+)?\..*"
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def norm_tensors(c: Config, transform: Transform = "none", **names: str) -> dict[str, Tensor]:
    """Norms of a layer, as wide as the model: canonical name -> config.json's name."""
    return {
        f"blk.{{i}}.{name}.weight": Tensor(
            f"{{p}}layers.{{i}}.{stored}.weight", (c.width,), transform=transform
        )
        for name, stored in names.items()
    }


def attention_tensors(c: Config, *, bias: bool, out_bias: bool) -> dict[str, Tensor]:
    """q, k, v and output projections, apart or fused.

    ``bias`` (of q, k, v) and ``out_bias`` say what a Hugging Face file has; in GGUF files a bias is
    there or not.
    """
    q, k, v = c.q_width, c.kv_width, c.v_width
    stored = "{p}layers.{i}.self_attn."
    tensors: dict[str, Tensor] = {}
    for letter, start, width in (("q", 0, q), ("k", q, k), ("v", q + k, v)):
        for kind, shape in _kinds(c, (width, c.width), bias):
            part = Part(f"blk.{{i}}.attn_qkv.{kind}", f"{stored}qkv_proj.{kind}", start, q + k + v)
            tensors[f"blk.{{i}}.attn_{letter}.{kind}"] = Tensor(
                f"{stored}{letter}_proj.{kind}", shape, _optional(c, kind), part=part
            )
        tensors |= scale_tensors(c, f"attn_{letter}", fused="attn_qkv")
    for kind, shape in _kinds(c, (c.width, c.heads * c.v_dim), out_bias):
        tensors[f"blk.{{i}}.attn_output.{kind}"] = Tensor(
            f"{stored}o_proj.{kind}", shape, _optional(c, kind)
        )
    return {**tensors, **scale_tensors(c, "attn_output")}


def scale_tensors(c: Config, name: str, fused: str | None = None) -> dict[str, Tensor]:
    """The number that all of a product is multiplied with, which GGUF files may have beside its
    weight, or beside the ``fused`` one that it is a part of."""
    if c.keys.kind != "gguf":
        return {}
    part = None if fused is None else Part(f"blk.{{i}}.{fused}.scale", "", 0, 1)
    return {f"blk.{{i}}.{name}.scale": Tensor(None, (1,), optional=True, part=part)}


def gated_tensors(c: Config, *, bias: bool = False) -> dict[str, Tensor]:
    """gate, up and down projections, gate and up apart or fused; ``bias`` as above."""
    stored = "{p}layers.{i}.mlp."
    tensors: dict[str, Tensor] = {}
    for name, rows, columns in (
        ("gate", c.ffn, c.width),
        ("up", c.ffn, c.width),
        ("down", c.width, c.ffn),
    ):
        for kind, shape in _kinds(c, (rows, columns), bias):
            tensors[f"blk.{{i}}.ffn_{name}.{kind}"] = Tensor(
                f"{stored}{name}_proj.{kind}", shape, _optional(c, kind)
            )
        tensors |= scale_tensors(c, f"ffn_{name}")
    return tensors


def qk_norm_tensors(q: int, k: int, transform: Transform = "none") -> dict[str, Tensor]:
    """Norms of q and k, as wide as one head or as all of them."""
    stored = "{p}layers.{i}.self_attn."
    return {
        f"blk.{{i}}.attn_{name}_norm.weight": Tensor(
            f"{stored}{name}_norm.weight", (width,), transform=transform
        )
        for name, width in (("q", q), ("k", k))
    }


def _kinds(c: Config, shape: Shape2, bias: bool) -> list[tuple[str, tuple[int, ...]]]:
    weight: list[tuple[str, tuple[int, ...]]] = [("weight", shape)]
    return [*weight, ("bias", shape[:1])] if bias or c.keys.kind == "gguf" else weight


def _optional(c: Config, kind: str) -> bool:
    return kind == "bias" and c.keys.kind == "gguf"


def frame_tensors(c: Config, transform: Transform = "none") -> dict[str, Tensor]:
    """Embedding table, last norm, and the head where it is not the embedding table."""
    tensors = {
        "token_embd.weight": Tensor("{p}embed_tokens.weight", (c.vocab, c.width)),
        "output_norm.weight": Tensor("{p}norm.weight", (c.width,), transform=transform),
    }
    if not c.tied:
        tensors["output.weight"] = Tensor("lm_head.weight", (c.vocab, c.width))
    return tensors


def last_bias(c: Config) -> dict[str, Tensor]:
    """The bias of the head, which GGUF files of some families may have."""
    if c.keys.kind != "gguf":
        return {}
    return {"output.bias": Tensor(None, (c.vocab,), optional=True)}


def rope_tensors(c: Config) -> dict[str, Tensor]:
    """Frequency factors, which GGUF files keep as tensors: one set, or a long and a short one."""
    shape = (c.keys.integer("rope_dim", c.head_dim) // 2,)
    names = ("rope_freqs", "rope_factors_long", "rope_factors_short")
    return {f"{name}.weight": Tensor(None, shape, optional=True) for name in names}


def rope_factors(c: Config, catalog: Catalog) -> str | None:
    """Which of them is used: long factors are for contexts longer than the original one."""
    original = c.keys.integer("rope_original_context", c.trained_context)
    span = "long" if c.context > original else "short"
    for name in ("rope_freqs.weight", f"rope_factors_{span}.weight"):
        if catalog.has(name):
            return name
    return None


def present(catalog: Catalog, name: str) -> str | None:
    """``name`` if the file holds it: for optional biases."""
    return name if catalog.has(name) else None


def product(b: Builder, catalog: Catalog, x: str, name: str, *, scaled: bool = True) -> str:
    """x times the weight ``name``, its scale and its bias, as far as the file holds them.

    ``scaled`` is False where a family's scales are not applied: but for NVFP4, whose blocks mean
    nothing without.
    """
    weight, bias = f"{name}.weight", present(catalog, f"{name}.bias")
    if not catalog.has(f"{name}.scale") or not (scaled or catalog.type(weight) == "NVFP4"):
        return b.matmul(x, weight, bias)
    # As llama.cpp has it: in feed-forward layers the bias is scaled, too.
    if bias is None or "ffn" in name:
        return b.scale_by(b.matmul(x, weight, bias), f"{name}.scale")
    return b.shift(b.scale_by(b.matmul(x, weight), f"{name}.scale"), bias)


def rotate(b: Builder, c: Config, x: str, rope: Rope) -> str:
    """Rotary positions on heads of q or k."""
    return b.rope(
        x,
        head_dim=c.head_dim,
        inv_freq=rope.inv_freq,
        style=rope.style,
        mscale=rope.mscale,
        factors=rope.factors,
    )


def attention(
    b: Builder,
    c: Config,
    catalog: Catalog,
    x: str,
    i: int,
    *,
    rope: Rope | None,
    scale: float | None = None,
    softcap: float = 0.0,
    norm_eps: float | None = None,
    layer: int | None = None,
    sinks: str | None = None,
    gate: str = "",
) -> str:
    """Projections, optional q and k norms (with ``norm_eps``), positions, attention (with
    ``sinks``, a weight), output.

    ``scale`` is 1 / sqrt(head_dim) unless given, ``layer``, the number of its state, i. q, k and v
    read one value and stand together, so that a backend may run them as one product. ``gate`` is
    the function of a further product, by which what each head or each column gives is multiplied.
    """
    name = f"blk.{i}.attn_"
    with b.unit("attention"):
        q, k, v = (product(b, catalog, x, f"{name}{p}") for p in "qkv")
        gates = b.matmul(x, f"{name}gate.weight") if gate else None
    if norm_eps is not None:
        q = b.rms_norm(q, f"{name}q_norm.weight", norm_eps)
        k = b.rms_norm(k, f"{name}k_norm.weight", norm_eps)
    if rope is not None:
        q, k = (rotate(b, c, y, rope) for y in (q, k))
    mixed = b.attention(
        q,
        k,
        v,
        layer=i if layer is None else layer,
        heads=c.heads,
        kv_heads=c.kv_heads,
        k_dim=c.head_dim,
        v_dim=c.v_dim,
        scale=1 / math.sqrt(c.head_dim) if scale is None else scale,
        window=c.windows[i],
        softcap=softcap,
        sinks=sinks,
    )
    if gates is not None:
        mixed = b.mul(mixed, b.activation(gates, gate))
    with b.unit("attention"):
        return product(b, catalog, mixed, f"{name}output")


def gated(
    b: Builder, catalog: Catalog, x: str, i: int, function: str, *, scaled: bool = False
) -> str:
    """down(act(gate(x)) * up(x)); gate and up stand together as q, k and v do."""
    name = f"blk.{i}.ffn_"
    with b.unit("ffn"):
        gate = product(b, catalog, x, f"{name}gate", scaled=scaled)
        up = product(b, catalog, x, f"{name}up", scaled=scaled)
        mixed = b.glu(gate, up, function)
        return product(b, catalog, mixed, f"{name}down", scaled=scaled)


def plain(
    b: Builder, catalog: Catalog, x: str, i: int, function: str, *, scaled: bool = False
) -> str:
    """down(act(up(x)))."""
    name = f"blk.{i}.ffn_"
    with b.unit("ffn"):
        mixed = b.activation(product(b, catalog, x, f"{name}up", scaled=scaled), function)
        return product(b, catalog, mixed, f"{name}down", scaled=scaled)


def head(b: Builder, c: Config, x: str, bias: str | None = None) -> str:
    """Logits before any scale: the head's own matrix, or the embedding table."""
    return b.matmul(x, "token_embd.weight" if c.tied else "output.weight", bias)


def assemble(
    c: Config,
    catalog: Catalog,
    *,
    embed: Callable[[Builder], str],
    layer: Callable[[Builder, str, int], str],
    head: Callable[[Builder, str], str],
    state: Sequence[LayerState] | None = None,
    hidden: int = 0,
    result: str = "logits",
) -> Model:
    """The Model: one Segment to embed, one a layer, one for the ``result`` of the selected rows.

    ``state`` is what layers keep, which may grow while they are built: keys and values of each
    unless given. ``hidden`` is how wide a row is between layers: the width unless given.
    """
    first = Builder("embed", catalog)
    segments = [first.build(x=embed(first))]
    width: dict[str, Shape] = {"x": ("T", hidden or c.width)}
    for i in range(c.layers):
        b = Builder(f"layer.{i}", catalog, width)
        segments.append(b.build(x=layer(b, "x", i)))
    last = Builder("head", catalog, width)
    segments.append(last.build(**{result: head(last, last.select("x"))}))
    return Model(
        architecture=c.architecture,
        segments=tuple(segments),
        state=tuple(
            [PagedKV(c.kv_heads, c.head_dim, c.v_dim, window) for window in c.windows]
            if state is None
            else state
        ),
        vocab_size=c.vocab,
        width=c.width,
        context_length=c.context,
    )


def normed(
    c: Config,
    catalog: Catalog,
    layer: Callable[[Builder, str, int], str],
    eps: float,
    *,
    state: Sequence[LayerState] | None = None,
    norm: str = "output_norm.weight",
) -> Model:
    """The Model of these layers between an embedding table and the usual end: RMSNorm, then the
    head."""
    return assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight"),
        layer=layer,
        head=lambda b, x: head(b, c, b.rms_norm(x, norm, eps)),
        state=state,
    )


def check_activation(c: Config, *expected: str) -> None:
    """Raise ConfigError unless config.json names one of these activations or none."""
    found = c.keys.text("activation", expected[0])
    if found not in expected:
        key = c.keys.find("activation")[0]
        raise ConfigError(f"'{key}' is '{found}': this architecture has '{expected[0]}'")


def harmless(c: Config) -> tuple[str, ...]:
    """Patterns of tensors that may be there and are not used.

    Rope frequencies follow from the hyperparameters, scales of activations and caches speak of
    formats that are not used here, blocks that predict further tokens are for guessing alone, and a
    tied head may be stored a second time.
    """
    unused = (r".*rotary_emb\.inv_freq", r".*\.(input|activation|k|v)_scale", _FURTHER)
    return (*unused, r".*lm_head\.weight") if c.tied else unused


def with_windows(c: Config, window: int, pattern: int, *, full_first: bool = False) -> Config:
    """The config with each layer's sliding window: as the file lists layers, else by ``pattern``.

    Of so many layers the last sees all keys, or the first with ``full_first``; 0 means that none
    does, 1 that all do.
    """
    listed = c.keys.texts("layer_types", c.layers, _LAYER_TYPES)
    if listed is not None:
        sliding = [kind == "sliding_attention" for kind in listed]
        return replace(c, windows=tuple(window if s else 0 for s in sliding))
    flags = c.keys.flags("window_pattern", c.layers)
    if flags is not None:
        return replace(c, windows=tuple(window if s else 0 for s in flags))
    period = c.keys.integer("window_pattern", pattern, low=0)
    full = [period > 0 and (i + (not full_first)) % period == 0 for i in range(c.layers)]
    return replace(c, windows=tuple(0 if f else window for f in full))


def both_ways(window: int) -> int:
    """The window of positions that lie less far away, of one that files count in both directions;
    0 where all are seen."""
    return window // 2 + 1 if window else 0


def pre_norm_model(
    c: Config,
    catalog: Catalog,
    rope: Rope | None,
    *,
    attend: Callable[[Builder, str, int], str] | None = None,
    state: Sequence[LayerState] | None = None,
    attention_scale: float | None = None,
    qk_norm: bool = False,
    embedding_scale: float = 1.0,
    residual_scale: float = 1.0,
    logit_scale: float = 1.0,
    ffn_norm: str = "ffn_norm",
    feed_forward: Callable[[Builder, str, int], str] | None = None,
    ffn_scaled: bool = False,
    judges: bool = False,
) -> Model:
    """A model of Llama's layers: x + attention(norm(x)), then x + gated(norm(x)), RMSNorm, SiLU.

    ``attend`` comes in the place of ``attention``, with the ``state`` that it keeps, and
    ``feed_forward`` in that of ``gated``; ``ffn_norm`` names the norm before it. ``judges``: what
    comes out of a text is how likely its answer is yes and not no, of which cls.output has a row
    each.
    """
    check_activation(c, "silu")
    eps = rms_eps(c)

    def usual(b: Builder, x: str, i: int) -> str:
        norm_eps = eps if qk_norm else None
        return attention(b, c, catalog, x, i, rope=rope, scale=attention_scale, norm_eps=norm_eps)

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        h = (attend or usual)(b, h, i)
        x = b.add(x, b.scale(h, residual_scale))
        h = b.rms_norm(x, f"blk.{i}.{ffn_norm}.weight", eps)
        if feed_forward is None:
            h = gated(b, catalog, h, i, "silu", scaled=ffn_scaled)
        else:
            h = feed_forward(b, h, i)
        return b.add(x, b.scale(h, residual_scale))

    def logits(b: Builder, x: str) -> str:
        x = b.rms_norm(x, "output_norm.weight", eps)
        if judges:
            answers = b.softmax(b.matmul(x, "cls.output.weight"), 2)
            return b.columns(answers, head_dim=2, start=0, width=1)
        return b.scale(head(b, c, x, present(catalog, "output.bias")), logit_scale)

    return assemble(
        c,
        catalog,
        embed=lambda b: b.embed("token_embd.weight", embedding_scale),
        layer=layer,
        head=logits,
        state=state,
        result="score" if judges else "logits",
    )


def rms_eps(c: Config) -> float:
    """RMSNorm's epsilon."""
    return c.keys.number("rms_eps", low=1e-12, high=1.0)


def without_further(c: Config) -> tuple[Config, str]:
    """The Config without blocks that predict further tokens, and a pattern of their tensors. GGUF
    files count them among the layers, directories have them beyond."""
    if c.keys.kind != "gguf":
        further = c.keys.integer("next_token_layers", 0, low=0, high=MAX_LAYERS)
        blocks = "|".join(str(c.layers + i) for i in range(further)) or r"(?!)"
        return c, rf"(.*\.)?layers\.({blocks})\..*"
    further = c.keys.integer("next_token_layers", 0, low=0, high=c.layers - 1)
    kept = c.layers - further
    blocks = "|".join(str(i) for i in range(kept, c.layers)) or r"(?!)"
    return replace(c, layers=kept, windows=c.windows[:kept]), rf"blk\.({blocks})\..*"
