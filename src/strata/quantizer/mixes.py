"""llama.cpp's named mixes: which type each tensor of a model gets under a name such as Q4_K_M.

Source: `llama-quant.cpp` of llama.cpp, whose `llama-quantize` gives the same tensors the same
types. Types in blocks of 256 give way to others where a row is no multiple of that.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

from strata.errors import UsageError
from strata.quant import BlockType, by_name
from strata.records import dataclass

_LAYER = re.compile(r"blk\.(\d+)\.")
_KINDS = (
    ("attn_qkv.weight", "v"),
    ("attn_kv_b.weight", "v"),
    ("attn_v.weight", "v"),
    ("attn_k.weight", "k"),
    ("attn_q.weight", "q"),
    ("attn_output.weight", "o"),
    ("ffn_up", "up"),
    ("ffn_gate", "gate"),
    ("ffn_down", "down"),
)
_KEPT = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel"),
    *("per_layer_model_proj", "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight"),
    *("indexer.q_proj.weight", "time_mix_first.weight", "time_mix_w0.weight"),
    *("time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight", "time_mix_v1.weight"),
    *("time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight"),
    *("time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight"),
    *("time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight"),
    *(".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos", ".patch_embd"),
    *(".patch_merger", "a.rvq.codebook", "mm.a.code_embd"),
)
_KEPT_NAMES = ("position_embd.weight", "token_types.weight")
_FALLBACK: Mapping[str, str] = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Facts:
    """What of a model the choice of types depends on; `queries` is query heads a KV head."""

    architecture: str
    layers: int
    experts: int
    queries: int
    tied: bool
    importance: bool = False

    @classmethod
    def of(cls, metadata: Mapping[str, Any], names: Sequence[str], importance: bool) -> Facts:
        """From GGUF metadata and the names of the tensors."""
        architecture = metadata.get("general.architecture")
        architecture = architecture if isinstance(architecture, str) else ""
        heads = _first(metadata.get(f"{architecture}.attention.head_count"))
        kv_heads = _first(metadata.get(f"{architecture}.attention.head_count_kv")) or heads
        return cls(
            architecture,
            _first(metadata.get(f"{architecture}.block_count")),
            _first(metadata.get(f"{architecture}.expert_count")),
            heads // kv_heads if kv_heads else 1,
            "output.weight" not in names,
            importance,
        )


def _first(value: object) -> int:
    """A number, or the first of an array of them; 0 for anything else, and for no finite one."""
    many = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    item = next(iter(cast("Iterable[object]", value)), None) if many else value
    if isinstance(item, (str, bytes, bool)):
        return 0
    try:
        return int(cast(Any, item))
    except (TypeError, ValueError, OverflowError):
        return 0


@dataclass(frozen=True)
class _Place:
    """A tensor among those of its kind: number `index` of `count`, in layer `layer`."""

    kind: str
    name: str
    width: int
    axes: int
    layer: int
    index: int
    count: int
    facts: Facts

    @property
    def at(self) -> int:
        """Where it is counted to be: by layer in mixtures, else by those that came before."""
        return self.layer if self.facts.experts > 1 else self.index

    @property
    def total(self) -> int:
        """Of how many: all layers, but for values those that are there."""
        return self.count if self.kind == "v" else self.facts.layers

    def below(self, share: int) -> bool:
        """Whether it is in the first 1 / `share` of the layers."""
        return self.at < self.total // share

    @property
    def more(self) -> bool:
        """The eighths at both ends, and every third between them."""
        at, total = (self.index, self.count) if self.kind == "v" else (self.at, self.total)
        return at < total // 8 or at >= 7 * total // 8 or (at - total // 8) % 3 == 2


Rule = Callable[[_Place], str | None]


@dataclass(frozen=True)
class Mix:
    """A named mix: GGUF's number for it, the type of most tensors, and the exceptions by kind."""

    name: str
    number: int
    base: str
    rules: Mapping[str, Rule]


def _always(type: str) -> Rule:
    return lambda t: type


def _if(condition: Callable[[_Place], bool], type: str, otherwise: str | None = None) -> Rule:
    return lambda t: type if condition(t) else otherwise


def _shared(t: _Place) -> bool:
    return t.facts.queries >= 4


def _falcon(t: _Place) -> bool:
    return t.facts.architecture == "falcon"


def _middle(t: _Place) -> bool:
    return t.total // 8 <= t.at < 7 * t.total // 8


def _output(type: str) -> Rule:
    """The attention's output: five bits where there are eight experts."""
    return lambda t: None if _falcon(t) else type


