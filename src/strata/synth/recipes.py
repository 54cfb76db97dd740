"""Which block format each tensor gets under a quantisation's name, as llama.cpp's files have it.

The rules are those of llama-quant.cpp in the llama.cpp project for dense models quantised without
an importance matrix. ``MXFP4`` there is for the experts of mixtures; a dense model here has it in
all layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from strata.quant import BlockType, by_name
from strata.records import dataclass

# name -> (format of most matrices, general.file_type)
RECIPES: dict[str, tuple[str, int]] = {
    "F32": ("F32", 0),
    "F16": ("F16", 1),
    "BF16": ("BF16", 32),
    "Q8_0": ("Q8_0", 7),
    "Q4_0": ("Q4_0", 2),
    "Q4_1": ("Q4_1", 3),
    "Q5_0": ("Q5_0", 8),
    "Q5_1": ("Q5_1", 9),
    "Q2_K": ("Q2_K", 10),
    "Q3_K_S": ("Q3_K", 11),
    "Q3_K_M": ("Q3_K", 12),
    "Q3_K_L": ("Q3_K", 13),
    "Q4_K_S": ("Q4_K", 14),
    "Q4_K_M": ("Q4_K", 15),
    "Q5_K_S": ("Q5_K", 16),
    "Q5_K_M": ("Q5_K", 17),
    "Q6_K": ("Q6_K", 18),
    "IQ4_NL": ("IQ4_NL", 25),
    "IQ4_XS": ("IQ4_XS", 30),
    "MXFP4": ("MXFP4", 38),
}

_FLOATS = ("F32", "F16", "BF16")
# What stays as it was computed: routers, norms of groups, short convolutions.
_FLOAT32 = re.compile(
    r"(ffn_gate_inp|_norm|ssm_conv1d|shortconv\.conv|time_mix_[wavg][12])\.weight"
)
# Beside eight experts these are small. Of the second only where others have four bits or less.
_OF_EIGHT = {"attn_k": "Q8_0", "attn_v": "Q8_0", "attn_output": "Q5_K"}
_FOUR_BITS = ("Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M")
# What a row that is no whole number of 256-value blocks gets instead.
_SMALLER_BLOCKS = {
    "IQ4_XS": "IQ4_NL",
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor stands: its GGUF name, the layer, and what the rules ask of the model."""

    name: str
    layer: int
    layers: int
    group: int  # query heads that share a KV head
    tied: bool
    layers_of_70b: bool
    experts: int


def tensor_type(recipe: str, place: Place, shape: tuple[int, ...]) -> BlockType:
    """The block format of a tensor of a ``shape`` (rows first) under a recipe's name."""
    weight = place.name.endswith(".weight") and is_matrix(shape)
    if not weight or _FLOAT32.search(place.name):
        return by_name("F32")
    base = RECIPES[recipe][0]
    if base in _FLOATS:
        return by_name(base)
    name = _chosen(recipe, base, place, shape[-1])
    if shape[-1] % by_name(name).elements:
        name = _SMALLER_BLOCKS.get(name, "F16")
    if shape[-1] % by_name(name).elements:
        name = "F16"
    return by_name(name)


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Whether a tensor has more than one axis of more than one entry."""
    return sum(n > 1 for n in shape) > 1


def _chosen(recipe: str, base: str, place: Place, width: int) -> str:
    kind = place.name.removesuffix(".weight").rpartition(".")[2]
    if kind == "output" or (kind == "token_embd" and place.tied):
        fits = width % by_name(base).elements == 0
        return "Q8_0" if not fits or base in ("Q8_0", "MXFP4") else "Q6_K"
    if kind == "token_embd":
        return "Q8_0" if base == "MXFP4" else base
    if base == "MXFP4" and place.experts:
        return base if kind.endswith("_exps") else "Q8_0"
    if place.experts == 8 and kind in _OF_EIGHT:
        more = kind == "attn_output" and recipe not in _FOUR_BITS
        return base if more else _OF_EIGHT[kind]
    rule = _RULES.get(kind)
    return base if rule is None else rule(recipe, base, place)


def _more_bits(place: Place) -> bool:
    """The first and the last eighth of the layers, and every third one between."""
    i, n = place.layer, place.layers
    return i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2


def _values(recipe: str, base: str, place: Place) -> str:
    """attn_v, or q, k and v in one."""
    grouped = place.group >= 4
    chosen = base
    if recipe == "Q2_K":
        chosen = "Q4_K" if grouped else "Q3_K"
    elif recipe == "Q3_K_M":
        chosen = "Q5_K" if place.layer < 2 else "Q4_K"
    elif recipe == "Q3_K_L" or (base in ("IQ4_NL", "IQ4_XS") and grouped):
        chosen = "Q5_K"
    elif recipe in ("Q4_K_M", "Q5_K_M") and _more_bits(place):
        chosen = "Q6_K"
    elif recipe == "Q4_K_S" and place.layer < 4:
        chosen = "Q5_K"
    # Eight heads share these in the 70B models, so more bits cost next to nothing.
    return "Q5_K" if place.layers_of_70b and chosen in ("Q3_K", "Q4_K") else chosen


def _down(recipe: str, base: str, place: Place) -> str:
    first_eighth = place.layer < place.layers // 8
    if recipe == "Q2_K":
        return "Q3_K"
    if recipe == "Q3_K_M":
        return "Q5_K" if place.layer < place.layers // 16 else "Q4_K"
    if recipe == "Q3_K_L":
        return "Q5_K"
    if recipe in ("Q4_K_M", "Q5_K_M") and _more_bits(place):
        return "Q6_K"
    if first_eighth and (recipe == "Q4_K_S" or base in ("IQ4_NL", "IQ4_XS")):
        return "Q5_K"
    return base


def _attention_output(recipe: str, base: str, place: Place) -> str:
    del place
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(recipe, base)


_RULES: dict[str, Callable[[str, str, Place], str]] = {
    "attn_v": _values,
    "attn_qkv": _values,
    "ffn_down": _down,
    "ffn_down_exps": _down,
    "ffn_down_shexp": _down,
    "attn_kv_b": _values,
    "attn_output": _attention_output,
}
