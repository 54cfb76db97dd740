"""Rotary positions: every scaling reduced to inverse frequencies, a magnitude and factors.

Sources: RoFormer (arXiv:2104.09864); linear interpolation (arXiv:2306.15595); YaRN
(arXiv:2309.00071); LongRoPE (arXiv:2402.13753); Llama 3.1's frequency bands as its config.json
states them. Where two readings exist, Hugging Face files follow transformers' modeling_rope_utils
and GGUF files llama.cpp's rope_yarn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from strata.models.config import Config
from strata.models.errors import ConfigError
from strata.models.keys import real, whole

Style = Literal["neox", "interleaved"]


@dataclass(frozen=True)
class Rope:
    """What the rope Op needs. ``factors`` names a weight that divides the frequencies."""

    inv_freq: tuple[float, ...]
    style: Style
    mscale: float = 1.0
    factors: str | None = None


@dataclass(frozen=True)
class _Scaling:
    """The settings of one scaling under common names; those that a kind does not use are unset."""

    kind: str
    base: float
    dim: int
    factor: float = 1.0
    original_context: int = 0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    truncate: bool = True
    frequency_factors: tuple[float, ...] = ()


def read_rope(
    c: Config,
    style: Style,
    *,
    base: float = 10000.0,
    local: bool = False,
    layer_type: str | None = None,
    factors: str | None = None,
) -> Rope:
    """The rotary positions that a file asks for.

    ``base`` is the family's default. ``layer_type`` picks one of several settings in config.json;
    ``local`` those of sliding-window layers in either kind of file. ``factors`` is the weight of
    frequency factors that a GGUF file holds.
    """
    if c.keys.kind == "gguf":
        scaling, factors = _from_gguf(c, base, local), factors
    else:
        scaling = _from_config(c, base, local, layer_type)
    inv_freq, mscale = _frequencies(scaling)
    # float32 is what every implementation multiplies positions with.
    return Rope(tuple(float(f) for f in inv_freq.astype(np.float32)), style, mscale, factors)


def _from_gguf(c: Config, base: float, local: bool) -> _Scaling:
    keys = c.keys
    theta = keys.number("rope_base", base, low=1e-3, high=1e12)
    dim = keys.integer("rope_dim", c.head_dim, high=c.head_dim)
    if local:
        # Sliding-window layers are trained short: their positions are never scaled.
        return _Scaling("default", keys.number("rope_base_local", theta, low=1e-3, high=1e12), dim)
    # llama.cpp reads a factor without a type as linear; older files have the other key.
    factor = keys.number("rope_factor", keys.number("rope_factor_old", 0.0, high=1e6), high=1e6)
    kind = keys.text("rope_type", "linear" if factor else "none")
    scaling = _Scaling(
        {"none": "default"}.get(kind, kind),
        theta,
        dim,
        factor=factor or 1.0,
        original_context=keys.integer("rope_original_context", c.trained_context),
        beta_fast=keys.number("rope_beta_fast", 32.0, high=1e6),
        beta_slow=keys.number("rope_beta_slow", 1.0, high=1e6),
    )
    magnitude = keys.number("rope_attention_factor", 1.0, high=1e3)
    if kind == "yarn":
        multiplier = keys.number("rope_log_multiplier", 0.0, high=1e3)
        below = _yarn_magnitude(scaling.factor, multiplier) if multiplier else 1.0
        magnitude *= _yarn_magnitude(scaling.factor, 1.0) / below
    return replace(scaling, attention_factor=magnitude)


def _from_config(c: Config, base: float, local: bool, layer_type: str | None) -> _Scaling:
    key, table = "rope_parameters", c.keys.raw("rope_parameters")
    if table is not None and layer_type is not None and layer_type in table:
        table = table[layer_type]
    elif table is None:
        key, table = "rope_scaling", c.keys.raw("rope_scaling")
        if local:
            table = None
    if table is not None and not isinstance(table, Mapping):
        raise ConfigError(f"'{key}' is {table!r}: an object is expected")
    values: Mapping[str, Any] = table or {}

    def number(name: str, default: float, low: float = 0.0, high: float = 1e6) -> float:
        value = values.get(name)
        return default if value is None else real(f"{key}.{name}", value, low, high)

    theta = values.get("rope_theta")
    if theta is None:
        theta = c.keys.number("rope_base_local" if local else "rope_base", base)
    theta = real("rope_theta", theta, 1e-3, 1e12)
    partial = number("partial_rotary_factor", c.keys.number("rope_partial", 1.0, high=1.0), 0, 1)
    kind = values.get("rope_type", values.get("type")) or "default"
    # 'dynamic' differs from 'default' only beyond the trained context, where Strata never goes.
    kind = {"dynamic": "default", "su": "longrope"}.get(kind, kind)
    # Early Phi-3 checkpoints call long rope 'yarn'.
    kind = "longrope" if kind == "yarn" and values.get("long_factor") else kind
    if kind == "default":
        return _Scaling(kind, theta, int(c.head_dim * partial))
    if kind in ("linear", "llama3", "yarn") and "factor" not in values:
        raise ConfigError(f"'{key}.factor' is missing: '{kind}' needs it")
    trained = c.keys.integer("rope_original_context", 0, low=0) or values.get(
        "original_max_position_embeddings", c.trained_context
    )
    original = whole(f"{key}.original_max_position_embeddings", trained, 1, 1 << 31)
    attention = values.get("attention_factor")
    scaling = _Scaling(
        kind,
        theta,
        int(c.head_dim * partial),
        factor=number("factor", c.trained_context / original, 1e-3),
        original_context=original,
        attention_factor=None if attention is None else number("attention_factor", 1.0),
        beta_fast=number("beta_fast", 32.0),
        beta_slow=number("beta_slow", 1.0),
        low_freq_factor=number("low_freq_factor", 1.0),
        high_freq_factor=number("high_freq_factor", 4.0),
        truncate=bool(values.get("truncate", True)),
    )
    if kind == "yarn" and attention is None:
        over, under = number("mscale", 0.0), number("mscale_all_dim", 0.0)
        magnitude = _yarn_magnitude(scaling.factor, over if over and under else 1.0)
        magnitude /= _yarn_magnitude(scaling.factor, under) if over and under else 1.0
        return replace(scaling, attention_factor=magnitude)
    if kind == "longrope":
        name = "long_factor" if c.context > original else "short_factor"
        factors = _factor_list(f"{key}.{name}", values.get(name), scaling.dim // 2)
        return replace(scaling, frequency_factors=factors)
    return scaling


def _factor_list(key: str, value: Any, count: int) -> tuple[float, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        raise ConfigError(f"'{key}': a list of {count} numbers is expected")
    return tuple(real(key, v, 1e-6, 1e6) for v in value)


def _yarn_magnitude(factor: float, multiplier: float) -> float:
    """YaRN's growth of the attention logits with the scaling, equation 22 of the paper."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0


