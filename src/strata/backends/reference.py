"""The oracle: every Op as one obvious numpy function in float32. Slow, permanent, never clever."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import (
    KV_BLOCK,
    NO_BLOCK,
    NO_STATS,
    Activations,
    BackendStats,
    Books,
    LoadedSegment,
    NoBooks,
    Span,
    StateCache,
    Step,
)
from strata.backends.kv_types import F32, KV_TYPES, KVType
from strata.backends.profile import ModelProfile
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.program import (
    LayerState,
    Model,
    PagedKV,
    Recurrent,
    Segment,
    StateGroup,
    state_groups,
)

Floats = NDArray[np.float32]


@dataclass
class ReferenceSegment:
    """A Segment with its weights as float32 arrays."""

    segment: Segment
    weights: Mapping[str, Floats]
    node_times: None = None

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return sum(w.nbytes for w in self.weights.values())


class ReferenceState:
    """What layers keep of sequences, float32; keys and values are rounded as ``kv_type`` does."""

    def __init__(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType = F32
    ) -> None:
        self.state, self.kv_type = tuple(state), kv_type
        self.groups: tuple[StateGroup, ...] = state_groups(state)
        self.blocks = tuple(blocks)
        self._arrays: dict[int, list[Floats]] = {}
        self._all = [self._room(g, n) for g, n in zip(self.groups, self.blocks, strict=True)]

    def _room(self, group: StateGroup, blocks: int) -> Floats:
        """Memory of a group, [blocks, numbers]; the layers' arrays are views of it."""
        shapes = {number: _shapes(self.state[number]) for number in group.layers}
        size = sum(math.prod(shape) for layer in shapes.values() for shape in layer)
        room = np.zeros((blocks, size), np.float32)
        start = 0
        for number, layer in shapes.items():
            self._arrays[number] = []
            for shape in layer:
                end = start + math.prod(shape)
                self._arrays[number].append(room[:, start:end].reshape(blocks, *shape))
                start = end
        return room

    @property
    def nbytes(self) -> int:
        """Bytes held at most; memory is taken where blocks are used."""
        return sum(room.nbytes for room in self._all)

    def block_nbytes(self, group: int) -> int:
        """Bytes of a block of a group."""
        return int(4 * self._all[group].shape[1])

    def copy(self, group: int, source: int, target: int) -> None:
        """See StateCache."""
        self._block(group, target)[:] = self._block(group, source)

    def read(self, group: int, block: int, out: NDArray[np.uint8]) -> None:
        """See StateCache."""
        out[:] = self._block(group, block).view(np.uint8)

    def write(self, group: int, block: int, data: NDArray[np.uint8]) -> None:
        """See StateCache."""
        self._block(group, block).view(np.uint8)[:] = data

    def _block(self, group: int, block: int) -> Floats:
        if not 0 <= group < len(self.groups) or not 0 <= block < self.blocks[group]:
            raise IndexError(f"there is no block {block} of group {group}")
        out: Floats = self._all[group][block]
        return out

    def group_of(self, layer: int) -> int:
        """Number of the group that a layer is in."""
        return next(n for n, group in enumerate(self.groups) if layer in group.layers)

    def kv(self, layer: int) -> tuple[Floats, Floats]:
        """Keys [blocks, KV_BLOCK, kv_heads, k_dim] of a layer, and its values."""
        kept = self.state[layer]
        assert isinstance(kept, PagedKV)
        keys, *values = self._arrays[layer]
        return keys, values[0] if values else keys[..., : kept.v_dim]

    def recurrent(self, layer: int) -> list[Floats]:
        """The arrays of a recurrent layer, [slots, *shape] each."""
        return self._arrays[layer]


def _shapes(layer: LayerState) -> list[tuple[int, ...]]:
    """Of the arrays that a block, or a slot, has for a layer."""
    if isinstance(layer, Recurrent):
        return list(layer.shapes)
    assert isinstance(layer, PagedKV)
    dims = (layer.k_dim,) if layer.v_in_k else (layer.k_dim, layer.v_dim)
    return [(KV_BLOCK, layer.kv_heads, dim) for dim in dims]


