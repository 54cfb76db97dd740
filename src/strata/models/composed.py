"""The Model of any architecture of ``variants.py``: one layer, put together as its row says."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import accumulate

from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.models import decoder, experts
from strata.models.composed_tensors import layer_config, tensors
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError, UnknownArchitecture
from strata.models.keys import Keys
from strata.models.rope import Rope, read_local_rope, read_rope
from strata.models.tensors import Catalog
from strata.models.variants import Directory, Variant
from strata.program import Builder, LayerState, Model, PagedKV
from strata.records import dataclass

# What config.json calls an activation, where that is not its name here.
_SPELLINGS = {"gelu_tanh": ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")}
_CHOSEN = ("silu", "gelu", "gelu_tanh", "relu", "relu2")
# What directories call the numbers of an activation, and what they begin with before training.
_XIELU = {"alpha_n": -1.05, "alpha_p": 0.2, "beta": 0.5, "eps": -1e-6}


def build(file: ModelFile, architecture: str, context: int | None, v: Variant) -> Model:
    """The Model of a file whose architecture is the variation ``v``."""
    c, v = settled(file, architecture, context, v)
    layers = [layer_config(c, i) for i in range(c.layers)]
    m = experts.settled(c, v.mixture) if v.mixture is not None else None
    unused = (*decoder.harmless(c), r"blk\.\d+\.rope_freqs\.weight", v.unused)
    named, d = tensors(c, v, layers, m), v.directory or Directory()
    catalog = Catalog(file, named, c.layers, prefixes=d.prefixes, harmless=(*unused, d.unused))
    made = _Composed(c, v, catalog, layers, m)
    narrow = catalog.has("dense_2.weight")
    return decoder.assemble(
        c,
        catalog,
        embed=made.embed,
        layer=made.layer,
        head=made.embedding if narrow else made.logits,
        state=made.state(),
        result="embedding" if narrow else "logits",
    )


def settled(
    file: ModelFile, architecture: str, context: int | None, v: Variant
) -> tuple[Config, Variant]:
    """The sizes that a file states, and the variation after what they decide of it."""
    if file.kind != "gguf" and v.directory is None:
        raise UnknownArchitecture(
            f"'{architecture}' is known from GGUF files only; convert the directory to GGUF"
        )
    keys = keys_of(file, architecture, v)
    c = read_config(file, architecture, context, uneven=True, experts=True, tied=v.tied, keys=keys)
    if v.mixture is None and c.keys.integer("experts", 0, low=0) > 1:
        raise ConfigError(f"'{c.keys.find('experts')[0]}': this architecture has no experts here")
    if v.half_ffn:
        c = replace(c, ffn=c.ffn // 2)
    v = _by_header(c, v)
    every = 0 if c.keys.stated("layer_types") else v.window_every
    if file.kind == "huggingface" and every is None and c.keys.flag("windowed", False):
        raise ConfigError("'layer_types' is missing: without it windows are not built here")
    if every is not None and c.keys.stated("window"):
        window = c.keys.integer("window", 0, low=0)
        c = decoder.with_windows(c, window, every, full_first=v.full_first)
    if v.directory is not None:
        v = _as_stated(c, v, v.directory)
    c, further = decoder.without_further(c)
    if c.keys.integer("loops", 1) > 1:
        raise ConfigError(f"'{c.keys.find('loops')[0]}': layers that run again are not built")
    return c, replace(v, unused=f"{v.unused}|{further}")


def keys_of(file: ModelFile, architecture: str, v: Variant) -> Keys:
    """The hyperparameters of a file that its family reads, with those that it leaves to that."""
    keys = Keys(file, architecture).without(*v.unread).assuming(v.assumed)
    if v.directory is None or v.directory.follows is None:
        return keys
    return keys.stating(v.directory.follows(keys))


def _as_stated(c: Config, v: Variant, d: Directory) -> Variant:
    """The variation with the activation that config.json names, where that may differ."""
    for name, value in d.only.items():
        if c.keys.flag(name, value) != value:
            raise ConfigError(f"'{c.keys.find(name)[0]}' is {not value}: this is not built")
    names = _CHOSEN if d.acts else (v.activation,)
    spelled = {other: name for name in names for other in _SPELLINGS.get(name, (name,))}
    usual = _SPELLINGS.get(v.activation, (v.activation,))[0]
    decoder.check_activation(c, usual, *spelled)
    return replace(v, activation=spelled[c.keys.text("activation", usual)])


def _by_header(c: Config, v: Variant) -> Variant:
    """What only the number of layers or another key tells, as llama.cpp has it."""
    if c.architecture == "baichuan":
        return replace(v, rope=v.rope if c.layers == 32 else None, alibi=8.0 * (c.layers == 40))
    if c.architecture == "glm4" and any(c.keys.integers("rope_sections", 4, 0)):
        return replace(v, rope="neox")
    if c.architecture == "Exaone4ForCausalLM" and c.keys.find("window")[1] is not None:
        return replace(v, window_every=4, rope_on="windows", rope_local="same")
    if c.architecture == "exaone4" and c.layers == 64:
        return replace(v, window_every=4, rope_on="windows")
    if c.architecture == "cohere2moe" and c.keys.number("rms_eps", 0.0, high=1.0):
        return replace(v, norm="rms")
    if c.architecture == "Cohere2MoeForCausalLM" and v.mixture is not None:
        return _cohere2_moe(c, v, v.mixture)
    if c.architecture == "smallthinker" and not c.keys.integer("window", 0, low=0):
        return replace(v, window_every=None, rope_on="all")
    return v


def _cohere2_moe(c: Config, v: Variant, r: experts.Routing) -> Variant:
    """What config.json chooses of Command A's mixture."""

    def chosen(key: str, *known: str) -> str:
        found = c.keys.raw(key)
        if found not in (None, *known):
            raise ConfigError(f"'{key}' is {shown(found)}: {' or '.join(known)} is expected")
        return found or known[0]

    if c.keys.number("rms_eps", 0.0, high=1.0):
        v = replace(v, norm="rms")
    # Layers without experts turn as if they had a window, unless they have a pattern of their own.
    if c.keys.raw("prefix_dense_sliding_window_pattern") not in (None, 1):
        v = replace(v, rope_on="windows")
    if chosen("expert_selection_fn", "softmax", "sigmoid") == "softmax":
        attrs = {"softmax_chosen": True}
        r = replace(r, scoring="none", renormalise=False, attrs=attrs)
    halved = chosen("shared_expert_combination_strategy", "average", "sum") == "average"
    return replace(v, mixture=replace(r, halved=halved))


