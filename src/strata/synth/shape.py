"""The sizes of a model, and the same model with fewer layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from strata.errors import UsageError
from strata.records import dataclass

ATTENTION_BIASES = tuple(f"blk.{{i}}.attn_{part}.bias" for part in "qkv")
CONV_BIAS = "blk.{i}.ssm_conv1d.bias"


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only model. ``llama3_factor`` and ``linear_factor`` are rope scalings,
    ``window`` a sliding window (on the layers that the family gives it to), 0 for none. ``experts``
    of width ``ffn`` are in every layer, of which a token chooses ``top_k``.
    ``settings`` and ``keys`` are what config.json and GGUF metadata have besides, or otherwise.

    ``family`` is a row of ``outline.HUGGING_FACE``, or, where only a GGUF file is described, the
    architecture as such files call it. ``holds`` are optional tensors of GGUF files that the
    published model has, with ``{i}`` for the layer.
    """

    name: str
    family: str
    layers: int
    width: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    context: int
    rope_base: float
    tied: bool = False
    eps: float = 1e-5
    window: int = 0
    llama3_factor: float = 0.0
    linear_factor: float = 0.0
    experts: int = 0
    top_k: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    keys: Mapping[str, Any] = field(default_factory=dict, hash=False)
    holds: tuple[str, ...] = ()


def with_layers(shape: Shape, layers: int) -> Shape:
    """The first ``layers`` of a shape, with its embedding and its head; UsageError unless it has
    so many."""
    if not 1 <= layers <= shape.layers:
        raise UsageError(f"{shape.name} has {shape.layers} layers; give --layers from 1 to that")
    if layers == shape.layers:
        return shape

    def first(values: Mapping[str, Any]) -> dict[str, Any]:
        lists = {k: v for k, v in values.items() if isinstance(v, list) and len(v) == shape.layers}
        return {**values, **{k: v[:layers] for k, v in lists.items()}}

    dense = "leading_dense_block_count"
    keys = first(shape.keys)
    if dense in keys:
        keys[dense] = min(keys[dense], layers)
    name = f"{shape.name}-{layers}-layers"
    return replace(shape, name=name, layers=layers, settings=first(shape.settings), keys=keys)


def ssm_keys(inner: int, heads: int) -> dict[str, int]:
    """GGUF keys of a Mamba-2 mixer, or of the delta rule."""
    names = ("inner_size", "time_step_rank", "state_size", "conv_kernel", "group_count")
    return {f"ssm.{n}": v for n, v in zip(names, (inner, heads, 128, 4, 1), strict=True)}