class ReferenceBackend:
    """Runs Segments with numpy. Activations are float32 arrays [rows, width].

    ``kv_type`` is how keys and values are rounded unless ``state_cache`` is told otherwise.
    """

    name = "reference"
    plans = False
    numerics = "numpy"
    device = "numpy"
    threads = None
    kv_types = (F32, *KV_TYPES)

    def __init__(self, kv_type: KVType = F32, books: Books | None = None) -> None:
        self._kv_type = kv_type
        self._books = books or NoBooks()

    @classmethod
    def create(
        cls, threads: int | None, device: str | None, settings: BackendSettings, books: Books
    ) -> ReferenceBackend:
        """numpy chooses its threads itself, and any step fits."""
        del threads, device, settings
        return cls(books=books)

    @staticmethod
    def profile(model: Model, weights: WeightSource) -> ModelProfile:
        """UsageError: it keeps to no Plan."""
        del model, weights
        raise UsageError("the reference backend keeps to no memory budget; the cpu backend does")

    def load(self, segment: Segment, weights: WeightSource) -> ReferenceSegment:
        """Dequantise a Segment's weights."""
        self._books.take("weights", sum(4 * prod(w.shape) for w in segment.weights))
        return ReferenceSegment(segment, {w.name: weights.floats(w) for w in segment.weights})

    def state_cache(
        self, state: Sequence[LayerState], blocks: Sequence[int], kv_type: KVType | None = None
    ) -> ReferenceState:
        """Room for so many blocks of each group of layers."""
        made = ReferenceState(state, blocks, kv_type or self._kv_type)
        self._books.take("kv", made.nbytes)
        return made

    def prepare(self) -> None:
        """numpy takes memory as it goes."""

    def join(self, loaded: Sequence[LoadedSegment]) -> None:
        """Segments run one by one."""

    def run(
        self, loaded: LoadedSegment, step: Step, state: StateCache, inputs: Activations
    ) -> dict[str, Floats]:
        """Run one Segment over a step; returns its outputs under their outer names."""
        assert isinstance(loaded, ReferenceSegment)
        assert isinstance(state, ReferenceState)
        program = loaded.segment.program
        values: dict[str, Floats] = {**loaded.weights, **{n: inputs[n] for n in program.inputs}}
        for op in program.ops:
            operands = [values[name] for name in op.inputs]
            values[op.output] = _OPS[op.kind](op.attrs, operands, step, state)
        outputs = zip(loaded.segment.outputs, program.outputs, strict=True)
        return {outer: values[inner] for outer, inner in outputs}

    def export(self, activations: Activations, names: Sequence[str]) -> dict[str, Floats]:
        """See Backend."""
        return {name: activations[name] for name in names}

    def import_(self, arrays: Mapping[str, Floats], step: Step) -> Activations:
        """See Backend."""
        del step
        return {name: np.array(x, np.float32) for name, x in arrays.items()}

    def stats(self) -> BackendStats:
        """Weights come through ``WeightSource``, which counts nothing."""
        return NO_STATS

    def cached_bytes(self) -> int:
        """No file is opened here."""
        return 0

    def close(self) -> None:
        """Segments are freed with those who hold them."""


Attrs = Mapping[str, Any]
Run = Callable[[Attrs, list[Floats], Step, ReferenceState], Floats]


def embed(table: Floats, tokens: NDArray[np.int32], scale: float) -> Floats:
    """Rows of the table, scaled: [tokens, width]."""
    out: Floats = table[tokens] * np.float32(scale)
    return out


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """x / sqrt(mean(x^2) + eps) * weight over groups as wide as the weight."""
    groups = x.reshape(*x.shape[:-1], -1, weight.size)
    mean = np.mean(groups * groups, axis=-1, keepdims=True)
    out: Floats = groups / np.sqrt(mean + np.float32(eps)) * weight
    return out.reshape(x.shape)


def layer_norm(x: Floats, weight: Floats, bias: Floats | None, eps: float) -> Floats:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""
    centred = x - np.mean(x, axis=-1, keepdims=True)
    variance = np.mean(centred * centred, axis=-1, keepdims=True)
    out: Floats = centred / np.sqrt(variance + np.float32(eps)) * weight
    return out if bias is None else out + bias


