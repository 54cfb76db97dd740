"""Rotary positions: every scaling reduced to inverse frequencies, a magnitude and factors.

Sources: RoFormer (arXiv:2104.09864); linear interpolation (arXiv:2306.15595); YaRN
(arXiv:2309.00071); LongRoPE (arXiv:2402.13753); Llama 3.1's frequency bands as its config.json
states them. Where two readings exist, Hugging Face files follow transformers' modeling_rope_utils
and GGUF files llama.cpp's rope_yarn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.models.config import Config
from strata.models.errors import ConfigError
from strata.models.keys import Keys, mentions, real, whole
from strata.records import dataclass

Style = Literal["neox", "interleaved"]
# Frequencies are powers of the base, so it is more than 1.
_LEAST_BASE, _MOST_BASE = 1.5, 1e12
_LEAST_FACTOR, _MOST_FACTOR = 1e-3, 1e6
# Turns of a dimension over the original context: YaRN divides by them.
_LEAST_TURNS = 1e-3


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
    turned: int = 0


def read_rope(
    c: Config,
    style: Style,
    *,
    base: float = 10000.0,
    factors: str | None = None,
) -> Rope:
    """The rotary positions that a file asks for: those of layers that see all keys.

    ``base`` is the family's default in directories. ``factors`` is the weight of frequency factors
    that a GGUF file holds.
    """
    scaling = _from_gguf(c) if c.keys.kind == "gguf" else _from_config(c, base)
    return _reduce(scaling, style, factors)


def read_local_rope(
    c: Config, style: Style, *, base: float | None = None, scaled: bool = False
) -> Rope:
    """The rotary positions of sliding-window layers where they differ.

    ``base`` is the family's default, None where it is that of the other layers. ``scaled``: as the
    others are (GGUF files only), else not at all.
    """
    other = _from_gguf(c) if c.keys.kind == "gguf" else _from_config(c, base or 10000.0)
    theta = c.keys.number("rope_base_local", base or other.base, low=_LEAST_BASE, high=_MOST_BASE)
    key, table = _table(c.keys, "sliding_attention")
    if "rope_theta" in table:
        theta = real(f"{key}.rope_theta", table["rope_theta"], _LEAST_BASE, _MOST_BASE)
    if _kind(table) != "default":
        raise ConfigError(f"'{key}' scales the positions of sliding windows: this is not built")
    partial = table.get("partial_rotary_factor")
    if partial is not None:
        partial = int(c.head_dim * real(f"{key}.partial_rotary_factor", partial, 0.0, 1.0))
    dim = c.keys.integer("rope_dim_local", partial or other.dim, high=c.head_dim)
    own = replace(other, base=theta, dim=dim) if scaled else _Scaling("default", theta, dim)
    return _reduce(own, style, None)


def turned_layers(keys: Keys) -> dict[str, Any]:
    """Which layers are rotated, where config.json has a base for each and 0 for none."""
    name = "layer_rope_theta"
    bases, (key, table) = keys.raw(name), _table(keys, "full_attention")
    if bases is None:
        return {}
    base = table.get("rope_theta", keys.find("rope_base")[1])
    if not isinstance(bases, list) or any(b not in (0, base) for b in bases):
        raise ConfigError(f"'{name}': bases other than 0 and '{key}.rope_theta' are not built")
    return {"rope_layers": [int(b != 0) for b in bases]}


def _reduce(scaling: _Scaling, style: Style, factors: str | None) -> Rope:
    with np.errstate(all="ignore"):
        inv_freq, mscale = _frequencies(scaling)
    if not (np.isfinite(inv_freq.astype(np.float32)).all() and math.isfinite(mscale)):
        raise ConfigError(
            f"rope scaling '{scaling.kind}': its settings give frequencies that are not numbers"
        )
    # float32 is what every implementation multiplies positions with.
    return Rope(tuple(float(f) for f in inv_freq.astype(np.float32)), style, mscale, factors)


def _from_gguf(c: Config) -> _Scaling:
    keys = c.keys
    # llama.cpp reads a factor without a type as linear; older files have the other key.
    old = keys.number("rope_factor_old", 0.0, high=_MOST_FACTOR)
    factor = keys.number("rope_factor", old, high=_MOST_FACTOR)
    if 0 < factor < _LEAST_FACTOR:
        key = keys.find("rope_factor")[0]
        raise ConfigError(f"'{key}' is {factor}: at least {_LEAST_FACTOR} is expected, or 0")
    kind = keys.text("rope_type", "linear" if factor else "none")
    scaling = _Scaling(
        {"none": "default"}.get(kind, kind),
        keys.number("rope_base", 10000.0, low=_LEAST_BASE, high=_MOST_BASE),
        keys.integer("rope_dim", c.head_dim, high=c.head_dim),
        factor=factor or 1.0,
        original_context=keys.integer("rope_original_context", c.trained_context),
        beta_fast=keys.number("rope_beta_fast", 32.0, low=_LEAST_TURNS, high=1e6),
        beta_slow=keys.number("rope_beta_slow", 1.0, low=_LEAST_TURNS, high=1e6),
    )
    magnitude = keys.number("rope_attention_factor", 1.0, high=1e3)
    if kind == "yarn":
        multiplier = keys.number("rope_log_multiplier", 0.0, high=1e3)
        below = _yarn_magnitude(scaling.factor, multiplier) if multiplier else 1.0
        magnitude *= _yarn_magnitude(scaling.factor, 1.0) / below
    return replace(scaling, attention_factor=magnitude)


def gguf_scaling(keys: Keys) -> dict[str, Any]:
    """What a GGUF file says of the positions that a config.json asks for, without the prefix of the
    architecture and without what it keeps as tensors: factors of long rope and of Llama 3."""
    _, values = _table(keys, "full_attention")
    theta = keys.number("rope_base", 10000.0, low=_LEAST_BASE, high=_MOST_BASE)
    theta = values.get("rope_theta") or theta
    found: dict[str, Any] = {"rope.freq_base": np.float32(theta)}
    local = keys.number("rope_base_local", 0.0)
    at, table = _table(keys, "sliding_attention")
    if table.get("rope_theta") is not None:
        local = real(f"{at}.rope_theta", table["rope_theta"], _LEAST_BASE, _MOST_BASE)
    if local:
        found["rope.freq_base_swa"] = np.float32(local)
    kind, factor = _kind(values), values.get("factor")
    original = keys.find("rope_original_context")[1]
    original = original or values.get("original_max_position_embeddings")
    context = keys.integer("context")
    if kind in ("longrope", "yarn") and original:
        found["rope.scaling.original_context_length"] = np.uint32(original)
    if kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": kind, "rope.scaling.factor": np.float32(factor or 1.0)}
    if kind == "yarn":
        for name in ("beta_fast", "beta_slow"):
            if values.get(name) is not None:
                found[f"rope.scaling.yarn_{name}"] = np.float32(values[name])
        stated = values.get("attention_factor")
        if stated is not None:
            usual = _yarn_magnitude(float(factor or 1.0), 1.0)
            found["rope.scaling.attn_factor"] = np.float32(stated / usual)
    if kind == "longrope":
        growth = float(factor or context / (original or context))
        magnitude = values.get("attention_factor")
        if magnitude is None:
            usual = math.log(growth) / math.log(original or context) if growth > 1 else 0.0
            magnitude = math.sqrt(1.0 + usual)
        found["rope.scaling.attn_factor"] = np.float32(magnitude)
    return found


def gguf_factors(keys: Keys, turned: Sequence[float]) -> dict[str, NDArray[np.float32]]:
    """The tensors in which a GGUF file has the factors of long rope and of Llama 3, where
    dimensions are ``turned`` by these frequencies."""
    key, values = _table(keys, "full_attention")
    kind, found = _kind(values), {}
    for span in ("long", "short") if kind == "longrope" else ():
        stated = values.get(f"{span}_factor")
        if stated is not None:
            factors = _factor_list(f"{key}.{span}_factor", stated, len(turned))
            found[f"rope_factors_{span}.weight"] = np.array(factors, np.float32)
    if kind == "llama3":
        base, count = float(gguf_scaling(keys)["rope.freq_base"]), 2 * len(turned)
        plain = base ** (-np.arange(0, count, 2, dtype=np.float64) / count)
        found["rope_freqs.weight"] = (plain / np.array(turned)).astype(np.float32)
    return found


def _table(keys: Keys, layer_type: str) -> tuple[str, Mapping[str, Any]]:
    """The rope settings of config.json and their key; newer files have one for each layer type."""
    key = "rope_parameters"
    table = keys.raw(key)
    if isinstance(table, Mapping) and layer_type in table:
        key, table = f"{key}.{layer_type}", table[layer_type]
    elif layer_type == "sliding_attention":
        table = None
    elif table is None:
        key = "rope_scaling"
        table = keys.raw(key)
    if table is not None and not isinstance(table, Mapping):
        raise ConfigError(f"'{key}' is {shown(table)}: an object is expected")
    return key, table or {}


def _kind(table: Mapping[str, Any]) -> str:
    kind = table.get("rope_type", table.get("type")) or "default"
    # Early Phi-3 checkpoints call long rope 'su' or 'yarn'.
    if kind in ("su", "yarn") and table.get("long_factor"):
        return "longrope"
    # 'dynamic' differs from 'default' only beyond the trained context, where Strata never goes.
    # Of 'mrope' all axes are alike where there is only text.
    usual = kind in ("dynamic", "mrope")
    return "default" if usual else kind if isinstance(kind, str) else shown(kind)


def _from_config(c: Config, base: float) -> _Scaling:
    key, values = _table(c.keys, "full_attention")

    def number(name: str, default: float, low: float = 0.0, high: float = 1e6) -> float:
        value = values.get(name)
        return default if value is None else real(f"{key}.{name}", value, low, high)

    theta = c.keys.number("rope_base", base, low=_LEAST_BASE, high=_MOST_BASE)
    theta = number("rope_theta", theta, _LEAST_BASE, _MOST_BASE)
    partial = number("partial_rotary_factor", c.keys.number("rope_partial", 1.0, high=1.0), 0, 1)
    dim = c.keys.integer("rope_width", int(c.head_dim * partial), high=c.head_dim)
    kind, alpha = _kind(values), number("alpha", 0.0)
    if alpha and dim > 2 and kind == "default":  # Hunyuan's 'dynamic' is a base of another size
        theta *= alpha ** (dim / (dim - 2))
    if kind == "default":
        return _Scaling(kind, theta, dim)
    if kind == "proportional":
        turned = int(partial * c.head_dim // 2)
        factor = number("factor", 1.0, _LEAST_FACTOR)
        return _Scaling(kind, theta, c.head_dim, factor=factor, turned=turned)
    if kind in ("linear", "llama3", "yarn") and "factor" not in values:
        raise ConfigError(f"'{key}.factor' is missing: '{kind}' needs it")
    trained = c.keys.integer("rope_original_context", 0, low=0) or values.get(
        "original_max_position_embeddings", c.trained_context
    )
    original = whole(f"{key}.original_max_position_embeddings", trained, 1, 1 << 31)
    scaling = _Scaling(
        kind,
        theta,
        dim,
        factor=number("factor", c.trained_context / original, _LEAST_FACTOR),
        original_context=original,
        beta_fast=number("beta_fast", 32.0, _LEAST_TURNS),
        beta_slow=number("beta_slow", 1.0, _LEAST_TURNS),
        low_freq_factor=number("low_freq_factor", 1.0),
        high_freq_factor=number("high_freq_factor", 4.0),
        truncate=bool(values.get("truncate", True)),
    )
    if kind in ("yarn", "longrope") and values.get("attention_factor") is not None:
        scaling = replace(scaling, attention_factor=number("attention_factor", 1.0))
    elif kind == "yarn" and number("mscale", 0.0) and number("mscale_all_dim", 0.0):
        over = _yarn_magnitude(scaling.factor, number("mscale", 0.0))
        under = _yarn_magnitude(scaling.factor, number("mscale_all_dim", 0.0))
        scaling = replace(scaling, attention_factor=over / under)
    if kind == "longrope":
        span = "long" if c.context > original else "short"
        name = f"{span}_factor"
        factors = _factor_list(f"{key}.{name}", values.get(name), scaling.dim // 2)
        if values.get(f"{span}_mscale") is not None:
            scaling = replace(scaling, attention_factor=number(f"{span}_mscale", 1.0))
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
        frequencies, usual = plain, 1.0
    elif s.kind == "linear":
        frequencies, usual = plain / s.factor, 1.0
    elif s.kind == "proportional":
        # The rest of a head is not turned, but counts where frequencies are chosen.
        frequencies, usual = plain / s.factor * (np.arange(s.dim // 2) < s.turned), 1.0
    elif s.kind == "llama3":
        frequencies, usual = _llama3(s, plain), 1.0
    elif s.kind == "yarn":
        frequencies, usual = _yarn(s, plain), _yarn_magnitude(s.factor, 1.0)
    elif s.kind == "longrope":
        # A GGUF file keeps the factors as a weight; its 'factor', if any, scales all positions.
        frequencies = plain / (np.array(s.frequency_factors) if s.frequency_factors else s.factor)
        if s.original_context < 2:
            raise ConfigError("rope scaling 'longrope': an original context of 2 or more is needed")
        growth = math.log(s.factor) / math.log(s.original_context) if s.factor > 1 else 0.0
        usual = math.sqrt(1.0 + growth)
    else:
        raise ConfigError(
            f"rope scaling '{s.kind}' is not known; known: default, linear, dynamic, llama3, "
            f"yarn, longrope, proportional"
        )
    return frequencies, usual if magnitude is None else magnitude


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
    if s.high_freq_factor <= s.low_freq_factor:
        raise ConfigError(
            f"rope scaling 'llama3': high_freq_factor is {s.high_freq_factor}, no more than "
            f"low_freq_factor, {s.low_freq_factor}"
        )
    turns = s.original_context * plain / (2 * math.pi)
    blend = np.clip(
        (turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0.0, 1.0
    )
    return plain / s.factor * (1 - blend) + plain * blend


def has_factors_by_context(file: ModelFile) -> bool:
    """Whether a file has rope factors of which the context decides: long ones and short ones."""
    if file.kind == "gguf":
        return any(name.startswith("rope_factors_") for name in file.tensors)
    return mentions(file, "long_factor")