def _low_bits(value: str, down: str, output: str | None) -> dict[str, Rule]:
    """The mixes of two bits and fewer."""

    def of_output(t: _Place) -> str | None:
        return "Q5_K" if t.facts.experts == 8 else output

    return {
        "v": _if(lambda t: _shared(t) or t.facts.experts >= 4, "Q4_K", value),
        "k": _if(lambda t: t.facts.experts == 8, "Q4_K"),
        "down": _if(lambda t: t.index < t.facts.layers // 8, down),
        "o": of_output,
    }


def _four_bit_grid() -> dict[str, Rule]:
    return {
        "v": _if(_shared, "Q5_K"),
        "down": _if(lambda t: t.below(8) and not t.facts.importance, "Q5_K"),
    }


def _q3_k_m_down(t: _Place) -> str | None:
    if t.below(16):
        return "Q5_K"
    return "Q4_K" if not _falcon(t) or t.more else None


def _q4_k_m_down(t: _Place) -> str | None:
    if _falcon(t):
        return "Q6_K" if t.below(16) else "Q5_K" if t.more else None
    return "Q6_K" if t.more else None


def _iq3_xxs_value(t: _Place) -> str | None:
    if _shared(t):
        return "Q4_K"
    return "IQ3_XXS" if t.facts.importance else "IQ3_S"


def _iq3_xxs_down(t: _Place) -> str | None:
    return None if t.facts.importance else "Q4_K" if t.below(8) else "Q3_K"


def _legacy_down(type: str) -> dict[str, Rule]:
    return {"down": _if(lambda t: t.facts.importance and t.below(8), type)}


_MIXES = (
    *(Mix(name, number, name, {}) for name, number in (("F32", 0), ("F16", 1), ("BF16", 32))),
    Mix("Q4_0", 2, "Q4_0", _legacy_down("Q4_1")),
    Mix("Q4_1", 3, "Q4_1", {}),
    Mix("Q8_0", 7, "Q8_0", {}),
    Mix("Q5_0", 8, "Q5_0", _legacy_down("Q5_1")),
    Mix("Q5_1", 9, "Q5_1", {}),
    Mix(
        "Q2_K",
        10,
        "Q2_K",
        {"v": _if(_shared, "Q4_K", "Q3_K"), "down": _always("Q3_K"), "o": _output("Q3_K")},
    ),
    Mix("Q3_K_S", 11, "Q3_K", {}),
    Mix(
        "Q3_K_M",
        12,
        "Q3_K",
        {
            "v": _if(lambda t: t.index < 2, "Q5_K", "Q4_K"),
            "down": _q3_k_m_down,
            "o": _output("Q4_K"),
        },
    ),
    Mix(
        "Q3_K_L",
        13,
        "Q3_K",
        {
            "v": _always("Q5_K"),
            "down": _if(_falcon, "Q4_K", "Q5_K"),
            "o": _if(_falcon, "Q4_K", "Q5_K"),
        },
    ),
    Mix(
        "Q4_K_S",
        14,
        "Q4_K",
        {
            "v": _if(lambda t: t.index < 4, "Q5_K"),
            "down": _if(lambda t: not _falcon(t) and t.below(8), "Q5_K"),
        },
    ),
    Mix("Q4_K_M", 15, "Q4_K", {"v": _if(lambda t: t.more, "Q6_K"), "down": _q4_k_m_down}),
    Mix("Q5_K_S", 16, "Q5_K", {}),
    Mix(
        "Q5_K_M",
        17,
        "Q5_K",
        {"v": _if(lambda t: t.more, "Q6_K"), "down": _if(lambda t: t.more, "Q6_K")},
    ),
    Mix("Q6_K", 18, "Q6_K", {}),
    Mix("IQ2_XXS", 19, "IQ2_XXS", _low_bits("Q2_K", "Q2_K", None)),
    Mix("IQ2_XS", 20, "IQ2_XS", _low_bits("Q2_K", "Q2_K", None)),
    Mix(
        "Q2_K_S",
        21,
        "Q2_K",
        {"v": _if(_shared, "Q4_K"), "down": _if(lambda t: t.below(8), "Q4_K")},
    ),
    Mix(
        "IQ3_XS",
        22,
        "IQ3_S",
        {
            "v": _if(_shared, "Q4_K"),
            "k": _always("IQ3_XXS"),
            "q": _always("IQ3_XXS"),
            "gate": _if(_middle, "IQ3_XXS"),
            "up": _if(_middle, "IQ3_XXS"),
        },
    ),
    Mix(
        "IQ3_XXS",
        23,
        "IQ3_XXS",
        {
            "v": _iq3_xxs_value,
            "k": _always("IQ2_S"),
            "q": _always("IQ2_S"),
            "down": _iq3_xxs_down,
            "o": _output("IQ3_S"),
        },
    ),
    Mix("IQ1_S", 24, "IQ1_S", _low_bits("Q2_K", "Q2_K", "IQ2_XXS")),
    Mix("IQ4_NL", 25, "IQ4_NL", _four_bit_grid()),
    Mix("IQ3_S", 26, "IQ3_S", {"v": _if(_shared, "Q4_K")}),
    Mix(
        "IQ3_M",
        27,
        "IQ3_S",
        {
            "v": _always("Q4_K"),
            "down": _if(lambda t: t.below(8) or (t.facts.experts == 8 and t.more), "Q4_K"),
            "o": _output("Q4_K"),
        },
    ),
    Mix("IQ2_S", 28, "IQ2_XS", _low_bits("IQ3_S", "IQ3_S", "IQ3_S")),
    Mix("IQ2_M", 29, "IQ2_S", _low_bits("IQ3_S", "IQ3_S", "IQ3_S")),
    Mix("IQ4_XS", 30, "IQ4_XS", _four_bit_grid()),
    Mix("IQ1_M", 31, "IQ1_M", _low_bits("Q2_K", "Q2_K", "IQ2_XXS")),
    Mix("TQ1_0", 36, "TQ1_0", {}),
    Mix("TQ2_0", 37, "TQ2_0", {}),
    Mix("MXFP4_MOE", 38, "MXFP4", {}),
    Mix("NVFP4", 39, "NVFP4", {}),
    Mix("Q1_0", 40, "Q1_0", {}),
    Mix("Q2_0", 41, "Q2_0", {}),
)
MIXES: Mapping[str, Mix] = {mix.name: mix for mix in _MIXES}
_ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M", "MXFP4": "MXFP4_MOE"}
_HEAD_OF_FIVE = ("IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ2_S", "IQ2_M", "IQ1_M")
_TABLES = {
    **dict.fromkeys(("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "Q2_K"),
    **dict.fromkeys(("IQ2_S", "IQ2_M", "IQ3_XXS"), "IQ3_S"),
    **dict.fromkeys(("TQ1_0", "TQ2_0", "Q2_0"), "Q4_K"),
}
_OUTPUT_OF_EIGHT = (
    *("Q2_K", "IQ3_XS", "IQ3_XXS", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M"),
    *("IQ3_S", "IQ3_M", "IQ4_XS"),
)


def find_mix(name: str) -> Mix:
    """The mix called `name`, in any case; UsageError with those that there are."""
    wanted = name.upper()
    wanted = _ALIASES.get(wanted, wanted)
    if wanted not in MIXES:
        raise UsageError(f"there is no type {name!r}; there are {', '.join(MIXES)}")
    return MIXES[wanted]


def is_quantised(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor of a GGUF file is one that gets another type at all: a matrix that is no
    norm, router or small table."""
    if len(shape) < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    return not any(part in name for part in _KEPT)


def fitting(type: str, width: int) -> BlockType:
    """`type`, or what stands for it where rows of `width` are no whole number of its blocks."""
    chosen = by_name(type)
    if width % chosen.elements:
        chosen = by_name(_FALLBACK.get(type, type))
    return by_name("F16") if width % chosen.elements else chosen


def choose_types(
    mix: Mix, facts: Facts, shapes: Mapping[str, tuple[int, ...]], *, pure: bool = False
) -> dict[str, BlockType]:
    """The type of every tensor that gets one, by its GGUF name; `shapes` are rows first.

    With `pure` all have the mix's own type (or what stands for it).
    """
    wanted = [name for name in sorted(shapes, key=_in_layers) if is_quantised(name, shapes[name])]
    kinds = {name: _kind(name) for name in shapes}
    counts = {"v": sum(kind == "v" for kind in kinds.values())}
    seen: dict[str, int] = {}
    chosen = {}
    for name in wanted:
        kind = kinds[name]
        index = seen.get(kind, 0)
        seen[kind] = index + 1
        match = _LAYER.match(name)
        place = _Place(
            kind,
            name,
            shapes[name][-1],
            len(shapes[name]),
            int(match[1]) if match else index,
            index,
            counts.get(kind, facts.layers),
            facts,
        )
        type = mix.base if pure or mix.base in FLOATS else _type(mix, place)
        chosen[name] = by_name(type) if type in FLOATS else fitting(type, place.width)
    return chosen


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor is in."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def tensor_kind(name: str) -> str:
    """What a tensor is for: output, table, q, k, v, o, gate, up, down, other."""
    return _kind(name)


def _in_layers(name: str) -> tuple[int, str]:
    match = _LAYER.match(name)
    return (int(match[1]) if match else -1, name)


def _kind(name: str) -> str:
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "table"
    return next((kind for part, kind in _KINDS if part in name), "other")


def _type(mix: Mix, t: _Place) -> str:
    if t.kind == "output" or (t.kind == "table" and t.facts.tied):
        if mix.base == "MXFP4" or _falcon(t) or t.width % by_name(mix.base).elements:
            return "Q8_0"
        if mix.name in _HEAD_OF_FIVE:
            return "Q5_K"
        return mix.base if mix.base == "Q8_0" else "Q6_K"
    if mix.name == "MXFP4_MOE":
        return "MXFP4" if t.axes > 2 else "Q8_0"
    if t.kind == "table":
        return _TABLES.get(mix.name, mix.base)
    if t.kind == "o" and t.facts.experts == 8 and mix.name in _OUTPUT_OF_EIGHT and not _falcon(t):
        return "Q5_K"
    type = (mix.rules[t.kind](t) if t.kind in mix.rules else None) or mix.base
    if mix.name in _HEAD_OF_FIVE and mix.name != "IQ3_XXS":
        return type
    if t.kind == "v":
        # With eight heads to a value the matrix is so small that more bits cost nothing.
        large = t.facts.architecture == "llama" and t.facts.layers == 80
        type = "Q5_K" if large and type in ("Q3_K", "Q4_K") else type
    return "Q8_0" if t.kind in ("v", "k") and t.facts.experts == 8 else type
