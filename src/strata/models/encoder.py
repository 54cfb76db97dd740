"""BERT and its successors: layers that see a whole text, with a norm after each half.

Sources: arXiv:1810.04805, and the tensors and keys that llama.cpp reads for an architecture; names
in Hugging Face files are those of transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from strata.formats import ModelFile
from strata.models import decoder
from strata.models.config import MAX_VOCABULARY, Config, read_config
from strata.models.embedding import ranks
from strata.models.errors import ConfigError, MissingTensor
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Part, Tensor
from strata.program import Builder, Model
from strata.records import dataclass

_NORM_EPS = 1e-12


@dataclass(frozen=True)
class Row:
    """How an architecture differs from BERT. ``positions``: a learned table, of which Hugging Face
    files leave the first ``offset`` rows unused; ``rope`` or ``alibi`` where there is none.
    ``gated``: silu or gelu(gate) * up. ``ranks``: what comes out are scores of pairs of texts."""

    positions: bool = True
    offset: int = 0
    rope: bool = False
    alibi: float = 0.0
    gated: bool = False
    activation: str = "gelu"
    ranks: bool = False


_NOMIC = Row(positions=False, rope=True, gated=True, activation="silu")
GGUF: Mapping[str, Row] = {
    "bert": Row(),
    "nomic-bert": _NOMIC,
    "jina-bert-v2": Row(positions=False, alibi=8.0, gated=True),
    "jina-bert-v3": Row(positions=False, rope=True),
}
# By `architectures` of config.json.
HUGGING_FACE: Mapping[str, Row] = {
    "BertModel": Row(),
    "RobertaModel": Row(offset=2),
    "XLMRobertaModel": Row(offset=2),
    "RobertaForSequenceClassification": Row(offset=2, ranks=True),
    "XLMRobertaForSequenceClassification": Row(offset=2, ranks=True),
}

_HEADS = (r"cls\..*", r"(.*\.)?pooler\..*", r"lm_head\..*", r".*position_ids", r".*token_type_ids")
_STORED = {
    "token_embd": "embeddings.word_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_CLASSIFIER = {"cls": "classifier.dense", "cls.output": "classifier.out_proj"}
_PREFIXES = ("", "bert.", "roberta.", "model.")


def tensors(c: Config, r: Row, types: int = 1, labels: int = 0) -> dict[str, Tensor]:
    """The tensors of an architecture; ``types`` are those of tokens, ``labels`` those of a
    classifier."""
    wide = (c.width,)
    first = Part("token_types.weight", f"{{p}}{_STORED['token_types']}.weight", 0, types, row=True)
    out = {
        "token_embd.weight": Tensor(None, (c.vocab, c.width)),
        "token_types.weight": Tensor(None, wide, optional=True, part=first, apart=False),
        "token_embd_norm.weight": Tensor(None, wide),
        "token_embd_norm.bias": Tensor(None, wide),
    }
    if r.positions:
        rows = c.trained_context + (r.offset if c.keys.kind == "huggingface" else 0)
        out["position_embd.weight"] = Tensor(None, (rows, c.width))
    out |= decoder.attention_tensors(c, bias=True, out_bias=True)
    out |= {
        name: tensor
        for name, tensor in decoder.gated_tensors(c, bias=True).items()
        if r.gated or "ffn_gate" not in name
    }
    for name in ("attn_output_norm", "layer_output_norm"):
        for kind in ("weight", "bias"):
            out[f"blk.{{i}}.{name}.{kind}"] = Tensor(None, wide)
    out = {name: replace(tensor, huggingface=_stored(name)) for name, tensor in out.items()}
    for name, rows in (("cls", c.width), ("cls.output", labels)) if labels else ():
        stored = _CLASSIFIER[name]
        out[f"{name}.weight"] = Tensor(f"{stored}.weight", (rows, c.width))
        out[f"{name}.bias"] = Tensor(f"{stored}.bias", (rows,))
    return out


def _stored(name: str) -> str | None:
    """The name in Hugging Face files, with what comes before it."""
    *before, part, kind = name.split(".")
    if part not in _STORED or part == "token_types":
        return None
    place = "{p}encoder.layer.{i}." if before else "{p}"
    return f"{place}{_STORED[part]}.{kind}"


def build(file: ModelFile, architecture: str, context: int | None, r: Row) -> Model:
    """The Model of an encoder, which gives embeddings."""
    c = _config(file, architecture, context, r)
    types = _types(file, c)
    labels = _labels(file) if r.ranks or ranks(file) else 0
    if labels and types > 1:
        raise ConfigError(
            "this model ranks, and gives the second text of a pair tokens of another type, which "
            "is not built"
        )
    harmless = tuple(name for name in _HEADS if not (labels and name.startswith("cls")))
    catalog = Catalog(
        file, tensors(c, r, types, labels), c.layers, prefixes=_PREFIXES, harmless=harmless
    )
    if c.keys.text("activation", "gelu") != "gelu":
        raise ConfigError(f"'{c.keys.find('activation')[0]}': an encoder here has gelu")
    rope = read_rope(c, "neox") if r.rope else None
    eps = c.keys.number("layer_norm_eps", _NORM_EPS, low=1e-15, high=1.0)

    def norm(b: Builder, x: str, name: str) -> str:
        return b.layer_norm(x, f"{name}.weight", f"{name}.bias", eps)

    def embed(b: Builder) -> str:
        x = b.embed("token_embd.weight")
        if catalog.has("token_types.weight"):
            # One text: all of its tokens are of the first type.
            x = b.shift(x, "token_types.weight")
        if r.positions:
            offset = r.offset if file.kind == "huggingface" else 0
            x = b.add_positions(x, "position_embd.weight", offset)
        return norm(b, x, "token_embd_norm")

    def layer(b: Builder, x: str, i: int) -> str:
        name = f"blk.{i}."
        with b.unit("attention"):
            q, k, v = (decoder.product(b, catalog, x, f"{name}attn_{p}") for p in "qkv")
        if rope is not None:
            q, k = (decoder.rotate(b, c, y, rope) for y in (q, k))
        mixed = b.attention(
            q,
            k,
            v,
            layer=i,
            heads=c.heads,
            kv_heads=c.kv_heads,
            k_dim=c.head_dim,
            v_dim=c.head_dim,
            scale=1 / math.sqrt(c.head_dim),
            alibi=r.alibi,
            causal=False,
        )
        with b.unit("attention"):
            mixed = decoder.product(b, catalog, mixed, f"{name}attn_output")
        x = norm(b, b.add(x, mixed), f"{name}attn_output_norm")
        ffn = decoder.gated if r.gated else decoder.plain
        return norm(b, b.add(x, ffn(b, catalog, x, i, r.activation)), f"{name}layer_output_norm")

    def classify(b: Builder, x: str) -> str:
        x = b.activation(decoder.product(b, catalog, x, "cls"), "tanh")
        return decoder.product(b, catalog, x, "cls.output")

    return decoder.assemble(
        c,
        catalog,
        embed=embed,
        layer=layer,
        head=classify if labels else lambda _, x: x,
        result="score" if labels else "embedding",
    )


def _config(file: ModelFile, architecture: str, context: int | None, r: Row) -> Config:
    """The sizes; positions that Hugging Face counts and leaves unused are none."""
    if file.kind == "huggingface" and r.offset:
        c = read_config(file, architecture, None)
        trained = c.trained_context - r.offset
        return replace(c, trained_context=trained, context=min(context or trained, trained))
    return read_config(file, architecture, context)


def _types(file: ModelFile, c: Config) -> int:
    """Types of tokens: GGUF files state them by their table alone."""
    table = file.tensors.get("token_types.weight")
    if table is not None:
        return table.shape[0]
    return c.keys.integer("token_types", 1, high=MAX_VOCABULARY)


def _labels(file: ModelFile) -> int:
    """Of how many kinds a classifier says how likely they are."""
    for name in ("cls.output.weight", f"{_CLASSIFIER['cls.output']}.weight"):
        if name in file.tensors:
            labels = file.tensors[name].shape[0]
            if labels != 1:
                raise ConfigError(f"tensor '{name}' has {labels} labels; a model that ranks has 1")
            return labels
    raise MissingTensor("this model ranks, and has no tensor 'cls.output.weight'")


FAMILIES = {
    name: partial(build, r=row) for table in (GGUF, HUGGING_FACE) for name, row in table.items()
}