def matmul(x: Floats, weight: Floats, bias: Floats | None) -> Floats:
    """x @ weight.T + bias."""
    out: Floats = x @ weight.T
    return out if bias is None else out + bias


def rope(
    x: Floats,
    positions: NDArray[np.int32],
    inv_freq: Sequence[float],
    factors: Floats | None,
    *,
    head_dim: int,
    style: str,
    mscale: float,
) -> Floats:
    """Turn pairs of each head by position * inv_freq / factors; dimensions beyond stay."""
    frequency = np.array(inv_freq, np.float32)
    if factors is not None:
        frequency = frequency / factors
    n = len(frequency)
    angle = positions[:, None].astype(np.float32) * frequency
    cos = (np.cos(angle) * np.float32(mscale))[:, None, :]
    sin = (np.sin(angle) * np.float32(mscale))[:, None, :]
    heads = x.reshape(len(x), -1, head_dim)
    pairs = (
        (slice(0, n), slice(n, 2 * n))
        if style == "neox"
        else (
            slice(0, 2 * n, 2),
            slice(1, 2 * n, 2),
        )
    )
    first, second = heads[..., pairs[0]], heads[..., pairs[1]]
    out = heads.copy()
    out[..., pairs[0]] = first * cos - second * sin
    out[..., pairs[1]] = second * cos + first * sin
    turned: Floats = out.reshape(x.shape)
    return turned


