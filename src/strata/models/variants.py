"""Families as variations of one layer: a table row each, and what its fields mean.

Source of the rows: the tensors and keys that llama.cpp reads for an architecture, and what it does
with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Any, Literal

from strata.models.experts import Routing
from strata.models.keys import Keys
from strata.models.rope import Style
from strata.records import dataclass


@dataclass(frozen=True)
class Directory:
    """What Hugging Face checkpoints of a variation call its tensors.

    ``names``: canonical name without ``blk.{i}.`` to theirs, below ``{p}layers.{i}.``; both with
    their last part or both without. ``frame``: the same of what is outside of layers, theirs whole.
    ``fused``: theirs to the canonical ones that it fuses. What
    none has is called as in Llama and DeepSeek; of two names with a bar between them the file has
    one. ``bias`` of q, k and v, or of all four
    attention products, if config.json says so or nothing (``biased``); ``free``: of any product
    that has one. ``prefixes``: what stands for ``{p}``, ``layers`` before a layer's number.
    ``less_one``: norms are stored less 1. ``unused``: a pattern of what nobody reads.

    ``by_head``: one product, called ``attn_qkv`` in ``names``, makes the queries, the key and the
    value of each key head one behind the other, or of each of so many ``groups`` of heads, in the
    ``order`` of these letters. What is ``turned`` is stored transposed. ``acts``: config.json
    chooses the activation.
    ``follows`` gives values, by canonical name, that follow from other keys; ``only`` what is built
    of settings that have several values.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    bias: Literal["", "qkv", "all", "free"] = ""
    biased: bool = False
    frame: Mapping[str, str] = field(default_factory=dict)
    prefixes: tuple[str, ...] = ("model.", "")
    layers: str = "layers"
    less_one: bool = False
    unused: str = r"(?!)"
    by_head: bool = False
    groups: int = 0
    order: str = "qkv"
    turned: tuple[str, ...] = ()
    acts: bool = False
    follows: Callable[[Keys], Mapping[str, Any]] | None = None
    only: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Variant:
    """How an architecture differs from Llama: two halves with a norm before each, attention over
    rotated positions, silu(gate) * up. Every field left out means the same as in Llama.

    Norms: ``norm`` (``layer``: LayerNorm, with a bias where the file has one, as the others have
    with ``norm_bias``), ``weightless``,
    ``before`` and ``after`` the halves, ``before_ffn`` the name of the second, ``after_eps`` where
    the latter differ, ``after_names`` what files call them, ``embed_norm`` over the embedding,
    ``sub_norms`` before the last products.
    ``parallel``: the halves read one x, and one norm where there is no second (so do they wherever
    the file leaves the second out); ``stated``: if the file says so.

    Attention: ``rope`` (how GGUF files pair dimensions; None: no rotation), ``rope_on`` which
    layers (``windows``; ``three``: three of four, the last of them all not, or the ``first``; with
    ``dense``, those without experts as well), ``rope_local`` how they turn with a window: by a base
    that is their ``own`` and unscaled (``based``: scaled), by the ``plain`` one unscaled, or as the
    ``same`` as others, ``whole_head`` whatever the file says, ``backward`` by negative angles,
    ``alibi`` the largest bias, ``alibi_stated`` if the file says it, ``positions`` a learned table,
    ``qk_norm`` over each ``head``, over ``heads`` with weights of their own, or over ``all``
    (``qk_free``: files may leave it out); ``late``: after rotation; ``window_every``: every
    so-manieth layer sees all keys, if the file states a window, the first of so many where
    ``full_first``; ``gate`` of the mixed values, one a ``head`` or a ``column``; ``clamped`` q, k
    and v, ``first`` or ``normed``; ``sinks`` in ``all`` layers or where the
    file has ``some``; ``qkv_scaled``: the first products' scales are
    applied; ``inverse_scale``: scores by 1 / head_dim; ``capped`` scores, times what files call the
    output's scale; ``causal``; ``bare_first``: the first layer's has no norm before it.

    Feed-forward: ``activation``, ``gated``, ``fused`` gate and up, ``ffn_scaled`` if its products'
    scales are applied, ``act_scales`` that divide activated values where the file has them,
    ``half_ffn`` where the file states twice the width; ``mixture`` of experts, if the file has
    some.

    ``width_scale``: the embedding times sqrt(width); ``multipliers`` of embedding, residuals and
    scores as in Granite; ``logit_multiplies``: the logit scale is a factor, not a divisor;
    ``skip``: each layer adds the embedding again, scaled; ``softcapped`` logits; ``tied``.
    ``unused`` is a pattern of tensors that files hold and nobody reads, ``unread`` are keys of this
    kind (by canonical name), ``assumed`` what keys say that are left out. ``directory``: such
    checkpoints are meant, else GGUF files.
    """

    norm: Literal["rms", "layer"] = "rms"
    norm_bias: bool = False
    weightless: bool = False
    before: bool = True
    after: bool = False
    before_ffn: str = "ffn_norm"
    after_eps: float | None = None
    after_names: tuple[str, str] = ("post_attention_norm", "post_ffw_norm")
    embed_norm: Literal["", "weights", "bare"] = ""
    sub_norms: bool = False
    parallel: Literal["", "always", "stated"] = ""
    rope: Style | None = "neox"
    rope_on: Literal["all", "windows", "dense", "three", "first"] = "all"
    rope_local: Literal["own", "based", "plain", "same"] = "own"
    whole_head: bool = False
    backward: bool = False
    alibi: float = 0.0
    alibi_stated: bool = False
    positions: bool = False
    qk_norm: Literal["", "head", "heads", "all"] = ""
    qk_free: bool = False
    late: bool = False
    window_every: int | None = None
    full_first: bool = False
    gate: Literal["", "head", "column"] = ""
    clamped: Literal["", "first", "normed"] = ""
    sinks: Literal["", "some", "all"] = ""
    inverse_scale: bool = False
    capped: bool = False
    causal: bool = True
    bare_first: bool = False
    activation: str = "silu"
    gated: bool = True
    fused: bool = False
    qkv_scaled: bool = True
    ffn_scaled: bool = False
    act_scales: bool = False
    half_ffn: bool = False
    mixture: Routing | None = None
    width_scale: bool = False
    multipliers: bool = False
    logit_multiplies: bool = False
    skip: bool = False
    softcapped: bool = False
    tied: bool = False
    unused: str = r"(?!)"
    unread: tuple[str, ...] = ()
    assumed: Mapping[str, Any] = field(default_factory=dict)
    directory: Directory | None = None


