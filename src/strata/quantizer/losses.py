"""What each type would cost each tensor: its error, weighed by column, in units of the KL
divergence of the whole model.

A tensor's loss is taken to be proportional to its relative error. By how much is measured for each
kind of tensor in each half of the layers: all of them are rounded and the model's KL on a text is
compared with the sum of their relative errors (the protocol of arXiv 2603.08747, by KL). Without a
text every tensor's relative error counts alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from strata.backends.weights import WeightSource
from strata.program import Model
from strata.quant import BlockType, by_name, dequantize
from strata.quantizer.allocate import Choice
from strata.quantizer.encoder import Encoder
from strata.quantizer.importance import ImportanceMatrix
from strata.quantizer.mixes import layer_of, tensor_kind
from strata.quantizer.sources import Source, SourceTensor
from strata.quantizer.sweeps import Floats, Sweep, Window
from strata.records import dataclass

Progress = Callable[[str, int, int | None], None]
CANDIDATES = (
    *("IQ1_S", "IQ1_M", "IQ2_XXS", "Q2_0", "IQ2_XS", "IQ2_S", "IQ3_XXS", "Q3_K", "IQ3_S"),
    *("IQ4_XS", "IQ4_NL", "Q4_K", "Q4_1", "Q5_K", "Q5_0", "Q5_1", "Q6_K", "Q8_0"),
)
"""Types that a mix is made of; each tensor takes of them what its rows are a whole number of."""
_SAMPLE = 192
_LEAST_KL = 1e-9
_LARGEST_SHARE = 100


@dataclass(frozen=True)
class Losses:
    """Choices of each tensor by its name, and what a relative error costs each group."""

    choices: Mapping[str, Sequence[Choice]]
    costs: Mapping[str, float]


def group_of(tensor: SourceTensor, layers: int) -> str:
    """The kind of a tensor, and in which half of the layers it is."""
    layer = layer_of(tensor.name)
    half = "" if layer is None else ", first half" if 2 * layer < layers else ", second half"
    return tensor_kind(tensor.name) + half


def relative_error(
    tensor: SourceTensor, type: BlockType, encoder: Encoder, importance: Floats | None
) -> float:
    """Weighted squared error over weighted square, from some rows of a tensor."""
    rows, k = tensor.matrix
    step = max(1, rows // _SAMPLE)
    runs = [(first, min(first + 16, rows)) for first in range(0, rows, 16 * step)]
    raw = np.concatenate([tensor.rows(*run) for run in runs])
    count = sum(b - a for a, b in runs)
    x = dequantize(tensor.type, raw, (count, k))
    weights = None if importance is None else importance.mean(axis=0)
    seen = np.empty_like(x)
    encoder.encode(
        type, by_name("F32"), x.reshape(-1).view(np.uint8), (count, k), weights, decoded=seen
    )
    # A few columns may be thousands of times as large as all others (those of a text's first
    # token): they would hide what happens to the rest.
    w = np.ones(k) if weights is None else weights.astype(np.float64)
    w = np.minimum(w, _LARGEST_SHARE * np.median(w))
    total = float(((x.astype(np.float64) ** 2) * w).sum())
    return float((((seen - x).astype(np.float64) ** 2) * w).sum()) / max(total, 1e-300)


def losses_of(
    source: Source,
    names: Sequence[str],
    encoder: Encoder,
    importance: ImportanceMatrix | None,
    costs: Mapping[str, float],
    layers: int,
    progress: Progress | None = None,
) -> Losses:
    """Every candidate of every tensor, with what it costs."""
    choices: dict[str, list[Choice]] = {}
    for number, name in enumerate(names):
        if progress is not None:
            progress("errors of types", number, len(names))
        tensor = source.tensors[name]
        weights = importance.of(tensor) if importance is not None else None
        cost = costs.get(group_of(tensor, layers), 1.0)
        found = []
        for label in CANDIDATES:
            type = by_name(label)
            if tensor.shape[-1] % type.elements == 0:
                error = relative_error(tensor, type, encoder, weights)
                found.append(Choice(label, type.tensor_nbytes(tensor.shape), cost * error))
        if not found:
            found = [Choice("F16", by_name("F16").tensor_nbytes(tensor.shape), 0.0)]
        choices[name] = _worthwhile(found)
    if progress is not None:
        progress("errors of types", len(names), len(names))
    return Losses(choices, costs)


def _worthwhile(choices: list[Choice]) -> list[Choice]:
    """Those for which no smaller one loses less."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda c: (c.nbytes, c.loss)):
        if not kept or choice.loss < kept[-1].loss:
            kept.append(choice)
    return kept