def attend(
    q: Floats,
    k: Floats,
    v: Floats,
    past: int,
    *,
    scale: float,
    window: int,
    cap: float,
    first: int = 0,
) -> Floats:
    """Causal attention of q [rows, heads, k_dim] over k [positions, kv_heads, k_dim] and v
    [positions, kv_heads, v_dim], which begin at position ``first``.

    Row i is position past + i; it sees keys at positions up to its own, and of these the last
    ``window`` if that is not 0.
    """
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    positions, keys = past + np.arange(rows)[:, None], first + np.arange(len(k))[None, :]
    seen = keys <= positions
    if window:
        seen &= positions - keys < window
    out = np.empty((rows, heads, v.shape[-1]), np.float32)
    for head in range(heads):
        scores = q[:, head] @ k[:, head // group].T * np.float32(scale)
        if cap:
            scores = softcap(scores, cap)
        scores = np.where(seen, scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, head] = weights @ v[:, head // group] / weights.sum(axis=-1, keepdims=True)
    return out


def attention(
    attrs: Attrs,
    q: Floats,
    k: Floats | None,
    v: Floats | None,
    step: Step,
    state: ReferenceState,
) -> Floats:
    """Append k and v to each sequence's blocks, then let its rows attend over them."""
    number = state.group_of(attrs["layer"])
    all_keys, all_values = state.kv(attrs["layer"])
    kv_heads, v_dim = attrs["kv_heads"], attrs["v_dim"]
    if k is not None:
        for new, kept in ((k, all_keys), (v, all_values)):
            if new is not None:
                rounded = state.kv_type.stored(new.reshape(len(new), kv_heads, -1))
                for span in step.spans:
                    _append(rounded, kept, span, step, number)
    out = np.empty((len(q), attrs["heads"] * v_dim), np.float32)
    for span in step.spans:
        rows = slice(span.row, span.row + span.rows)
        end = span.past + span.rows
        first = state.groups[number].first_seen(span.past) // KV_BLOCK
        table = span.tables[number][first : -(-end // KV_BLOCK)]
        assert (table != NO_BLOCK).all()
        seen = slice(0, end - first * KV_BLOCK)
        out[rows] = attend(
            q[rows].reshape(span.rows, attrs["heads"], -1),
            all_keys[table].reshape(-1, kv_heads, all_keys.shape[-1])[seen],
            all_values[table].reshape(-1, kv_heads, v_dim)[seen],
            span.past,
            scale=attrs["scale"],
            window=attrs["window"],
            cap=attrs["softcap"],
            first=first * KV_BLOCK,
        ).reshape(span.rows, -1)
    return out


def _append(new: Floats, kept: Floats, span: Span, step: Step, group: int) -> None:
    """Write what a span's own rows and those of its ancestors keep into the span's blocks."""
    writer, end = span, span.past + span.rows
    while True:
        positions = np.arange(writer.past, end)
        blocks = span.tables[group][positions // KV_BLOCK]
        here = blocks != NO_BLOCK
        rows = writer.row + positions - writer.past
        kept[blocks[here], positions[here] % KV_BLOCK] = new[rows[here]]
        if writer.parent < 0:
            return
        writer, end = step.spans[writer.parent], writer.past


def short_conv(
    attrs: Attrs, x: Floats, weight: Floats, step: Step, state: ReferenceState
) -> Floats:
    """Each column's weighted sum of its last values; the state is what came before the step."""
    number = state.group_of(attrs["layer"])
    (kept,) = state.recurrent(attrs["layer"])
    taps = weight.shape[1]
    out = np.zeros_like(x)
    for span in step.spans:
        source, target = span.tables[number]
        rows = slice(span.row, span.row + span.rows)
        before = np.zeros_like(kept[0]) if source == NO_BLOCK else kept[source]
        whole = np.concatenate([before, x[rows]])
        for tap in range(taps):
            out[rows] += weight[:, tap] * whole[tap : tap + span.rows]
        kept[target] = whole[span.rows :]
    return out


def activate(x: Floats, function: str) -> Floats:
    """The activation functions by their names in ``strata.program.ops.ACTIVATIONS``."""
    out: Floats
    if function == "silu":
        # exp(-x) may overflow to infinity, which gives the right limit: 0.
        with np.errstate(over="ignore"):
            out = x / (1 + np.exp(-x))
    elif function == "gelu":
        out = np.float32(0.5) * x * (1 + _erf(x / np.float32(math.sqrt(2))))
    elif function == "gelu_tanh":
        inner = np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x * x * x)
        out = np.float32(0.5) * x * (1 + np.tanh(inner))
    elif function == "relu":
        out = np.maximum(x, 0)
    else:
        out = np.square(np.maximum(x, 0))
    return out


def softcap(x: Floats, cap: float) -> Floats:
    """cap * tanh(x / cap)."""
    out: Floats = np.tanh(x / np.float32(cap)) * np.float32(cap)
    return out


def _erf(x: Floats) -> Floats:
    out: Floats = np.vectorize(math.erf, otypes=[np.float32])(x)
    return out


def _second(operands: list[Floats]) -> Floats | None:
    return operands[1] if len(operands) > 1 else None


def _third(operands: list[Floats]) -> Floats | None:
    return operands[2] if len(operands) > 2 else None


_OPS: Mapping[str, Run] = {
    "embed": lambda a, x, step, state: embed(x[0], step.tokens, a["scale"]),
    "add_positions": lambda a, x, step, state: x[0] + x[1][step.positions + a["offset"]],
    "rms_norm": lambda a, x, step, state: rms_norm(x[0], x[1], a["eps"]),
    "layer_norm": lambda a, x, step, state: layer_norm(x[0], x[1], _third(x), a["eps"]),
    "matmul": lambda a, x, step, state: matmul(x[0], x[1], _third(x)),
    "rope": lambda a, x, step, state: rope(
        x[0],
        step.positions,
        a["inv_freq"],
        x[1] if len(x) > 1 else None,
        head_dim=a["head_dim"],
        style=a["style"],
        mscale=a["mscale"],
    ),
    "attention": lambda a, x, step, state: attention(a, x[0], _second(x), _third(x), step, state),
    "short_conv": lambda a, x, step, state: short_conv(a, x[0], x[1], step, state),
    "glu": lambda a, x, step, state: activate(x[0], a["function"]) * x[1],
    "activation": lambda a, x, step, state: activate(x[0], a["function"]),
    "add": lambda a, x, step, state: x[0] + x[1],
    "scale": lambda a, x, step, state: x[0] * np.float32(a["factor"]),
    "softcap": lambda a, x, step, state: softcap(x[0], a["cap"]),
    "select": lambda a, x, step, state: x[0][step.logits_indices],
}
