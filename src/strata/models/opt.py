"""OPT: learned positions counted from 2, LayerNorm, ReLU (arXiv:2205.01068). No GGUF form exists.

Most sizes normalise before each half of a layer; the 350M model after it, with an embedding
narrower than its layers.
"""

from __future__ import annotations

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import Config, read_config
from strata.models.errors import ConfigError
from strata.models.tensors import Catalog, Tensor
from strata.program import Builder, Model

# The checkpoint's table starts with two rows that no position uses.
_OFFSET = 2
_EPS = 1e-5
_FUNCTIONS = {"relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh"}
_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "ffn_up": "fc1",
    "ffn_down": "fc2",
}


def tensors(c: Config, narrow: int, last_norm: bool) -> dict[str, Tensor]:
    """The tensors of an OPT model; ``narrow`` is the width of its embedding table."""
    tensors = {
        "token_embd.weight": Tensor("{p}embed_tokens.weight", (c.vocab, narrow)),
        "position_embd.weight": Tensor(
            "{p}embed_positions.weight", (c.trained_context + _OFFSET, c.width)
        ),
    }
    if narrow != c.width:
        tensors["embd_in.weight"] = Tensor("{p}project_in.weight", (c.width, narrow))
        tensors["embd_out.weight"] = Tensor("{p}project_out.weight", (narrow, c.width))
    if not c.tied:
        tensors["output.weight"] = Tensor("lm_head.weight", (c.vocab, narrow))
    for kind in ("weight", "bias"):
        if last_norm:
            tensors[f"output_norm.{kind}"] = Tensor(f"{{p}}final_layer_norm.{kind}", (c.width,))
        for name, stored in (
            ("attn_norm", "self_attn_layer_norm"),
            ("ffn_norm", "final_layer_norm"),
        ):
            tensors[f"blk.{{i}}.{name}.{kind}"] = Tensor(
                f"{{p}}layers.{{i}}.{stored}.{kind}", (c.width,)
            )
    for name, stored in _NAMES.items():
        rows = c.ffn if name == "ffn_up" else c.width
        columns = c.ffn if name == "ffn_down" else c.width
        source = f"{{p}}layers.{{i}}.{stored}"
        tensors[f"blk.{{i}}.{name}.weight"] = Tensor(f"{source}.weight", (rows, columns))
        if c.keys.flag("biased", True):
            tensors[f"blk.{{i}}.{name}.bias"] = Tensor(f"{source}.bias", (rows,))
    return tensors


def build(file: ModelFile, architecture: str, context: int | None) -> Model:
    """The Model of an OPT directory."""
    c = read_config(file, architecture, context, tied=True)
    if not c.keys.flag("affine", True):
        raise ConfigError(f"'{c.keys.find('affine')[0]}' is false: norms without weights")
    name = c.keys.text("activation", "relu")
    if name not in _FUNCTIONS:
        raise ConfigError(f"activation '{name}' is not one of {', '.join(_FUNCTIONS)}")
    before = c.keys.flag("norm_before", True)
    last_norm = before and not c.keys.flag("no_last_norm", False)
    narrow = c.keys.integer("embedding_width", c.width)
    catalog = Catalog(
        file,
        tensors(c, narrow, last_norm),
        c.layers,
        prefixes=("model.decoder.", "decoder."),
        harmless=decoder.harmless(c),
    )

    def norm(b: Builder, x: str, name: str) -> str:
        return b.layer_norm(x, f"{name}.weight", f"{name}.bias", _EPS)

    def embed(b: Builder) -> str:
        x = b.embed("token_embd.weight")
        if narrow != c.width:
            x = b.matmul(x, "embd_in.weight")
        return b.add_positions(x, "position_embd.weight", _OFFSET)

    def layer(b: Builder, x: str, i: int) -> str:
        first, second = f"blk.{i}.attn_norm", f"blk.{i}.ffn_norm"
        h = norm(b, x, first) if before else x
        x = b.add(x, decoder.attention(b, c, catalog, h, i, rope=None))
        x = x if before else norm(b, x, first)
        h = norm(b, x, second) if before else x
        x = b.add(x, decoder.plain(b, catalog, h, i, _FUNCTIONS[name]))
        return x if before else norm(b, x, second)

    def head(b: Builder, x: str) -> str:
        x = norm(b, x, "output_norm") if last_norm else x
        x = b.matmul(x, "embd_out.weight") if narrow != c.width else x
        return decoder.head(b, c, x)

    return decoder.assemble(c, catalog, embed=embed, layer=layer, head=head)
