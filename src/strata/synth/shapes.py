"""Published shapes of models, from their config.json files, and tiny ones for tests."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Any

from strata.errors import UsageError
from strata.synth.mixtures import MIXTURES
from strata.synth.shape import ATTENTION_BIASES, CONV_BIAS, Shape, ssm_keys


def _smollm2(size: str, layers: int, width: int, ffn: int, heads: int, kv: int) -> Shape:
    base = 130000.0 if size == "1.7b" else 100000.0
    return Shape(
        f"smollm2-{size}", "llama", layers, width, ffn, heads, kv, 64, 49152, 8192, base, True
    )


def _llama2(size: str, layers: int, width: int, ffn: int, heads: int, kv: int) -> Shape:
    return Shape(
        f"llama-2-{size}", "llama", layers, width, ffn, heads, kv, 128, 32000, 4096, 10000.0
    )


def _llama3(
    name: str, layers: int, width: int, ffn: int, heads: int, *, small: bool = False
) -> Shape:
    return Shape(
        name,
        "llama",
        layers,
        width,
        ffn,
        heads,
        8,
        width // heads,
        128256,
        131072,
        500000.0,
        tied=small,
        llama3_factor=32.0 if small else 8.0,
    )


def _qwen25(
    size: str, layers: int, width: int, ffn: int, heads: int, kv: int, *, tied: bool = False
) -> Shape:
    vocab = 151936 if tied else 152064
    head = width // heads
    return Shape(
        f"qwen2.5-{size}",
        "qwen2",
        layers,
        width,
        ffn,
        heads,
        kv,
        head,
        vocab,
        32768,
        1e6,
        tied,
        1e-6,
        holds=ATTENTION_BIASES,
    )


def _qwen3(size: str, layers: int, width: int, ffn: int, heads: int, *, tied: bool) -> Shape:
    return Shape(
        f"qwen3-{size}",
        "qwen3",
        layers,
        width,
        ffn,
        heads,
        8,
        128,
        151936,
        40960,
        1e6,
        tied,
        1e-6,
    )


def _mistral(
    name: str, layers: int, width: int, ffn: int, vocab: int, context: int, base: float
) -> Shape:
    return Shape(name, "mistral", layers, width, ffn, 32, 8, 128, vocab, context, base)


def _gemma2(size: str, layers: int, width: int, ffn: int, heads: int, kv: int, head: int) -> Shape:
    return Shape(
        f"gemma-2-{size}",
        "gemma2",
        layers,
        width,
        ffn,
        heads,
        kv,
        head,
        256000,
        8192,
        10000.0,
        True,
        1e-6,
        4096,
    )


def _gemma3(
    size: str,
    layers: int,
    width: int,
    ffn: int,
    heads: int,
    kv: int,
    head: int = 256,
    *,
    small: bool = False,
) -> Shape:
    return Shape(
        f"gemma-3-{size}",
        "gemma3",
        layers,
        width,
        ffn,
        heads,
        kv,
        head,
        262144 if small else 262208,
        32768 if small else 131072,
        1e6,
        True,
        1e-6,
        512 if small else 1024,
        linear_factor=0.0 if small else 8.0,
    )


def _qwen3moe(size: str, layers: int, width: int, ffn: int, heads: int) -> Shape:
    dense = _qwen3(size, layers, width, ffn, heads, tied=False)
    return replace(dense, family="qwen3moe", kv_heads=4, experts=128, top_k=8)


def _mixtral(size: str, layers: int, width: int, ffn: int, heads: int, context: int) -> Shape:
    dense = _mistral(f"mixtral-{size}", layers, width, ffn, 32000, context, 1e6)
    return replace(dense, family="mixtral", heads=heads, experts=8, top_k=2)


def _tiny(family: str, window: int = 0, *, tied: bool = False) -> Shape:
    return Shape(
        f"tiny-{family}",
        family,
        2,
        256,
        512,
        4,
        2,
        64,
        512,
        2048,
        10000.0,
        tied,
        window=window,
    )


def _hybrid(
    name: str, family: str, sizes: tuple[int, ...], attending: tuple[int, ...], **settings: Any
) -> Shape:
    """``sizes``: layers, width, ffn, heads, kv_heads, head_dim, vocab, context. The ``attending``
    layers have attention; ``settings`` are those of config.json, with GGUF's under ``keys``."""
    layers, width, ffn, heads, kv_heads, head_dim, vocab, context = sizes
    keys = settings.pop("keys")
    if attending:
        per_layer = [kv_heads if i in attending else 0 for i in range(layers)]
        keys = {"attention.head_count_kv": per_layer, **keys}
    if types := settings.pop("types", None):
        settings["layer_types"] = [types[i in attending] for i in range(layers)]
    base = settings.pop("rope_base", 10000.0)
    holds = settings.pop("holds", ())
    return Shape(
        *(name, family, layers, width, ffn, heads, kv_heads, head_dim, vocab, context, base),
        tied=True,
        settings=settings,
        keys=keys,
        holds=holds,
    )


