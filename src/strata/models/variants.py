"""Dense families as variations of one layer: a table row each, and what its fields mean.

Source of the rows: the tensors and keys that llama.cpp reads for an architecture, and what it does
with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from strata.models.rope import Style


@dataclass(frozen=True)
class Variant:
    """How an architecture differs from Llama: two halves with a norm before each, attention over
    rotated positions, silu(gate) * up. Every field left out means the same as in Llama.

    Norms: ``norm`` (``layer``: LayerNorm, with a bias where the file has one), ``weightless``,
    ``before`` and ``after`` the halves, ``before_ffn`` the name of the second, ``after_eps`` where
    the latter differ, ``embed_norm`` over the embedding, ``sub_norms`` before the last products.
    ``parallel``: the halves read one x, and one norm where there is no second (so do they wherever
    the file leaves the second out); ``stated``: if the file says so.

    Attention: ``rope`` (how GGUF files pair dimensions; None: no rotation), ``rope_on`` which
    layers (``windows``; ``three``: three of four), ``whole_head`` whatever the file says,
    ``alibi`` the largest bias, ``alibi_stated`` if the file says it, ``positions`` a learned table,
    ``qk_norm`` over each ``head``, over ``heads`` with weights of their own, or over ``all``;
    ``late``: after rotation; ``window_every``: every so-manieth layer sees all keys, if the file
    states a window; ``gate`` of the mixed values, one a ``head`` or a ``column``; ``clamped`` q, k
    and v; ``sinks``; ``qkv_scaled``: the first products' scales are applied; ``inverse_scale``:
    scores by 1 / head_dim; ``causal``.

    Feed-forward: ``activation``, ``gated``, ``fused`` gate and up, ``ffn_scaled`` if its products'
    scales are applied, ``act_scales`` that divide activated values where the file has them,
    ``half_ffn`` where the file states twice the width.

    ``width_scale``: the embedding times sqrt(width); ``multipliers`` of embedding, residuals and
    scores as in Granite; ``logit_multiplies``: the logit scale is a factor, not a divisor;
    ``skip``: each layer adds the embedding again, scaled; ``softcapped`` logits; ``tied``.
    ``unused`` is a pattern of tensors that files hold and nobody reads.
    """

    norm: Literal["rms", "layer"] = "rms"
    weightless: bool = False
    before: bool = True
    after: bool = False
    before_ffn: str = "ffn_norm"
    after_eps: float | None = None
    embed_norm: Literal["", "weights", "bare"] = ""
    sub_norms: bool = False
    parallel: Literal["", "always", "stated"] = ""
    rope: Style | None = "neox"
    rope_on: Literal["all", "windows", "three"] = "all"
    whole_head: bool = False
    alibi: float = 0.0
    alibi_stated: bool = False
    positions: bool = False
    qk_norm: Literal["", "head", "heads", "all"] = ""
    late: bool = False
    window_every: int | None = None
    gate: Literal["", "head", "column"] = ""
    clamped: bool = False
    sinks: bool = False
    inverse_scale: bool = False
    causal: bool = True
    activation: str = "silu"
    gated: bool = True
    fused: bool = False
    qkv_scaled: bool = True
    ffn_scaled: bool = False
    act_scales: bool = False
    half_ffn: bool = False
    width_scale: bool = False
    multipliers: bool = False
    logit_multiplies: bool = False
    skip: bool = False
    softcapped: bool = False
    tied: bool = False
    unused: str = r"(?!)"


_LLAMA = Variant(rope="interleaved")
_LAYER = Variant(norm="layer", gated=False, activation="gelu_tanh")
_COHERE = Variant(
    norm="layer", rope="interleaved", parallel="always", logit_multiplies=True, tied=True
)
_QWEN3 = Variant(qk_norm="head", unused=r"cls\.output\..*|output\.bias")
_GRANITE = Variant(rope="interleaved", multipliers=True)
_LAST_BIAS = r"output\.bias"
_UNREAD = r"blk\.\d+\.(ffn_\w+|attn_output)\.bias|rope_freqs\.weight"

# By `general.architecture`.
GGUF: Mapping[str, Variant] = {
    "apertus": Variant(qk_norm="head", gated=False, activation="xielu"),
    "arcee": replace(_LLAMA, gated=False, activation="relu2"),
    "baichuan": _LLAMA,
    "bitnet": Variant(sub_norms=True, ffn_scaled=True, tied=True),
    "bloom": replace(_LAYER, rope=None, alibi=8.0, embed_norm="weights"),
    "chatglm": replace(_LLAMA, fused=True),
    "codeshell": _LAYER,
    "cogvlm": Variant(qkv_scaled=False, unused=r"blk\.\d+\.vis_.*|rope_freqs\.weight"),
    "cohere2": replace(_COHERE, rope_on="windows", window_every=4, ffn_scaled=True),
    "command-r": replace(_COHERE, qk_norm="heads"),
    "deci": _LLAMA,
    "dream": Variant(causal=False, unused=_LAST_BIAS),
    "ernie4_5": replace(_LLAMA, unused=r"blk\.\d+\.attn_output\.bias"),
    "exaone": Variant(),
    "exaone4": Variant(before=False, after=True, qk_norm="head"),
    "falcon": replace(_LAYER, parallel="always"),
    "gemma": Variant(activation="gelu_tanh", width_scale=True, tied=True),
    "glm4": replace(_LLAMA, after=True, fused=True),
    "gptneox": replace(_LAYER, parallel="stated"),
    "granite_swa": replace(_GRANITE, window_every=4, sinks=True),
    "hunyuan-dense": Variant(qk_norm="head", late=True),
    "hunyuan_vl": Variant(qk_norm="head", late=True),
    "internlm2": _LLAMA,
    "jais": replace(
        _LAYER, rope=None, alibi_stated=True, gated=True, activation="silu", inverse_scale=True
    ),
    "jais2": replace(_LAYER, activation="relu2"),
    "llada": replace(_LLAMA, causal=False, unused=_UNREAD),
    "maincoder": replace(_LLAMA, qk_norm="head", late=True),
    "minicpm": _GRANITE,
    "mistral3": replace(_LLAMA, ffn_scaled=True),
    "mpt": replace(
        _LAYER,
        rope=None,
        alibi_stated=True,
        positions=True,
        qk_norm="all",
        clamped=True,
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
    "olmo": Variant(norm="layer", weightless=True, rope="interleaved", clamped=True),
    "openelm": Variant(qk_norm="head", qkv_scaled=False, tied=True),
    "orion": Variant(norm="layer"),
    "pangu-embedded": Variant(unused=r"rope_freqs\.weight"),
    "phi2": replace(_LAYER, parallel="always"),
    "plamo": Variant(parallel="always", whole_head=True),
    "plamo3": Variant(after=True, qk_norm="head", qkv_scaled=False, window_every=8, fused=True),
    "pockettts": replace(_LAYER, rope="interleaved"),
    "qwen": Variant(half_ffn=True),
    "qwen2vl": Variant(unused=_LAST_BIAS),
    "qwen3tts": _QWEN3,
    "qwen3vl": _QWEN3,
    "refact": Variant(rope=None, alibi=8.0, unused=_UNREAD),
    "seed_oss": Variant(before_ffn="post_attention_norm"),
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