def _frequencies(s: _Scaling) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Inverse frequencies [dim / 2] and what cos and sin are multiplied with."""
    if s.dim < 2 or s.dim % 2:
        raise ConfigError(f"rotary positions over {s.dim} dimensions: an even number is expected")
    plain = s.base ** (-np.arange(0, s.dim, 2, dtype=np.float64) / s.dim)
    magnitude = s.attention_factor
    if s.kind == "default":
        return plain, 1.0
    if s.kind == "linear":
        return plain / s.factor, 1.0
    if s.kind == "yarn":
        return _yarn(s, plain), 1.0 if magnitude is None else magnitude
    if s.kind == "llama3":
        return _llama3(s, plain), 1.0
    if s.kind == "longrope":
        if magnitude is None:
            grown = math.log(s.factor) / math.log(s.original_context) if s.factor > 1 else 0.0
            magnitude = math.sqrt(1.0 + grown)
        factors = s.frequency_factors
        # A GGUF file keeps the factors as a weight; its 'factor', if any, scales all positions.
        return plain / (np.array(factors) if factors else s.factor), magnitude
    raise ConfigError(
        f"rope scaling '{s.kind}' is not known; known: default, linear, dynamic, llama3, yarn, "
        f"longrope"
    )


def _yarn(s: _Scaling, plain: Any) -> Any:
    """Fast dimensions keep their frequency, slow ones are interpolated, a ramp lies between."""

    def dimension(rotations: float) -> float:
        turns = s.original_context / (rotations * 2 * math.pi)
        return s.dim * math.log(turns) / (2 * math.log(s.base))

    low, high = dimension(s.beta_fast), dimension(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, s.dim - 1)
    ramp = np.clip((np.arange(s.dim // 2) - low) / max(high - low, 1e-3), 0, 1)
    return plain / s.factor * ramp + plain * (1 - ramp)


def _llama3(s: _Scaling, plain: Any) -> Any:
    """Long wavelengths are divided by the factor, short ones kept, those between blended."""
    turns = s.original_context * plain / (2 * math.pi)
    blend = np.clip(
        (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0
    )
    return plain / s.factor * (1 - blend) + plain * blend