_LLAMA = Variant(rope="interleaved")
_LAYER = Variant(norm="layer", gated=False, activation="gelu_tanh")
_COHERE = Variant(
    norm="layer", rope="interleaved", parallel="always", logit_multiplies=True, tied=True
)
_QWEN3 = Variant(qk_norm="head", unused=r"cls\.output\..*|output\.bias")
_GRANITE = Variant(rope="interleaved", multipliers=True)
_LAST_BIAS = r"output\.bias"
_UNREAD = r"blk\.\d+\.(ffn_\w+|attn_output)\.bias|rope_freqs\.weight"

_ROUTED = ("expert_scoring", "expert_scale", "shared_experts", "shared_ffn", "dense_layers")
# Experts as wide as the feed-forward that the file states.
_WIDE = (*_ROUTED, "expert_ffn")
_ERNIE = replace(_LLAMA, unused=r"blk\.\d+\.attn_output\.bias")

# By `general.architecture`.
GGUF: Mapping[str, Variant] = {
    "apertus": Variant(qk_norm="head", gated=False, activation="xielu"),
    "arcee": replace(_LLAMA, gated=False, activation="relu2"),
    "arctic": replace(_LLAMA, mixture=Routing(beside="entry"), unread=_WIDE),
    "baichuan": _LLAMA,
    "bailingmoe": replace(
        _LLAMA,
        mixture=Routing(renormalise=None),
        unread=("expert_scoring", "shared_ffn", "dense_layers"),
    ),
    "bailingmoe2": Variant(qk_norm="head", mixture=Routing(renormalise=None)),
    "bitnet": Variant(sub_norms=True, ffn_scaled=True, tied=True),
    "bloom": replace(_LAYER, rope=None, alibi=8.0, embed_norm="weights"),
    "chatglm": replace(_LLAMA, fused=True),
    "codeshell": _LAYER,
    "cogvlm": Variant(qkv_scaled=False, unused=r"blk\.\d+\.vis_.*|rope_freqs\.weight"),
    "cohere2": replace(_COHERE, rope_on="windows", window_every=4, ffn_scaled=True),
    "cohere2moe": replace(
        _COHERE,
        tied=False,
        rope_on="dense",
        rope_local="same",
        window_every=4,
        full_first=True,
        ffn_scaled=True,
        mixture=Routing(scoring="sigmoid", renormalise=None, halved=True),
    ),
    "command-r": replace(_COHERE, qk_norm="heads"),
    "dbrx": Variant(
        norm="layer",
        before_ffn="attn_output_norm",
        clamped="first",
        mixture=Routing(),
        unread=_WIDE,
    ),
    "deci": _LLAMA,
    "deepseek": replace(
        _LLAMA, mixture=Routing(renormalise=False), unread=("expert_scoring", "shared_ffn")
    ),
    "dots1": Variant(qk_norm="head", mixture=Routing(renormalise=None), unread=("shared_ffn",)),
    "dream": Variant(causal=False, unused=_LAST_BIAS),
    "ernie4_5": replace(_ERNIE, unread=("experts",)),
    "ernie4_5-moe": replace(
        _ERNIE,
        mixture=Routing(every=True),
        unread=("expert_scoring", "expert_scale", "shared_experts"),
    ),
    "eurobert": Variant(causal=False),
    "exaone": Variant(),
    "exaone-moe": Variant(
        qk_norm="head",
        rope_on="windows",
        rope_local="same",
        window_every=4,
        mixture=Routing(renormalise=None),
        unread=("shared_experts",),
        assumed={"shared_experts": 1},
    ),
    "exaone4": Variant(before=False, after=True, qk_norm="head"),
    "falcon": replace(_LAYER, parallel="always"),
    "gemma": Variant(activation="gelu_tanh", width_scale=True, tied=True),
    "gemma-embedding": Variant(
        after=True,
        qk_norm="head",
        window_every=6,
        causal=False,
        activation="gelu_tanh",
        width_scale=True,
        tied=True,
    ),
    "glm4": replace(_LLAMA, after=True, fused=True),
    "glm4moe": Variant(
        qk_norm="head",
        qk_free=True,
        before_ffn="post_attention_norm",
        mixture=Routing(scoring="sigmoid", renormalise=None, split=True),
        unread=("shared_ffn",),
    ),
    # A softmax of the chosen experts, a clamped SwiGLU, biases everywhere.
    "gpt-oss": Variant(
        before_ffn="post_attention_norm",
        rope_local="based",
        window_every=2,
        sinks="all",
        mixture=Routing(
            scoring="none",
            renormalise=False,
            biased=True,
            attrs={"softmax_chosen": True, "clamp": "oai", "limit": 7.0},
        ),
        unread=_ROUTED,
        assumed={"window": 128},
    ),
    "gptneox": replace(_LAYER, parallel="stated"),
    "granite_swa": replace(_GRANITE, window_every=4, sinks="some"),
    "granitemoe": replace(
        _GRANITE,
        mixture=Routing(),
        unread=("expert_scoring", "expert_scale", "shared_experts", "dense_layers", "expert_ffn"),
    ),
    "grok": Variant(
        after=True,
        after_names=("attn_output_norm", "layer_output_norm"),
        capped=True,
        activation="gelu_tanh",
        multipliers=True,
        logit_multiplies=True,
        softcapped=True,
        mixture=Routing(beside="mean"),
        unread=(*_ROUTED, "residual_scale", "attention_scale"),
        assumed={
            "embedding_scale": 78.38367176906169,
            "logit_scale": 0.5773502691896257,
            "output_scale": 0.08838834764831845,
            "attention_softcap": 30.0,
            "rope_beta_fast": 8.0,
        },
    ),
    "grovemoe": Variant(
        qk_norm="head",
        mixture=Routing(split=True, chunks=True),
        unread=_ROUTED,
    ),
    "hunyuan-dense": Variant(qk_norm="head", late=True),
    "hunyuan-moe": Variant(
        qk_norm="head",
        late=True,
        mixture=Routing(),
        unread=("expert_scoring", "expert_scale", "dense_layers", "expert_ffn", "shared_experts"),
        assumed={"shared_experts": 1},
    ),
    "hunyuan_vl": Variant(qk_norm="head", late=True),
    "internlm2": _LLAMA,
    "jais": replace(
        _LAYER, rope=None, alibi_stated=True, gated=True, activation="silu", inverse_scale=True
    ),
    "jais2": replace(_LAYER, activation="relu2"),
    "llada": replace(_LLAMA, causal=False, unused=_UNREAD),
    "llada-moe": Variant(
        qk_norm="head",
        causal=False,
        mixture=Routing(renormalise=False, split=True),
        unread=_ROUTED,
    ),
    "maincoder": replace(_LLAMA, qk_norm="head", late=True),
    "mellum": Variant(
        qk_norm="head",
        rope_local="plain",
        window_every=4,
        ffn_scaled=True,
        mixture=Routing(split=True),
        unread=_ROUTED,
    ),
    "minicpm": replace(_GRANITE, mixture=Routing(), unread=_WIDE),
    "minimax-m2": Variant(
        qk_norm="all",
        mixture=Routing(),
        unread=("expert_scale", "expert_ffn", "shared_experts", "shared_ffn", "dense_layers"),
    ),
    "mistral3": replace(_LLAMA, ffn_scaled=True, mixture=Routing(), unread=_WIDE),
    "modern-bert": replace(
        _LAYER,
        embed_norm="weights",
        bare_first=True,
        window_every=3,
        full_first=True,
        causal=False,
        gated=True,
        fused=True,
        activation="gelu",
    ),
    "mpt": replace(
        _LAYER,
        rope=None,
        alibi_stated=True,
        positions=True,
        qk_norm="all",
        clamped="first",
        act_scales=True,
    ),
    "muse-glimmer": replace(
        _LLAMA,
        after=True,
        after_eps=1e-8,
        embed_norm="bare",
        rope_on="windows",
        window_every=4,
        qk_norm="head",
        gate="column",
        logit_multiplies=True,
        softcapped=True,
    ),
    "nanbeige": replace(_LLAMA, ffn_scaled=True),
    "nemotron": replace(_LAYER, activation="relu2"),
    "olmo": Variant(norm="layer", weightless=True, rope="interleaved", clamped="first"),
    "olmoe": Variant(qk_norm="all", mixture=Routing(renormalise=False), unread=_WIDE),
    "openelm": Variant(qk_norm="head", qkv_scaled=False, tied=True),
    "orion": Variant(norm="layer"),
    "paddleocr": Variant(unread=("experts",)),
    "pangu-embedded": Variant(unused=r"rope_freqs\.weight"),
    "phi2": replace(_LAYER, parallel="always"),
    "phimoe": Variant(norm_bias=True, mixture=Routing(), unread=_WIDE),
    "plamo": Variant(parallel="always", whole_head=True),
    "plamo3": Variant(after=True, qk_norm="head", qkv_scaled=False, window_every=8, fused=True),
    "pockettts": replace(_LAYER, rope="interleaved"),
    "qwen": Variant(half_ffn=True),
    "qwen2moe": Variant(
        mixture=Routing(renormalise=False, split=True),
        unread=("expert_scoring", "expert_scale", "shared_experts", "dense_layers"),
    ),
    "qwen2vl": Variant(unused=_LAST_BIAS),
    "qwen3tts": _QWEN3,
    "qwen3vl": _QWEN3,
    "qwen3vlmoe": Variant(qk_norm="head", mixture=Routing(split=True), unread=_ROUTED),
    "refact": Variant(rope=None, alibi=8.0, unused=_UNREAD),
    "rnd1": Variant(qk_norm="head", causal=False, mixture=Routing(split=True), unread=_ROUTED),
    "seed_oss": Variant(before_ffn="post_attention_norm"),
    "smallthinker": Variant(
        rope_on="first",
        rope_local="based",
        window_every=4,
        full_first=True,
        activation="relu",
        mixture=Routing(router="entry"),
        unread=("expert_scale", "shared_experts", "shared_ffn", "dense_layers"),
    ),
    "smollm3": replace(_LLAMA, rope_on="three"),
    "spark2_5": Variant(activation="gelu_tanh", window_every=2, gate="head"),
    "stablelm": Variant(norm="layer", qk_norm="heads"),
    "starcoder": replace(_LAYER, rope=None, positions=True),
    "starcoder2": _LAYER,
    "talkie": Variant(
        weightless=True,
        embed_norm="bare",
        qk_norm="heads",
        late=True,
        logit_multiplies=True,
        skip=True,
    ),
    "xverse": _LLAMA,
}