RECURRENT: tuple[Shape, ...] = (
    _hybrid(
        *("mamba2-2.7b", "mamba2", (64, 2560, 0, 0, 0, 64, 50288, 1 << 20), ()),
        state_size=128,
        conv_kernel=4,
        num_heads=80,
        n_groups=1,
        layer_norm_epsilon=1e-5,
        holds=(CONV_BIAS,),
        keys=ssm_keys(5120, 80),
    ),
    _hybrid(
        *("granite-4-h-1b", "granite_hybrid"),
        *((40, 1536, 4096, 12, 4, 128, 100352, 131072), (5, 15, 25, 35)),
        types=("mamba", "attention"),
        shared_intermediate_size=4096,
        mamba_n_heads=48,
        mamba_d_head=64,
        mamba_d_state=128,
        mamba_d_conv=4,
        mamba_n_groups=1,
        embedding_multiplier=12.0,
        attention_multiplier=1 / 128,
        residual_multiplier=0.22,
        logits_scaling=6.0,
        position_embedding_type="nope",
        holds=(CONV_BIAS,),
        keys={
            **ssm_keys(3072, 48),
            "embedding_scale": 12.0,
            "attention.scale": 1 / 128,
            "residual_scale": 0.22,
            "logit_scale": 6.0,
            "rope.scaling.finetuned": False,
        },
    ),
    _hybrid(
        *("lfm2-1.2b", "lfm2", (16, 2048, 8192, 32, 8, 64, 65536, 128000), (2, 5, 8, 10, 12, 14)),
        types=("conv", "full_attention"),
        rope_base=1e6,
        conv_L_cache=3,
        block_auto_adjust_ff_dim=False,
        keys={"shortconv.l_cache": 3},
    ),
    _hybrid(
        *("qwen3.5-0.8b", "qwen35", (24, 1024, 3584, 8, 2, 256, 248320, 262144)),
        (),
        rope_base=1e7,
        full_attention_interval=4,
        linear_num_key_heads=16,
        linear_num_value_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        partial_rotary_factor=0.25,
        keys={
            **ssm_keys(2048, 16),
            "ssm.group_count": 16,
            "rope.dimension_count": 64,
            "rope.dimension_sections": [11, 11, 10, 0],
            "full_attention_interval": 4,
        },
    ),
)


_RWKV7 = Shape(
    *("rwkv7-1.5b", "rwkv7", 24, 2048, 8192, 0, 0, 64, 65536, 1 << 20, 10000.0),
    keys={
        "attention.layer_norm_epsilon": 1e-5,
        "wkv.head_size": 64,
        "attention.decay_lora_rank": 96,
        "attention.iclr_lora_rank": 96,
        "attention.value_residual_mix_lora_rank": 64,
        "attention.gate_lora_rank": 256,
        "token_shift_count": 2,
    },
)