@dataclass(frozen=True)
class _Composed:
    """One architecture in one file."""

    c: Config
    v: Variant
    catalog: Catalog
    layers: list[Config]
    m: experts.Mixture | None

    @property
    def eps(self) -> float:
        if self.v.norm == "rms":
            return self.c.keys.number("rms_eps", high=1.0)
        return self.c.keys.number("layer_norm_eps", 1e-5, low=1e-12, high=1.0)

    def state(self) -> list[LayerState]:
        """What layers with attention keep, in their order: all of a text that is seen whole."""
        return [
            PagedKV(c.kv_heads, c.head_dim, c.head_dim, self.c.windows[i] if self.v.causal else 0)
            for i, c in enumerate(self.layers)
            if c.kv_heads
        ]

    def norm(self, b: Builder, x: str, name: str, group: int = 0, eps: float = 0.0) -> str:
        """RMSNorm or LayerNorm, with what weight and bias the file has."""
        weight = decoder.present(self.catalog, f"{name}.weight")
        bias = decoder.present(self.catalog, f"{name}.bias")
        group = 0 if weight is not None else group or self.c.width
        if self.v.norm == "rms":
            x = b.rms_norm(x, weight, eps or self.eps, group)
            return b.shift(x, bias) if self.v.norm_bias and bias is not None else x
        return b.layer_norm(x, weight, bias, eps or self.eps, group)

    def embed(self, b: Builder) -> str:
        """Rows of the table, scaled, with positions and a norm where the family has them."""
        c, v = self.c, self.v
        scale = math.sqrt(c.width) if v.width_scale else 1.0
        if v.multipliers:
            usual = 12.0 if c.architecture == "minicpm" else 1.0
            scale = c.keys.number("embedding_scale", 0.0) or usual
        x = b.embed("token_embd.weight", scale)
        if v.positions and self.catalog.has("position_embd.weight"):
            x = b.add_positions(x, "position_embd.weight")
        return self.norm(b, x, "token_embd_norm") if v.embed_norm else x

    def layer(self, b: Builder, x: str, i: int) -> str:
        """x with both halves of layer i added."""
        c, v, name = self.layers[i], self.v, f"blk.{i}."
        first, second, entry = f"{name}attn_norm", f"{name}{v.before_ffn}", x
        if self.catalog.has(f"{name}attn_norm_2.weight"):
            first, second = f"{name}attn_norm_2", first
        bare = not v.before or (v.bare_first and i == 0)
        h = self.norm(b, x, first) if c.heads and not bare else x
        mixed = self.attention(b, h, i) if c.heads else None
        own = v.weightless or self.catalog.has(f"{second}.weight")
        if mixed is not None and (self.parallel or (not own and v.before)):
            apart = own and second != first
            h = self.norm(b, x, second) if apart else h
            return b.add(b.add(self.ffn(b, h, i, entry), x), mixed)
        if mixed is not None:
            x = b.add(x, self.after(b, mixed, f"{name}{v.after_names[0]}"))
        if c.ffn:
            h = self.norm(b, x, second) if v.before else x
            x = b.add(x, self.after(b, self.ffn(b, h, i, entry), f"{name}{v.after_names[1]}"))
        if v.skip:
            x = b.add(x, b.scale_by(self.embed(b), f"{name}layer_output_scale.weight"))
        return x

    @property
    def parallel(self) -> bool:
        v = self.v
        return v.parallel == "always" or (
            v.parallel == "stated" and self.c.keys.flag("parallel", True)
        )

    def after(self, b: Builder, x: str, name: str) -> str:
        """What a half gives, as it is added."""
        c, v = self.c, self.v
        if v.after:
            x = self.norm(b, x, name, eps=v.after_eps or 0.0)
        if not v.multipliers:
            return x
        usual = 1.4 / math.sqrt(c.layers) if c.architecture == "minicpm" else 1.0
        return b.scale(x, c.keys.number("residual_scale", 0.0) or usual)

    def rope(self, i: int) -> Rope | None:
        """How layer i rotates q and k, None where it does not."""
        c, v = self.c, self.v
        listed = c.keys.integers("rope_layers", c.layers, 1)
        turns = {
            "all": bool(listed[i]),
            "windows": c.windows[i] > 0,
            "dense": c.windows[i] > 0 or i < c.keys.integer("dense_layers", 0, low=0),
            "three": bool(listed[i]) if c.keys.stated("rope_layers") else (i + 1) % 4 != 0,
            "first": i % 4 != 0,
        }[v.rope_on]
        if v.rope is None or not turns:
            return None
        if v.whole_head:
            c = replace(c, keys=c.keys.without("rope_dim"))
        factors = decoder.rope_factors(c, self.catalog)
        if not c.windows[i] or v.rope_local == "same":
            rope = read_rope(c, v.rope, factors=factors)
            if v.backward:
                rope = replace(rope, inv_freq=tuple(-f for f in rope.inv_freq))
            return rope
        if v.rope_local == "plain":
            c = replace(c, keys=c.keys.without("rope_base_local"))
        local = read_local_rope(c, v.rope, scaled=v.rope_local == "based")
        return replace(local, factors=factors)

    def attention(self, b: Builder, x: str, i: int) -> str:
        """Attention over what layer i reads, its gate and its output product."""
        c, v, name = self.layers[i], self.v, f"blk.{i}.attn_"
        product = decoder.product
        if not c.kv_heads:  # a product stands for the attention
            return product(b, self.catalog, x, f"{name}output")
        with b.unit("attention"):
            if self.catalog.has(f"{name}qkv.weight"):
                q, k, w = self.by_head(b, c, product(b, self.catalog, x, f"{name}qkv"))
            else:
                q, k, w = (
                    product(b, self.catalog, x, f"{name}{letter}", scaled=v.qkv_scaled)
                    for letter in "qkv"
                )
        if v.clamped == "first":
            q, k, w = self.clamp(b, q, k, w)
        if not v.late:
            q, k = self.qk_norm(b, q, f"{name}q_norm"), self.qk_norm(b, k, f"{name}k_norm")
        if v.clamped == "normed":
            q, k, w = self.clamp(b, q, k, w)
        rope = self.rope(i)
        if rope is not None:
            q, k = (decoder.rotate(b, c, y, rope) for y in (q, k))
        if v.late:
            q, k = self.qk_norm(b, q, f"{name}q_norm"), self.qk_norm(b, k, f"{name}k_norm")
        temperature = c.keys.number("temperature_scale", 0.0)
        if temperature:
            q = b.position_scale(q, c.keys.integer("rope_original_context"), temperature)
        usual = 1 / c.head_dim if v.inverse_scale else 1 / math.sqrt(c.head_dim)
        scale = c.keys.number("attention_scale", 0.0) or usual
        if v.capped:
            scale = c.keys.number("output_scale")
        mixed = b.attention(
            q,
            k,
            w,
            layer=sum(other.kv_heads > 0 for other in self.layers[:i]),
            heads=c.heads,
            kv_heads=c.kv_heads,
            k_dim=c.head_dim,
            v_dim=c.head_dim,
            scale=scale,
            softcap=c.keys.number("attention_softcap") if v.capped else 0.0,
            window=self.c.windows[i] if v.causal else decoder.both_ways(self.c.windows[i]),
            alibi=c.keys.number("alibi", 0.0) if v.alibi_stated else v.alibi,
            causal=v.causal,
            sinks=decoder.present(self.catalog, f"{name}sinks.weight"),
        )
        if v.gate:
            with b.unit("attention"):
                gate = product(b, self.catalog, x, f"{name}gate", scaled=False)
            mixed = b.mul(mixed, b.activation(gate, "sigmoid"))
        if v.sub_norms:
            mixed = self.norm(b, mixed, f"{name}sub_norm")
        with b.unit("attention"):
            return product(b, self.catalog, mixed, f"{name}output")

    def by_head(self, b: Builder, c: Config, x: str) -> tuple[str, ...]:
        """Queries, keys and values of what one product made, group of heads after group."""
        d = self.v.directory or Directory()
        groups = d.groups or c.kv_heads
        if c.kv_heads % groups:
            key = c.keys.find("heads")[0]
            raise ConfigError(f"'{key}' is {c.heads}, no multiple of {groups}")
        widths = {"q": c.q_width // groups, "k": c.kv_width // groups, "v": c.kv_width // groups}
        total = sum(widths.values())
        starts = dict(
            zip(d.order, accumulate((widths[n] for n in d.order), initial=0), strict=False)
        )
        return tuple(b.columns(x, head_dim=total, start=starts[n], width=widths[n]) for n in "qkv")

    def clamp(self, b: Builder, *values: str) -> tuple[str, ...]:
        """The values, none beyond what the file bounds them by, if it does."""
        most = self.c.keys.number("clamp_qkv", 0.0)
        return tuple(b.clamp(x, -most, most) for x in values) if most else values

    def qk_norm(self, b: Builder, x: str, name: str) -> str:
        """The norm of all queries or keys, if the family and the file have one."""
        v, weight = self.v, f"{name}.weight"
        if v.qk_norm in ("head", "all") and self.catalog.has(weight):
            return self.norm(b, x, name)
        if v.qk_norm == "heads" and (v.weightless or self.catalog.has(weight)):
            norm = b.rms_norm if v.norm == "rms" else _layer_norm(b)
            x = norm(x, None, self.eps, self.c.head_dim)
            return b.scale_by(x, weight) if self.catalog.has(weight) else x
        return x

    def ffn(self, b: Builder, x: str, i: int, entry: str) -> str:
        """The feed-forward half of layer i, which read ``entry``."""
        v, m, r = self.v, self.m, self.v.mixture
        if m is None or r is None or not m.layers[i]:
            return self.products(b, x, i)
        dense = self.products(b, x, i) if self.catalog.has(f"blk.{i}.ffn_up.weight") else None
        out = experts.feed_forward(
            b,
            self.catalog,
            m,
            self.norm(b, entry, f"blk.{i}.ffn_norm_exps") if r.beside == "entry" else x,
            i,
            v.activation,
            scaled=v.ffn_scaled,
            router_input=entry if r.router == "entry" else None,
        )
        if r.chunks:
            return experts.with_chunks(b, self.catalog, self.layers[i], m, x, out, i)
        if dense is not None:
            out = b.add(dense, out)
            return b.scale(out, math.sqrt(0.5)) if r.beside == "mean" else out
        return b.scale(out, 0.5) if r.halved and m.shared else out

    def products(self, b: Builder, x: str, i: int) -> str:
        """The feed-forward of a layer without experts, or what one has beside them."""
        v, name = self.v, f"blk.{i}.ffn_"

        def product(x: str, part: str) -> str:
            scaled = v.ffn_scaled or (v.skip and part == "down")
            return decoder.product(b, self.catalog, x, f"{name}{part}", scaled=scaled)

        with b.unit("ffn"):
            gate = product(x, "gate") if v.gated else None
            up = product(x, "up")
            if gate is not None:
                mixed = b.glu(gate, up, v.activation)
            elif v.activation == "xielu":
                mixed = b.xielu(up, **self.xielu(i))
            else:
                mixed = b.activation(up, v.activation)
            if v.act_scales and self.catalog.has(f"blk.{i}.ffn.act.scales"):
                mixed = b.scale_by(mixed, f"blk.{i}.ffn.act.scales", inverse=True)
            if v.sub_norms:
                mixed = self.norm(b, mixed, f"{name}sub_norm")
            return product(mixed, "down")

    def xielu(self, i: int) -> dict[str, float]:
        """The parameters of layer i's activation; alphas are what softplus makes of them."""
        keys, count = self.c.keys, self.c.layers
        if keys.kind == "gguf":
            negative, positive, beta, eps = (
                keys.numbers(f"xielu_{n}", count, low=-1e4, high=1e4)[i]
                for n in ("negative", "positive", "beta", "eps")
            )
        else:
            negative, positive, beta, eps = (
                self.catalog.number(f"{{p}}layers.{i}.mlp.act_fn.{name}", usual)
                for name, usual in _XIELU.items()
            )
        return {
            "negative": beta + _softplus(negative),
            "positive": _softplus(positive),
            "beta": beta,
            "eps": eps,
        }

    def embedding(self, b: Builder, x: str) -> str:
        """What EmbeddingGemma makes of the mean of a text's rows by two products: of each row here,
        since the mean of products is the product of the mean."""
        x = self.norm(b, x, "output_norm")
        return b.matmul(b.matmul(x, "dense_2.weight"), "dense_3.weight")

    def logits(self, b: Builder, x: str) -> str:
        """Logits of the selected rows."""
        c, v = self.c, self.v
        x = self.norm(b, x, "output_norm")
        bias = decoder.present(self.catalog, "output.bias")
        x = decoder.head(b, c, x, bias)
        usual = c.width / 256 if c.architecture == "minicpm" else 1.0
        factor = c.keys.number("logit_scale", 0.0) or usual
        if v.logit_multiplies:
            x = b.scale(x, factor)
        elif v.multipliers:
            x = b.scale(x, 1 / factor)
        return b.softcap(x, c.keys.number("logit_softcap", 0.0) if v.softcapped else 0.0)


def _layer_norm(b: Builder) -> Callable[[str, str | None, float, int], str]:
    return lambda x, weight, eps, group: b.layer_norm(x, weight, None, eps, group)


def _softplus(x: float) -> float:
    return x if x > 20 else math.log1p(math.exp(x))
