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
    NO_STATS,
    Activations,
    BackendStats,
    Books,
    KVCache,
    LoadedSegment,
    NoBooks,
    Step,
)
from strata.backends.kv_types import BF16, F16, F32, Q8_0, KVType
from strata.backends.profile import ModelProfile
from strata.backends.settings import BackendSettings
from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.program import KVLayer, Model, Segment

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


class ReferenceKV:
    """Keys and values of every layer, float32, rounded as ``kv_type`` keeps them."""

    def __init__(self, layers: Sequence[KVLayer], blocks: int, kv_type: KVType = F32) -> None:
        self.layers, self.blocks, self.kv_type = layers, blocks, kv_type
        sizes = [2 * KV_BLOCK * layer.kv_heads * layer.head_dim for layer in layers]
        self._starts = np.cumsum((0, *sizes))
        self._all = np.zeros((blocks, sum(sizes)), np.float32)

    @property
    def nbytes(self) -> int:
        """Bytes held at most; memory is taken where blocks are used."""
        return self._all.nbytes

    def block(self, block: int) -> NDArray[np.uint8]:
        """The bytes of one block, all layers, as a writable view."""
        out: NDArray[np.uint8] = self._all[block].view(np.uint8)
        return out

    def layer(self, index: int) -> tuple[Floats, Floats]:
        """Keys and values of a layer, [blocks, KV_BLOCK, kv_heads, head_dim] each."""
        layer = self.layers[index]
        part = self._all[:, self._starts[index] : self._starts[index + 1]]
        both = part.reshape(self.blocks, 2, KV_BLOCK, layer.kv_heads, layer.head_dim)
        return both[:, 0], both[:, 1]


class ReferenceBackend:
    """Runs Segments with numpy. Activations are float32 arrays [rows, width].

    ``kv_type`` is how keys and values are rounded unless ``kv_cache`` is told otherwise.
    """

    name = "reference"
    plans = False
    numerics = "numpy"
    device = "numpy"
    threads = None
    kv_types = (F32, F16, BF16, Q8_0)

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

    def kv_cache(
        self, layers: Sequence[KVLayer], blocks: int, kv_type: KVType | None = None
    ) -> ReferenceKV:
        """KV for ``blocks`` blocks of KV_BLOCK positions in every layer."""
        kv = ReferenceKV(layers, blocks, kv_type or self._kv_type)
        self._books.take("kv", kv.nbytes)
        return kv

    def prepare(self) -> None:
        """numpy takes memory as it goes."""

    def join(self, loaded: Sequence[LoadedSegment]) -> None:
        """Segments run one by one."""

    def run(
        self, loaded: LoadedSegment, step: Step, kv: KVCache, inputs: Activations
    ) -> dict[str, Floats]:
        """Run one Segment over a step; returns its outputs under their outer names."""
        assert isinstance(loaded, ReferenceSegment)
        assert isinstance(kv, ReferenceKV)
        program = loaded.segment.program
        values: dict[str, Floats] = {**loaded.weights, **{n: inputs[n] for n in program.inputs}}
        for op in program.ops:
            operands = [values[name] for name in op.inputs]
            values[op.output] = _OPS[op.kind](op.attrs, operands, step, kv)
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
Run = Callable[[Attrs, list[Floats], Step, ReferenceKV], Floats]


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
    q: Floats, k: Floats, v: Floats, past: int, *, scale: float, window: int, cap: float
) -> Floats:
    """Causal attention of q [rows, heads, dim] over k and v [past + rows, kv_heads, dim].

    Row i is position past + i; it sees keys at positions up to its own, and of these the last
    ``window`` if that is not 0.
    """
    rows, heads, _ = q.shape
    group = heads // k.shape[1]
    positions, keys = past + np.arange(rows)[:, None], np.arange(len(k))[None, :]
    seen = keys <= positions
    if window:
        seen &= positions - keys < window
    out = np.empty_like(q)
    for head in range(heads):
        scores = q[:, head] @ k[:, head // group].T * np.float32(scale)
        if cap:
            scores = softcap(scores, cap)
        scores = np.where(seen, scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, head] = weights @ v[:, head // group] / weights.sum(axis=-1, keepdims=True)
    return out


def attention(attrs: Attrs, q: Floats, k: Floats, v: Floats, step: Step, kv: ReferenceKV) -> Floats:
    """Append k and v to each sequence's blocks, then let its rows attend over them."""
    all_keys, all_values = kv.layer(attrs["layer"])
    kv_heads, dim = attrs["kv_heads"], attrs["head_dim"]
    out = np.empty_like(q)
    for span in step.spans:
        rows = slice(span.row, span.row + span.rows)
        position = np.arange(span.past, span.past + span.rows)
        block, slot = span.table[position // KV_BLOCK], position % KV_BLOCK
        all_keys[block, slot] = kv.kv_type.stored(k[rows].reshape(-1, kv_heads, dim))
        all_values[block, slot] = kv.kv_type.stored(v[rows].reshape(-1, kv_heads, dim))
        end = span.past + span.rows
        table = span.table[: -(-end // KV_BLOCK)]
        out[rows] = attend(
            q[rows].reshape(span.rows, -1, dim),
            all_keys[table].reshape(-1, kv_heads, dim)[:end],
            all_values[table].reshape(-1, kv_heads, dim)[:end],
            span.past,
            scale=attrs["scale"],
            window=attrs["window"],
            cap=attrs["softcap"],
        ).reshape(span.rows, -1)
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


def _third(operands: list[Floats]) -> Floats | None:
    return operands[2] if len(operands) > 2 else None


_OPS: Mapping[str, Run] = {
    "embed": lambda a, x, step, kv: embed(x[0], step.tokens, a["scale"]),
    "add_positions": lambda a, x, step, kv: x[0] + x[1][step.positions + a["offset"]],
    "rms_norm": lambda a, x, step, kv: rms_norm(x[0], x[1], a["eps"]),
    "layer_norm": lambda a, x, step, kv: layer_norm(x[0], x[1], _third(x), a["eps"]),
    "matmul": lambda a, x, step, kv: matmul(x[0], x[1], _third(x)),
    "rope": lambda a, x, step, kv: rope(
        x[0],
        step.positions,
        a["inv_freq"],
        x[1] if len(x) > 1 else None,
        head_dim=a["head_dim"],
        style=a["style"],
        mscale=a["mscale"],
    ),
    "attention": lambda a, x, step, kv: attention(a, x[0], x[1], x[2], step, kv),
    "glu": lambda a, x, step, kv: activate(x[0], a["function"]) * x[1],
    "activation": lambda a, x, step, kv: activate(x[0], a["function"]),
    "add": lambda a, x, step, kv: x[0] + x[1],
    "scale": lambda a, x, step, kv: x[0] * np.float32(a["factor"]),
    "softcap": lambda a, x, step, kv: softcap(x[0], a["cap"]),
    "select": lambda a, x, step, kv: x[0][step.out_rows],
}