def costs_of(
    source: Source,
    model: Model,
    weights: WeightSource,
    windows: Sequence[Window],
    sweep: Sweep,
    names: Sequence[str],
    encoder: Encoder,
    importance: ImportanceMatrix | None,
    layers: int,
    progress: Progress | None = None,
) -> dict[str, float]:
    """KL a token, on the windows, for each unit of relative error in each group."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(group_of(source.tensors[name], layers), []).append(name)
    borders = _borders(model, weights, windows, sweep)
    plain = [window.values["logits"] for window in windows]
    costs = {}
    for number, (group, members) in enumerate(groups.items()):
        if progress is not None:
            progress("sensitivity", number, len(groups))
        changed, error = {}, 0.0
        for name in members:
            decoded, lost = _probed(source.tensors[name], encoder, importance)
            changed[name] = decoded
            error += lost
        first = min(
            i for i, s in enumerate(model.segments) if any(w.source in changed for w in s.weights)
        )
        for window, values in zip(windows, borders, strict=True):
            window.values = values[first]
        for segment in model.segments[first:]:
            floats = {w.name: weights.floats(w) for w in segment.weights}
            for weight in segment.weights:
                if weight.source in changed and weight.transform == "none":
                    whole = changed[weight.source]
                    part = whole[:, slice(*weight.each)] if weight.each else whole
                    floats[weight.name] = part[slice(*weight.rows)] if weight.rows else part
            sweep.through(segment, floats, windows, whole=True)
        kl = np.mean(
            [_divergence(a, w.values["logits"]) for a, w in zip(plain, windows, strict=True)]
        )
        costs[group] = max(float(kl), _LEAST_KL) / max(error, 1e-30)
    if progress is not None:
        progress("sensitivity", len(groups), len(groups))
    return costs


def _probed(
    tensor: SourceTensor, encoder: Encoder, importance: ImportanceMatrix | None
) -> tuple[Floats, float]:
    """A tensor in about four bits, and its relative error."""
    type = by_name("IQ4_NL" if tensor.shape[-1] % 32 == 0 else "F16")
    rows, k = tensor.matrix
    weights = None if importance is None else importance.of(tensor)
    mean = None if weights is None else weights.mean(axis=0)
    raw = tensor.rows(0, rows)
    x = dequantize(tensor.type, raw, (rows, k))
    seen = np.empty_like(x)
    encoder.encode(type, tensor.type, raw, (rows, k), mean, decoded=seen)
    w = np.ones(k) if mean is None else np.minimum(mean, _LARGEST_SHARE * np.median(mean))
    error = float(((seen - x) ** 2 @ w).sum(dtype=np.float64))
    return seen.reshape(tensor.shape), error / max(float((x**2 @ w).sum(dtype=np.float64)), 1e-300)


def _borders(
    model: Model, weights: WeightSource, windows: Sequence[Window], sweep: Sweep
) -> list[list[Mapping[str, Floats]]]:
    """What each Segment gets from the one before it, window by window; logits stay with them."""
    kept: list[list[Mapping[str, Floats]]] = [[] for _ in windows]
    for segment in model.segments:
        for window, values in zip(windows, kept, strict=True):
            values.append(window.values)
        floats = {w.name: weights.floats(w) for w in segment.weights}
        sweep.through(segment, floats, windows, whole=True)
    return kept


def _divergence(base: Floats, other: Floats) -> float:
    """Mean KL divergence of rows of logits, in nats."""
    p, q = (
        x - np.logaddexp.reduce(x, axis=1, keepdims=True)
        for x in (base.astype(np.float64), other.astype(np.float64))
    )
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())
