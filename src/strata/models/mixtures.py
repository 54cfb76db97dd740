"""Families of Llama's layers with experts: a table row each.

Sources of the rows: the tensors and keys that llama.cpp reads for an architecture and what it does
with them; names in Hugging Face files are those of transformers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import Config, read_config
from strata.models.rope import Style, read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Model


@dataclass(frozen=True)
class Row:
    """How an architecture differs from Mixtral.

    ``rope`` is how GGUF files pair dimensions. ``qk_norm``: of each ``head``, or ``all`` of q and
    of k. ``ffn_norm`` is the name of the norm before the feed-forward in GGUF files. ``bias`` and
    ``out_bias`` are what Hugging Face files have. ``multipliers`` are Granite's. ``scoring`` and
    ``renormalise`` as ``experts.read_mixture`` has them (None: as the file says);
    ``dense_first``: the first layers may have no experts; ``every``: the file may say that only
    each so-manieth layer has some; ``scaled``: scales beside the experts of GGUF files count;
    ``unused`` is a pattern of tensors that files hold and nobody reads. ``attrs`` are further
    attributes of the Op.
    """

    rope: Style = "neox"
    qk_norm: Literal["", "head", "all"] = ""
    ffn_norm: str = "ffn_norm"
    bias: bool = False
    out_bias: bool = False
    multipliers: bool = False
    scoring: str = "softmax"
    renormalise: bool | None = True
    dense_first: bool = True
    every: bool = False
    scaled: bool = False
    unused: str = r"(?!)"
    names: experts.HuggingFaceNames = field(default_factory=experts.HuggingFaceNames)
    attrs: Mapping[str, Any] = field(default_factory=dict)


_GLM4 = Row(
    qk_norm="head",
    ffn_norm="post_attention_norm",
    bias=True,
    scoring="sigmoid",
    renormalise=None,
)

# By `general.architecture`.
GGUF: Mapping[str, Row] = {
    "bailingmoe": Row(rope="interleaved", renormalise=None, dense_first=False),
    "bailingmoe2": Row(qk_norm="head", renormalise=None),
    "deepseek": Row(rope="interleaved", renormalise=False),
    "dots1": Row(qk_norm="head", renormalise=None),
    "ernie4_5-moe": Row(rope="interleaved", every=True, unused=r"blk\.\d+\.attn_output\.bias"),
    "glm4moe": _GLM4,
    "granitemoe": Row(rope="interleaved", multipliers=True),
    "minimax-m2": Row(qk_norm="all"),
    "olmoe": Row(qk_norm="all", renormalise=False),
    "qwen2moe": Row(bias=True, renormalise=False, dense_first=False),
    "qwen3vlmoe": Row(qk_norm="head"),
}

# By `architectures` of config.json.
HUGGING_FACE: Mapping[str, Row] = {
    "OlmoeForCausalLM": Row(qk_norm="all", renormalise=None),
}


def read(c: Config, r: Row) -> experts.Mixture | None:
    """The mixture of a file of a family."""
    m = experts.read_mixture(
        c, scoring=r.scoring, renormalise=r.renormalise, names=r.names, **r.attrs
    )
    if m is not None and not r.dense_first:
        return replace(m, layers=(True,) * c.layers)
    if m is None or not r.every:
        return m
    step = c.keys.integer("expert_step", 1)
    layers = tuple(on and (i + 1) % step == 0 for i, on in enumerate(m.layers))
    return replace(m, layers=layers)


def tensors(c: Config, r: Row) -> dict[str, Tensor]:
    """The tensors of a family."""
    wide = {"": None, "head": (c.head_dim, c.head_dim), "all": (c.q_width, c.kv_width)}[r.qk_norm]
    norms = {"attn_norm": "input_layernorm", r.ffn_norm: "post_attention_layernorm"}
    out = {
        **decoder.frame_tensors(c),
        **decoder.rope_tensors(c),
        **decoder.norm_tensors(c, "none", **norms),
        **decoder.attention_tensors(c, bias=r.bias, out_bias=r.out_bias),
        **experts.mixture_tensors(c, read(c, r)),
    }
    if wide is not None:
        made = decoder.qk_norm_tensors(*wide)
        # GLM-4.5-Air has none of them.
        out |= {name: replace(t, optional=r is _GLM4) for name, t in made.items()}
    unused = re.compile(r.unused.replace(r"\d+", r"\{i\}"))
    return {name: tensor for name, tensor in out.items() if not unused.fullmatch(name)}


def build(file: ModelFile, architecture: str, context: int | None, r: Row) -> Model:
    """The Model of a file whose architecture is the row ``r``."""
    c = read_config(file, architecture, context, experts=True)
    harmless = (*decoder.harmless(c), r.unused)
    catalog = Catalog(file, tensors(c, r), c.layers, harmless=harmless)
    m = read(c, r)
    style = r.rope if file.kind == "gguf" else "neox"
    rope = read_rope(c, style, factors=decoder.rope_factors(c, catalog))
    options: dict[str, Any] = {}
    if r.multipliers:
        number = c.keys.number
        options = {
            "attention_scale": number("attention_scale", 0.0) or 1 / math.sqrt(c.head_dim),
            "embedding_scale": number("embedding_scale", 0.0) or 1.0,
            "residual_scale": number("residual_scale", 0.0) or 1.0,
            "logit_scale": 1 / (number("logit_scale", 0.0) or 1.0),
        }
    return decoder.pre_norm_model(
        c,
        catalog,
        rope,
        qk_norm=bool(r.qk_norm) and catalog.has("blk.0.attn_q_norm.weight"),
        ffn_norm=r.ffn_norm,
        feed_forward=lambda b, x, i: experts.feed_forward(
            b, catalog, m, x, i, scaled=r.scaled or file.kind != "gguf"
        ),
        **options,
    )


FAMILIES: Mapping[str, Callable[[ModelFile, str, int | None], Model]] = {
    name: partial(build, r=row) for name, row in {**GGUF, **HUGGING_FACE}.items()
}
