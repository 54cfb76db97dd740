"""Nemotron-H (arXiv:2504.03624) without experts: a Mamba-2 mixer, attention without positions or a
feed-forward with squared ReLU a layer."""

from __future__ import annotations

from dataclasses import replace

from strata.formats import ModelFile
from strata.models import decoder, mamba, state_space
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.tensors import Catalog, Tensor, on_layers
from strata.program import Builder, Model

_LETTERS = {"M": "ssm", "*": "attention", "-": "ffn"}
_TYPES = {
    **{"mamba": "ssm", "linear_attention": "ssm"},
    **{"attention": "attention", "full_attention": "attention"},
    "mlp": "ffn",
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
    each = zip(ffn, heads, strict=True)
    return ["ffn" if wide else "attention" if many else "ssm" for wide, many in each]


def _renamed(name: str | None) -> str:
    return (name or "").replace(".self_attn.", ".mixer.").replace(".mlp.", ".mixer.")


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a Nemotron-H file."""
    c = read_config(file, architecture, context, mixed=True, experts=True)
    sizes = state_space.read_sizes(c, version=2)
    kind = kinds(c)
    attention = decoder.attention_tensors(c, bias=False, out_bias=False)
    ffn = {n: t for n, t in decoder.gated_tensors(c).items() if "gate" not in n}
    of = {"ssm": state_space.tensors2(c, sizes, "mixer"), "attention": attention, "ffn": ffn}
    tensors = {
        **mamba.frame_tensors(c),
        "blk.{i}.attn_norm.weight": Tensor("{p}layers.{i}.norm.weight", (c.width,)),
    }
    for each, own in of.items():
        mixer = {
            name: replace(
                t,
                huggingface=_renamed(t.huggingface),
                part=t.part if file.kind == "gguf" or each == "ssm" else None,
            )
            for name, t in own.items()
        }
        tensors |= on_layers(mixer, [i for i in range(c.layers) if kind[i] == each])
    prefixes = ("backbone.", "model.", "")
    harmless = decoder.harmless(c)
    catalog = Catalog(file, tensors, c.layers, prefixes=prefixes, harmless=harmless)
    eps = c.keys.number("rms_eps" if file.kind == "gguf" else "layer_norm_eps", low=1e-12, high=1.0)
    kept = state_space.Kept()

    def layer(b: Builder, x: str, i: int) -> str:
        h = b.rms_norm(x, f"blk.{i}.attn_norm.weight", eps)
        if kind[i] == "ffn":
            h = decoder.plain(b, catalog, h, i, "relu2", scaled=True)
        elif kind[i] == "attention":
            h = decoder.attention(b, c, catalog, h, i, rope=None, layer=kept.kv(c, i))
        else:
            h = state_space.mixer2(b, sizes, catalog, kept, h, i, eps)
        return b.add(x, h)

    return decoder.normed(c, catalog, layer, eps, state=kept.state)
