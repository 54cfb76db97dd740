"""Gemma 3n (its language model): Gemma 3's layers on one of several residuals, from which the
others are predicted and corrected (AltUp), beside a product of low rank (Laurel), with per-layer
embeddings, keys and values shared by late layers, and feed-forwards of which the first keep only
what stands out.

Sources: the model card of Gemma 3n; AltUp (arXiv:2301.13310); Laurel (arXiv:2411.07501).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np

from strata.formats import ModelFile
from strata.models import decoder, gemma2, per_layer, shared_kv
from strata.models.config import MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.keys import real
from strata.models.rope import read_local_rope, read_rope
from strata.models.tensors import Catalog, Part, Tensor, on_layers
from strata.program import Builder, Model
from strata.records import dataclass

_KEEPING = 20
"""Layers that keep keys and values, where a GGUF file does not say how many do not."""
_SPARSE, _DEVIATIONS = 10, 1.6448533535003662
"""Layers whose gates keep 5 % where a GGUF file does not say, and what these are above."""


@dataclass(frozen=True)
class AltUp:
    """How many residuals there are, which of them goes through a layer, the width of one, and what
    a mean square counts at least where they are made as large as another."""

    count: int
    active: int
    width: int
    least: float

    def one(self, b: Builder, x: str, i: int) -> str:
        """Residual ``i``."""
        whole = self.count * self.width
        return b.columns(x, head_dim=whole, start=i * self.width, width=self.width)

    def others(self, b: Builder, x: str) -> str:
        """All but the first."""
        whole = self.count * self.width
        return b.columns(x, head_dim=whole, start=self.width, width=whole - self.width)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Gemma 3n file; of a multimodal one, its language model."""
    c = read_config(file, architecture, context, tied=True, head_dim=256, uneven=True)
    c = decoder.with_windows(c, c.keys.integer("window", 512), 5)
    decoder.check_activation(c, gemma2.GELU)
    gguf = file.kind == "gguf"
    sources = shared_kv.kept_by(c, max(0, c.layers - _KEEPING) if gguf else 15)
    widths = c.keys.integers("ffn", c.layers, high=16 * MAX_WIDTH)
    if not all(widths):
        raise ConfigError(f"'{c.keys.find('ffn')[0]}' is 0 in a layer")
    layers = [replace(c, ffn=width) for width in widths]
    a = _altup(c)
    p = per_layer.read_per_layer(c, a.count * c.width, 256)
    deviations, scaled = _deviations(c), c.keys.flag("altup_scaled", True)
    tensors = _tensors(c, a, p)
    for i, own in enumerate(layers):
        of_layer = {**shared_kv.tensors(own, sources[i] == i), **decoder.gated_tensors(own)}
        tensors |= on_layers(of_layer, [i])
    rows = tensors["per_layer_token_embd.weight"].shape[0]
    if rows < c.vocab:
        # Only pictures and sounds have tokens beyond the table.
        table = Part("", "{p}embed_tokens.weight", 0, c.vocab)
        c = replace(c, vocab=rows)
        shape = (rows, c.width)
        tensors["token_embd.weight"] = Tensor(table.huggingface, shape, part=table, apart=False)
    catalog = Catalog(
        file,
        tensors,
        c.layers,
        harmless=(*decoder.harmless(c), *shared_kv.unused(sources)),
    )
    full, local = read_rope(c, "neox", base=1e6), read_local_rope(c, "neox", base=1e4)
    eps, half = decoder.rms_eps(c), float(np.float32(math.sqrt(0.5)))

    def layer(b: Builder, row: str, i: int) -> str:
        name = f"blk.{i}."
        streams = p.residual_of(b, row)
        routed = _modalities(b, a.one(b, streams, a.active), name, eps, c)
        with b.unit("altup"):
            coefficients = b.matmul(routed, f"{name}altup_predict_coef.weight")
        predicted = b.add(b.mix(streams, coefficients, a.count), streams)
        x = a.one(b, predicted, a.active)
        h = b.rms_norm(x, f"{name}attn_norm.weight", eps)
        with b.unit("laurel"):
            low = b.matmul(b.matmul(h, f"{name}laurel_l.weight"), f"{name}laurel_r.weight")
        low = b.add(b.rms_norm(low, f"{name}laurel_post_norm.weight", eps), h)
        rope = local if c.windows[i] else full
        h = shared_kv.attention(b, c, catalog, h, i, source=sources[i], rope=rope, eps=eps)
        h = b.add(b.rms_norm(h, f"{name}post_attention_norm.weight", eps), x)
        h = b.scale(b.add(h, low), half)
        inner = b.rms_norm(h, f"{name}ffn_norm.weight", eps)
        inner = _gated(b, catalog, inner, i, deviations[i], spare=int(gguf))
        h = b.add(b.rms_norm(inner, f"{name}post_ffw_norm.weight", eps), h)
        corrected = _corrected(b, a, predicted, h, x, name, eps, c)
        own = a.one(b, corrected, a.active)
        own = b.scale_by(own, f"{name}altup_correct_scale.weight") if scaled else own
        own = per_layer.gated(b, catalog, p, own, row, i, eps)
        rest = b.add(a.others(b, corrected), _repeated(b, own, a.count - 1))
        streams = b.join(a.one(b, corrected, 0), rest, heads=1)
        return b.join(streams, p.inputs_of(b, row), heads=1)

    def embed(b: Builder) -> str:
        x = b.embed("token_embd.weight", float(np.float32(math.sqrt(c.width))))
        with b.unit("altup"):
            others = _each(b, _repeated(b, x, a.count - 1), "altup_proj", a, gguf)
        streams = b.join(x, b.match_rms(others, x, a.least), heads=1)
        return per_layer.behind(b, c, p, streams, x, eps)

    def logits(b: Builder, row: str) -> str:
        streams = p.residual_of(b, row)
        x = a.one(b, streams, 0)
        like = a.one(b, streams, a.active) if gguf else x
        with b.unit("altup"):
            others = _each(b, a.others(b, streams), "altup_unembd_proj", a, gguf)
        others = b.match_rms(others, like, a.least)
        for i in range(a.count - 1):
            whole = (a.count - 1) * a.width
            x = b.add(x, b.columns(others, head_dim=whole, start=i * a.width, width=a.width))
        x = b.rms_norm(b.scale(x, 1 / a.count), "output_norm.weight", eps)
        return b.softcap(decoder.head(b, c, x), c.keys.number("logit_softcap", 30.0))

    return decoder.assemble(
        c,
        catalog,
        embed=embed,
        layer=layer,
        head=logits,
        state=shared_kv.kept(layers, sources),
        hidden=a.count * c.width + p.all,
    )


