"""What decoder-only families are put together from: attention, feed-forward, and the frame."""

from __future__ import annotations

import math
from collections.abc import Callable

from strata.models.config import Config
from strata.models.errors import ConfigError
from strata.models.rope import Rope
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder, KVLayer, Model
from strata.program.program import Shape


def attention_tensors(c: Config) -> dict[str, Tensor]:
    """q, k, v and output projections, apart or fused, with the biases that a file may have."""
    fused = c.q_width + 2 * c.kv_width
    starts = {"q": 0, "k": c.q_width, "v": c.q_width + c.kv_width}
    tensors = {}
    for letter, start in starts.items():
        width = c.q_width if letter == "q" else c.kv_width
        for kind, shape in (("weight", (width, c.width)), ("bias", (width,))):
            tensors[f"blk.{{i}}.attn_{letter}.{kind}"] = Tensor(
                f"{{p}}layers.{{i}}.self_attn.{letter}_proj.{kind}",
                shape,
                optional=kind == "bias",
                part=Part(
                    f"blk.{{i}}.attn_qkv.{kind}",
                    f"{{p}}layers.{{i}}.self_attn.qkv_proj.{kind}",
                    start,
                    fused,
                ),
            )
    out = "{p}layers.{i}.self_attn.o_proj."
    tensors["blk.{i}.attn_output.weight"] = Tensor(out + "weight", (c.width, c.q_width))
    tensors["blk.{i}.attn_output.bias"] = Tensor(out + "bias", (c.width,), optional=True)
    return tensors


def gated_tensors(c: Config) -> dict[str, Tensor]:
    """gate, up and down projections, with the biases that a file may have."""
    tensors = {}
    for name, rows, columns in (
        ("gate", c.ffn, c.width),
        ("up", c.ffn, c.width),
        ("down", c.width, c.ffn),
    ):
        stored = f"{{p}}layers.{{i}}.mlp.{name}_proj."
        tensors[f"blk.{{i}}.ffn_{name}.weight"] = Tensor(stored + "weight", (rows, columns))
        tensors[f"blk.{{i}}.ffn_{name}.bias"] = Tensor(stored + "bias", (rows,), optional=True)
    return tensors


def frame_tensors(c: Config) -> dict[str, Tensor]:
    """Embedding table, last norm, and the head where it is not the embedding table."""
    tensors = {
        "token_embd.weight": Tensor("{p}embed_tokens.weight", (c.vocab, c.width)),
        "output_norm.weight": Tensor("{p}norm.weight", (c.width,)),
    }
    if not c.tied:
        tensors["output.weight"] = Tensor("lm_head.weight", (c.vocab, c.width))
    return tensors


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
) -> str:
    """Projections, optional q and k norms (with ``norm_eps``), positions, attention, output.

    ``scale`` is 1 / sqrt(head_dim) unless given. q, k and v read one value and stand together, so
    that a backend may run them as one product.
    """
    name = f"blk.{i}.attn_"
    q, k, v = (b.matmul(x, f"{name}{p}.weight", present(catalog, f"{name}{p}.bias")) for p in "qkv")
    if norm_eps is not None:
        q = b.rms_norm(q, f"{name}q_norm.weight", norm_eps)
        k = b.rms_norm(k, f"{name}k_norm.weight", norm_eps)
    if rope is not None:
        q, k = (
            b.rope(
                y,
                head_dim=c.head_dim,
                inv_freq=rope.inv_freq,
                style=rope.style,
                mscale=rope.mscale,
                factors=rope.factors,
            )
            for y in (q, k)
        )
    mixed = b.attention(
        q,
        k,
        v,
        layer=i,
        heads=c.heads,
        kv_heads=c.kv_heads,
        head_dim=c.head_dim,
        scale=1 / math.sqrt(c.head_dim) if scale is None else scale,
        window=c.windows[i],
        softcap=softcap,
    )
    return b.matmul(mixed, f"{name}output.weight", present(catalog, f"{name}output.bias"))


def gated(b: Builder, catalog: Catalog, x: str, i: int, function: str) -> str:
    """down(act(gate(x)) * up(x)); gate and up stand together as q, k and v do."""
    name = f"blk.{i}.ffn_"
    gate = b.matmul(x, f"{name}gate.weight", present(catalog, f"{name}gate.bias"))
    up = b.matmul(x, f"{name}up.weight", present(catalog, f"{name}up.bias"))
    mixed = b.glu(gate, up, function)
    return b.matmul(mixed, f"{name}down.weight", present(catalog, f"{name}down.bias"))


def head(b: Builder, c: Config, x: str) -> str:
    """Logits before any scale: the head's own matrix, or the embedding table."""
    return b.matmul(x, "token_embd.weight" if c.tied else "output.weight")


def assemble(
    c: Config,
    catalog: Catalog,
    *,
    embed: Callable[[Builder], str],
    layer: Callable[[Builder, str, int], str],
    head: Callable[[Builder, str], str],
) -> Model:
    """The Model: one Segment to embed, one a layer, one for the logits of the selected rows."""
    first = Builder("embed", catalog)
    segments = [first.build(x=embed(first))]
    width: dict[str, Shape] = {"x": ("T", c.width)}
    for i in range(c.layers):
        b = Builder(f"layer.{i}", catalog, width)
        segments.append(b.build(x=layer(b, "x", i)))
    last = Builder("head", catalog, width)
    segments.append(last.build(logits=head(last, last.select("x"))))
    return Model(
        architecture=c.architecture,
        segments=tuple(segments),
        kv=tuple(KVLayer(c.kv_heads, c.head_dim, window) for window in c.windows),
        vocab_size=c.vocab,
        width=c.width,
        context_length=c.context,
    )


def check_activation(c: Config, *expected: str) -> None:
    """Raise ConfigError unless config.json names one of these activations or none."""
    found = c.keys.text("activation", expected[0])
    if found not in expected:
        key = c.keys.find("activation")[0]
        raise ConfigError(f"'{key}' is '{found}': this architecture has '{expected[0]}'")


def harmless(c: Config, patterns: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Patterns of tensors that may be left unused; a tied head may be stored a second time."""
    return (*patterns, r"lm_head\.weight") if c.tied else patterns
