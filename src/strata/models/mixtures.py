"""Hugging Face checkpoints of Llama's layers with experts: a table row each.

Sources of the rows: the names and the arithmetic of transformers. GGUF files of such families are
rows of ``variants.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

from strata.formats import ModelFile
from strata.models import decoder, experts
from strata.models.config import Config, read_config
from strata.models.rope import read_rope
from strata.models.tensors import Catalog, Tensor
from strata.program import Model


@dataclass(frozen=True)
class Row:
    """How an architecture differs from Mixtral.

    ``qk_norm``: of each ``head``, or ``all`` of q and of k. ``bias`` and ``out_bias``: of q, k, v
    and of the product after them. ``routing`` and ``names`` are those of its experts.
    """

    qk_norm: Literal["", "head", "all"] = ""
    bias: bool = False
    out_bias: bool = False
    routing: experts.Routing = field(default_factory=experts.Routing)
    names: experts.HuggingFaceNames = field(default_factory=experts.HuggingFaceNames)


# By `architectures` of config.json.
HUGGING_FACE: Mapping[str, Row] = {
    "OlmoeForCausalLM": Row(qk_norm="all", routing=experts.Routing(renormalise=None)),
}


def tensors(c: Config, r: Row, m: experts.Mixture | None) -> dict[str, Tensor]:
    """The tensors of a family."""
    norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    wide = {"": None, "head": (c.head_dim, c.head_dim), "all": (c.q_width, c.kv_width)}[r.qk_norm]
    return {
        **decoder.frame_tensors(c),
        **decoder.norm_tensors(c, "none", **norms),
        **decoder.attention_tensors(c, bias=r.bias, out_bias=r.out_bias),
        **experts.mixture_tensors(c, m),
        **({} if wide is None else decoder.qk_norm_tensors(*wide)),
    }


def build(file: ModelFile, architecture: str, context: int | None, r: Row) -> Model:
    """The Model of a directory whose architecture is the row ``r``."""
    c = read_config(file, architecture, context, experts=True)
    m = experts.settled(c, r.routing, r.names)
    catalog = Catalog(file, tensors(c, r, m), c.layers, harmless=decoder.harmless(c))
    return decoder.pre_norm_model(
        c,
        catalog,
        read_rope(c, "neox"),
        qk_norm=bool(r.qk_norm),
        feed_forward=lambda b, x, i: experts.feed_forward(b, catalog, m, x, i),
    )


FAMILIES: Mapping[str, Callable[[ModelFile, str, int | None], Model]] = {
    name: partial(build, r=row) for name, row in HUGGING_FACE.items()
}