def _altup(c: Config) -> AltUp:
    count = c.keys.integer("altup_inputs", 4, low=2, high=64)
    active = c.keys.integer("altup_active", 0, low=0, high=count - 1)
    if count * c.width > MAX_WIDTH:
        key = c.keys.find("altup_inputs")[0]
        raise ConfigError(f"'{key}' is {count}: residuals of {c.width} are {MAX_WIDTH} at most")
    return AltUp(count, active, c.width, 0.0 if c.keys.kind == "gguf" else 1e-5)


def _deviations(c: Config) -> list[float]:
    """By how many deviations what a layer's gates keep is above their mean; -inf: all is kept."""
    key, stated = c.keys.find("sparsity")
    keep_all = -math.inf
    if stated is None:
        sparse = 0 if c.layers <= _SPARSE and c.keys.kind != "gguf" else _SPARSE
        return [_DEVIATIONS if i < sparse else keep_all for i in range(c.layers)]
    each: Sequence[object] = stated if isinstance(stated, list) else [stated] * c.layers
    if len(each) != c.layers:
        raise ConfigError(f"'{key}' lists {len(each)} layers; the model has {c.layers}")
    if c.keys.kind == "gguf":
        return [keep_all if n == keep_all else real(key, n, -10.0, 10.0) for n in each]
    shares = [real(key, share, 0.0, 1.0 - 1e-9) for share in each]
    return [float(np.float32(NormalDist().inv_cdf(n))) if n else keep_all for n in shares]