_ALL = (
    _smollm2("135m", 30, 576, 1536, 9, 3),
    _smollm2("360m", 32, 960, 2560, 15, 5),
    _smollm2("1.7b", 24, 2048, 8192, 32, 32),
    _llama3("llama-3.2-1b", 16, 2048, 8192, 32, small=True),
    _llama3("llama-3.2-3b", 28, 3072, 8192, 24, small=True),
    _llama3("llama-3.1-8b", 32, 4096, 14336, 32),
    _llama3("llama-3.1-70b", 80, 8192, 28672, 64),
    _llama3("llama-3.3-70b", 80, 8192, 28672, 64),
    _llama3("llama-3.1-405b", 126, 16384, 53248, 128),
    _llama2("7b", 32, 4096, 11008, 32, 32),
    _llama2("13b", 40, 5120, 13824, 40, 40),
    _llama2("70b", 80, 8192, 28672, 64, 8),
    _qwen25("0.5b", 24, 896, 4864, 14, 2, tied=True),
    _qwen25("1.5b", 28, 1536, 8960, 12, 2, tied=True),
    _qwen25("3b", 36, 2048, 11008, 16, 2, tied=True),
    _qwen25("7b", 28, 3584, 18944, 28, 4),
    _qwen25("14b", 48, 5120, 13824, 40, 8),
    _qwen25("32b", 64, 5120, 27648, 40, 8),
    _qwen25("72b", 80, 8192, 29568, 64, 8),
    _qwen3("0.6b", 28, 1024, 3072, 16, tied=True),
    _qwen3("1.7b", 28, 2048, 6144, 16, tied=True),
    _qwen3("4b", 36, 2560, 9728, 32, tied=True),
    _qwen3("8b", 36, 4096, 12288, 32, tied=False),
    _qwen3("14b", 40, 5120, 17408, 40, tied=False),
    _qwen3("32b", 64, 5120, 25600, 64, tied=False),
    _mistral("mistral-7b", 32, 4096, 14336, 32768, 32768, 1e6),
    _mistral("mistral-nemo-12b", 40, 5120, 14336, 131072, 131072, 1e6),
    _mistral("mistral-small-24b", 40, 5120, 32768, 131072, 32768, 1e8),
    _gemma2("2b", 26, 2304, 9216, 8, 4, 256),
    _gemma2("9b", 42, 3584, 14336, 16, 8, 256),
    _gemma2("27b", 46, 4608, 36864, 32, 16, 128),
    _gemma3("270m", 18, 640, 2048, 4, 1, small=True),
    _gemma3("1b", 26, 1152, 6912, 4, 1, small=True),
    _gemma3("4b", 34, 2560, 10240, 8, 4),
    _gemma3("12b", 48, 3840, 15360, 16, 8),
    _gemma3("27b", 62, 5376, 21504, 32, 16, 128),
    Shape("phi-3-mini", "phi3", 32, 3072, 8192, 32, 32, 96, 32064, 4096, 10000.0, window=2047),
    Shape("phi-4", "phi3", 40, 5120, 17920, 40, 10, 128, 100352, 16384, 250000.0),
    *RECURRENT,
    _RWKV7,
    *MIXTURES,
    _qwen3moe("30b-a3b", 48, 2048, 768, 32),
    _qwen3moe("235b-a22b", 94, 4096, 1536, 64),
    _mixtral("8x7b", 32, 4096, 14336, 32, 32768),
    _mixtral("8x22b", 56, 6144, 16384, 48, 65536),
    replace(_tiny("mixtral"), experts=4, top_k=2),
    replace(_tiny("qwen3moe", tied=True), experts=16, top_k=4, ffn=256),
    _tiny("llama", tied=True),
    _tiny("mistral"),
    replace(_tiny("qwen2"), holds=ATTENTION_BIASES),
    _tiny("qwen3", tied=True),
    _tiny("gemma2", 64, tied=True),
    _tiny("gemma3", 64, tied=True),
    _tiny("phi3", 64),
)

SHAPES: dict[str, Shape] = {shape.name: shape for shape in _ALL}


def find_shape(name: str) -> Shape:
    """The shape called ``name`` in any case; UsageError, with the nearest names, if none is."""
    shape = SHAPES.get(name.lower())
    if shape is None:
        near = difflib.get_close_matches(name.lower(), SHAPES, n=3)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise UsageError(f"there is no shape {name!r}{hint} (`strata synth --list` has them all)")
    return shape
