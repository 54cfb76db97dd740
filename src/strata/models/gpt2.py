"""GPT-2: learned positions, LayerNorm, one fused projection for q, k and v, biases everywhere.

Source: Radford et al., Language Models are Unsupervised Multitask Learners, 2019. Hugging Face
files store projections as [in, out] (Conv1D); GGUF files have them turned.
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder, Model

# Causal masks that old checkpoints carry along.
_MASKS = (r".*\.attn\.(masked_)?bias",)


def tensors(c: Config) -> dict[str, Tensor]:
    """The tensors of a GPT-2 model."""
    tensors = {
        "token_embd.weight": Tensor("{p}wte.weight", (c.vocab, c.width)),
        "position_embd.weight": Tensor("{p}wpe.weight", (c.trained_context, c.width)),
        "output_norm.weight": Tensor("{p}ln_f.weight", (c.width,)),
        "output_norm.bias": Tensor("{p}ln_f.bias", (c.width,)),
    }
    if not c.tied:
        tensors["output.weight"] = Tensor("lm_head.weight", (c.vocab, c.width))
    h = "{p}h.{i}."
    for kind in ("weight", "bias"):
        for name, stored in (("attn_norm", "ln_1"), ("ffn_norm", "ln_2")):
            tensors[f"blk.{{i}}.{name}.{kind}"] = Tensor(f"{h}{stored}.{kind}", (c.width,))
        for start, letter in enumerate("qkv"):
            tensors |= decoder.scale_tensors(c, f"attn_{letter}", fused="attn_qkv")
            tensors[f"blk.{{i}}.attn_{letter}.{kind}"] = _projection(
                None,
                kind,
                c.width,
                c.width,
                Part(
                    f"blk.{{i}}.attn_qkv.{kind}",
                    f"{h}attn.c_attn.{kind}",
                    start * c.width,
                    3 * c.width,
                ),
            )
        for name, stored, rows, columns in (
            ("attn_output", "attn.c_proj", c.width, c.width),
            ("ffn_up", "mlp.c_fc", c.ffn, c.width),
            ("ffn_down", "mlp.c_proj", c.width, c.ffn),
        ):
            tensors[f"blk.{{i}}.{name}.{kind}"] = _projection(
                f"{h}{stored}.{kind}", kind, rows, columns
            )
    for name in ("attn_output", "ffn_up", "ffn_down"):
        tensors |= decoder.scale_tensors(c, name)
    return tensors


def _projection(
    huggingface: str | None, kind: str, rows: int, columns: int, part: Part | None = None
) -> Tensor:
    if kind == "bias":
        return Tensor(huggingface, (rows,), part=part)
    return Tensor(huggingface, (rows, columns), transform="transpose", part=part)


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of a GPT-2 file."""
    c = read_config(file, architecture, context, tied=True, ffn_ratio=4)
    for key, usual in (
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
        ("add_cross_attention", False),
    ):
        if c.keys.raw(key) not in (None, usual):
            raise ConfigError(f"'{key}' is {shown(c.keys.raw(key))}: only {usual} is built")
    if c.kv_heads != c.heads:
        raise ConfigError(f"{c.kv_heads} key heads for {c.heads} query heads: GPT-2 has as many")
    decoder.check_activation(c, "gelu_new", "gelu_pytorch_tanh")
    eps = c.keys.number("layer_norm_eps", 1e-5, low=1e-12, high=1.0)
    catalog = Catalog(
        file,
        tensors(c),
        c.layers,
        prefixes=("transformer.", ""),
        harmless=(*decoder.harmless(c), *_MASKS),
    )

    def norm(b: Builder, x: str, name: str) -> str:
        return b.layer_norm(x, f"{name}.weight", f"{name}.bias", eps)

    def layer(b: Builder, x: str, i: int) -> str:
        name = f"blk.{i}."
        h = norm(b, x, f"{name}attn_norm")
        x = b.add(x, decoder.attention(b, c, catalog, h, i, rope=None))
        h = norm(b, x, f"{name}ffn_norm")
        return b.add(x, decoder.plain(b, catalog, h, i, "gelu_tanh"))

    return decoder.assemble(
        c,
        catalog,
        embed=lambda b: b.add_positions(b.embed("token_embd.weight"), "position_embd.weight"),
        layer=layer,
        head=lambda b, x: decoder.head(b, c, norm(b, x, "output_norm")),
    )
