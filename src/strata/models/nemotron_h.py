"""Nemotron-H (arXiv:2504.03624): a Mamba-2 mixer, attention without positions or a feed-forward
with squared ReLU a layer. Nemotron 3 has experts in the place of the latter, which may read and
give vectors of another width.
"""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, experts, mamba, state_space
from strata.models.config import MAX_WIDTH, Config, read_config
from strata.models.errors import ConfigError
from strata.models.tensors import Catalog, Part, Tensor, on_layers
from strata.program import Builder, Model

_LETTERS = {"M": "ssm", "*": "attention", "-": "ffn", "E": "experts"}
_TYPES = {
    **{"mamba": "ssm", "linear_attention": "ssm"},
    **{"attention": "attention", "full_attention": "attention"},
    **{"mlp": "ffn", "moe": "experts"},
}


def kinds(c: Config) -> list[str]:
    """What each layer is."""
    if c.keys.kind != "gguf":
        listed = c.keys.texts("layer_types", c.layers, _TYPES)
        if listed is not None:
            return [_TYPES[kind] for kind in listed]
        pattern = c.keys.text("hybrid_pattern")
        if len(pattern) != c.layers or not set(pattern) <= set(_LETTERS):
            key = c.keys.find("hybrid_pattern")[0]
            raise ConfigError(f"'{key}': {c.layers} letters of {''.join(_LETTERS)} are expected")
        return [_LETTERS[letter] for letter in pattern]
    ffn = c.keys.integers("ffn", c.layers)
    heads = c.keys.integers("kv_heads", c.layers)
    wide = "experts" if c.keys.integer("experts", 0, low=0) else "ffn"
    each = zip(ffn, heads, strict=True)
    return [wide if width else "attention" if many else "ssm" for width, many in each]


def _renamed(name: str | None) -> str:
    return (name or "").replace(".self_attn.", ".mixer.").replace(".mlp.", ".mixer.")


def _renamed_part(part: Part) -> Part:
    return replace(part, huggingface=_renamed(part.huggingface))


def _routed_tensors(c: Config, m: experts.Mixture, width: int) -> dict[str, Tensor]:
    """Of a layer with experts without gates, which take vectors of ``width``."""
    found = experts.mixture_tensors(c, m, gate=False)
    for part in ("ffn_gate_shexp", "ffn_gate_inp_shexp"):
        found = {name: t for name, t in found.items() if f".{part}." not in name}
    inside = {"up": (m.experts, m.ffn, width), "down": (m.experts, width, m.ffn)}
    for part, shape in inside.items():
        name = f"blk.{{i}}.ffn_{part}_exps.weight"
        # All in one tensor, or a tensor each.
        together = Part("", f"{{p}}layers.{{i}}.mlp.experts.{part}_proj", 0, shape[1])
        found[name] = replace(found[name], shape=shape, part=together)
    if width != c.width:
        for part, theirs, pair in (("down", 1, (width, c.width)), ("up", 2, (c.width, width))):
            stored = f"{{p}}layers.{{i}}.mlp.fc{theirs}_latent_proj.weight"
            found[f"blk.{{i}}.ffn_latent_{part}.weight"] = Tensor(stored, pair)
    return found


def _routed(b: Builder, catalog: Catalog, m: experts.Mixture, x: str, i: int) -> str:
    """A layer's experts, and those that every row goes through beside them."""
    name, own = f"blk.{i}.ffn_", x
    narrow = catalog.has(f"{name}latent_down.weight")
    if narrow:
        with b.unit("ffn"):
            own = b.matmul(x, f"{name}latent_down.weight")
    out = experts.routed(
        b, catalog, m, own, i, router_input=x, gate=False, function="relu2", scaled=True
    )
    with b.unit("ffn"):
        if narrow:
            out = b.matmul(out, f"{name}latent_up.weight")
        if not m.shared:
            return out
        beside = b.activation(decoder.product(b, catalog, x, f"{name}up_shexp"), "relu2")
        return b.add(out, decoder.product(b, catalog, beside, f"{name}down_shexp"))


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Nemotron-H file."""
    c = read_config(file, architecture, context, mixed=True, experts=True)
    c, further = decoder.without_further(c)
    sizes = state_space.read_sizes(c, version=2)
    kind = kinds(c)
    share = c.ffn // max(1, c.keys.integer("top_k", 1, low=0))
    m = experts.read_mixture(c, scoring="sigmoid", ffn=share) if "experts" in kind else None
    if "experts" in kind and m is None:
        key = c.keys.find("experts")[0]
        raise ConfigError(f"'{key}' is missing or 0: layer {kind.index('experts')} has experts")
    width = c.keys.integer("expert_width", 0, low=0, high=MAX_WIDTH) or c.width
    attention = decoder.attention_tensors(c, bias=False, out_bias=False)
    ffn = {n: t for n, t in decoder.gated_tensors(c).items() if "gate" not in n}
    of = {"ssm": state_space.tensors2(c, sizes, "mixer"), "attention": attention, "ffn": ffn}
    if m is not None:
        m = replace(m, layers=(True,) * c.layers)
        of["experts"] = _routed_tensors(c, m, width)
    tensors = {
        **mamba.frame_tensors(c),
        "blk.{i}.attn_norm.weight": Tensor("{p}layers.{i}.norm.weight", (c.width,)),
    }
    for each, own in of.items():
        mixer = {
            name: replace(
                t,
                huggingface=_renamed(t.huggingface),
                part=None if t.part is None else _renamed_part(t.part),
            )
            for name, t in own.items()
        }
        tensors |= on_layers(mixer, [i for i in range(c.layers) if kind[i] == each])
    prefixes = ("backbone.", "model.", "")
    harmless = (*decoder.harmless(c), further)
    catalog = Catalog(file, tensors, c.layers, prefixes=prefixes, harmless=harmless)
    eps = c.keys.number("rms_eps" if file.kind == "gguf" else "layer_norm_eps", low=1e-12, high=1.0)
    kept = state_space.Kept()

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if kind[i] == "experts" and m is not None:
            h = _routed(b, catalog, m, h, i)
        elif kind[i] == "ffn":
            h = decoder.plain(b, catalog, h, i, "relu2", scaled=True)
        elif kind[i] == "attention":
            h = decoder.attention(b, c, catalog, h, i, rope=None, layer=kept.kv(c, i))
        else:
            h = state_space.mixer2(b, sizes, catalog, kept, h, i, eps)
        return b.add(x, h)

    return decoder.normed(c, catalog, layer, eps, state=kept.state)