def _tensors(c: Config, a: AltUp, p: per_layer.PerLayer) -> dict[str, Tensor]:
    rank = c.keys.integer("laurel_rank", 64, high=MAX_WIDTH)
    layer = "{p}layers.{i}."
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "altup_correct_coef": ("altup.correction_coefs.weight", (a.count, a.count)),
        "altup_correct_scale": ("altup.correct_output_scale", (c.width,)),
        "altup_predict_coef": ("altup.prediction_coefs.weight", (a.count**2, a.count)),
        "altup_router": ("altup.modality_router.weight", (a.count, c.width)),
        "altup_router_norm": ("altup.router_norm.weight", (c.width,)),
        "laurel_l": ("laurel.linear_left.weight", (rank, c.width)),
        "laurel_r": ("laurel.linear_right.weight", (c.width, rank)),
        "laurel_post_norm": ("laurel.post_laurel_norm.weight", (c.width,)),
    }
    tensors = {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, "none", **gemma2.NORMS),
        **per_layer.tensors(c, p),
        **{f"blk.{{i}}.{n}.weight": Tensor(layer + theirs, s) for n, (theirs, s) in shapes.items()},
    }
    for name, theirs in (
        ("altup_proj", "altup_projections"),
        ("altup_unembd_proj", "altup_unembed_projections"),
    ):
        if c.keys.kind == "gguf":
            tensors[f"{name}.weight"] = Tensor(None, (a.count - 1, c.width, c.width))
            continue
        for i in range(a.count - 1):
            tensors[f"{name}.{i}.weight"] = Tensor(f"{{p}}{theirs}.{i}.weight", (c.width, c.width))
    return tensors


def _each(b: Builder, x: str, name: str, a: AltUp, stacked: bool) -> str:
    """Each residual of x, which are all but one, times a matrix of its own."""
    if stacked:
        return b.matmul(x, f"{name}.weight")
    whole, out = (a.count - 1) * a.width, ""
    for i in range(a.count - 1):
        part = b.columns(x, head_dim=whole, start=i * a.width, width=a.width)
        made = b.matmul(part, f"{name}.{i}.weight")
        out = b.join(out, made, heads=1) if out else made
    return out


def _repeated(b: Builder, x: str, count: int) -> str:
    """x so many times, side by side."""
    out = x
    for _ in range(count - 1):
        out = b.join(out, x, heads=1)
    return out


def _modalities(b: Builder, x: str, name: str, eps: float, c: Config) -> str:
    """What the coefficients of a row are made of."""
    x = b.scale(b.rms_norm(x, f"{name}altup_router_norm.weight", eps), 1 / c.width)
    with b.unit("altup"):
        return b.activation(b.matmul(x, f"{name}altup_router.weight"), "tanh")


def _corrected(
    b: Builder, a: AltUp, predicted: str, made: str, x: str, name: str, eps: float, c: Config
) -> str:
    """Predictions with what the layer made of the active one, more or less of it, in each."""
    new = b.add(made, b.scale(x, -1.0))
    with b.unit("altup"):
        parts = b.matmul(_modalities(b, made, name, eps, c), f"{name}altup_correct_coef.weight")
    return b.add(b.add(b.mix(new, parts, 1), _repeated(b, new, a.count)), predicted)


def _gated(b: Builder, catalog: Catalog, x: str, i: int, deviations: float, spare: int) -> str:
    name = f"blk.{i}.ffn_"
    with b.unit("ffn"):
        gate = decoder.product(b, catalog, x, f"{name}gate", scaled=False)
        up = decoder.product(b, catalog, x, f"{name}up", scaled=False)
        if math.isfinite(deviations):
            gate = b.cutoff(gate, deviations, spare)
        mixed = b.glu(gate, up, "gelu_tanh")
        return decoder.product(b, catalog, mixed, f"{name}down", scaled=False)
