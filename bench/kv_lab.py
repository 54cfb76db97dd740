"""KV methods in numpy, on the activations of a real model: what each costs, before it is built.

A method is a class with ``attend(layer, q, k, v, scale)``: q float32 [rows, heads, dim], k and v
[rows, kv_heads, dim], of a whole text from position 0 on; it gives [rows, heads, dim] and counts in
``bytes`` what it would keep, or read, of float16's ``whole``. Rows see what they would see when the
text came token by token: what is sealed for one row may be whole for an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.backends.base import KV_BLOCK, Span, Step
from strata.backends.kv_types import KVType, _rotated
from strata.backends.reference import ReferenceBackend
from strata.backends.reference.backend import OPS
from strata.backends.weights import WeightSource
from strata.formats import open_model
from strata.models import build_model
from strata.text import load_tokenizer

Floats = NDArray[np.float32]
SINKS = 4


class Lab:
    """A model whose attention is a method's. ``text`` is tokenised once."""

    def __init__(self, path: Path, text: str, rows: int) -> None:
        with open_model(path) as file:
            self.model = build_model(file, rows + KV_BLOCK)
            self.tokenizer = load_tokenizer(file)
            self.tokens = self.tokenizer.encode(text)[:rows]
            self.backend = _Replaced()
            source = WeightSource(file)
            self.segments = self.backend.load(self.model.segments, source)
        ops = [o for s in self.model.segments for o in s.program.ops]
        self.attentions = [o for o in ops if o.kind == "attention"]
        ropes = [o for o in ops if o.kind == "rope"]
        self.inv_freq = np.array(ropes[0].attrs["inv_freq"], np.float32)
        self.interleaved = ropes[0].attrs["style"] != "neox"

    def logits(self, method: Any, tokens: list[int] | None = None) -> Floats:
        """Of all rows, float32 [rows, vocabulary]."""
        tokens = self.tokens if tokens is None else tokens
        rows, groups = len(tokens), len(self.model.groups)
        blocks = -(-rows // KV_BLOCK)
        table = np.arange(blocks, dtype=np.int32)
        span = Span(0, rows, 0, (table,) * groups)
        at = np.arange(rows, dtype=np.int32)
        step = Step(np.array(tokens, np.int32), at, (span,), at)
        state = self.backend.state_cache(self.model.state, (blocks,) * groups)
        self.backend.method, values = method, {}
        for segment in self.segments:
            values = self.backend.run(segment, step, state, values)
        return next(iter(values.values()))


class _Replaced(ReferenceBackend):
    method: Any = None

    def run(self, loaded: Any, step: Step, state: Any, inputs: Any) -> dict[str, Floats]:
        program = loaded.segment.program
        values = {**loaded.weights, **{n: inputs[n] for n in program.inputs}}
        for op in program.ops:
            operands = [values[name] for name in op.inputs]
            if op.kind == "attention":
                a, (q, k, v) = op.attrs, operands[:3]
                out = self.method.attend(
                    a["layer"],
                    q.reshape(len(q), a["heads"], -1),
                    k.reshape(len(k), a["kv_heads"], -1),
                    v.reshape(len(v), a["kv_heads"], -1),
                    a["scale"],
                )
                values[op.output] = out.reshape(len(q), -1).astype(np.float32)
            else:
                values[op.output] = OPS[op.kind](op.attrs, operands, step, state)
        outputs = zip(loaded.segment.outputs, program.outputs, strict=True)
        return {outer: values[inner] for outer, inner in outputs}


def compared(base: Floats, other: Floats, tokens: list[int]) -> dict[str, float]:
    """Mean KL divergence of the base from the other in nats, share of the same top token, and
    perplexity."""
    p, q = _log_softmax(base), _log_softmax(other)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    right = q[np.arange(len(tokens) - 1), tokens[1:]]
    same = (base.argmax(-1) == other.argmax(-1)).mean()
    return {
        "kl": float(kl.mean()),
        "same_top": float(same),
        "perplexity": float(np.exp(-right.mean())),
    }


def _log_softmax(x: Floats) -> Floats:
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


def scores(q: Floats, k: Floats, scale: float) -> Floats:
    """[heads, rows, keys]"""
    group = q.shape[1] // k.shape[1]
    keys = np.repeat(k, group, axis=1)
    return np.matmul(q.transpose(1, 0, 2), keys.transpose(1, 2, 0)) * np.float32(scale)


def softmax(s: Floats, seen: NDArray[np.bool_]) -> Floats:
    s = np.where(seen, s, np.float32(-np.inf))
    w = np.exp(s - s.max(axis=-1, keepdims=True))
    return w / w.sum(axis=-1, keepdims=True)


def weigh(w: Floats, v: Floats) -> Floats:
    """[rows, heads, dim] of weights [heads, rows, keys]."""
    group = w.shape[0] // v.shape[1]
    return np.matmul(w, np.repeat(v, group, axis=1).transpose(1, 0, 2)).transpose(1, 0, 2)


def causal(rows: int) -> NDArray[np.bool_]:
    return np.tril(np.ones((rows, rows), bool))


class Method:
    """Counts, and exact attention."""

    def __init__(self) -> None:
        self.bytes = self.whole = 0.0

    def attend(self, layer: int, q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
        w = softmax(scores(q, k, scale), causal(len(q)))
        return weigh(w, v)


# --- codecs -----------------------------------------------------------------------------------


def uniform(x: Floats, bits: int, axis: int) -> Floats:
    """Asymmetric codes of so many bits between the least and the largest along an axis; both are
    kept in f16."""
    least = x.min(axis=axis, keepdims=True).astype(np.float16).astype(np.float32)
    step = (x.max(axis=axis, keepdims=True) - least) / np.float32(2**bits - 1)
    step = step.astype(np.float16).astype(np.float32)
    code = np.rint((x - least) / np.where(step > 0, step, 1)).clip(0, 2**bits - 1)
    return (code * step + least).astype(np.float32)


class Codec(Method):
    """Keys and values as two functions of [rows, kv_heads, dim] give them back; ``sealed`` rows at
    a time, so that the last ones are whole, as ``sinks`` first ones are. Bits are of a number."""

    def __init__(
        self,
        keys: Callable[[int, Floats], Floats],
        values: Callable[[int, Floats], Floats],
        bits: tuple[float, float] = (16, 16),
        sealed: int = 0,
        sinks: int = 0,
    ) -> None:
        super().__init__()
        self.keys, self.values, self.bits = keys, values, bits
        self.sealed, self.sinks = sealed, sinks

    def attend(self, layer: int, q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
        rows = len(q)
        seen, at = causal(rows), np.arange(rows)
        read_k, read_v = self.keys(layer, k), self.values(layer, v)
        end = (at + 1) // self.sealed * self.sealed if self.sealed else np.full(rows, rows)
        lossy = (at[None, :] < end[:, None]) & (at[None, :] >= self.sinks)
        s = np.where(lossy, scores(q, read_k, scale), scores(q, k, scale))
        w = softmax(s, seen)
        share = float((lossy & seen).sum() / seen.sum())
        self.whole += 16 * 2
        self.bytes += share * sum(self.bits) + (1 - share) * 32
        return weigh(w * lossy, read_v) + weigh(w * ~lossy, v)


def per_token(bits: int, *, rotated: bool) -> Callable[[int, Floats], Floats]:
    """A scale and a least value for each token's head."""
    if not rotated:
        return lambda _, x: uniform(x, bits, -1)
    return lambda _, x: _rotated(uniform(_rotated(x), bits, -1))


def per_channel(bits: int, group: int) -> Callable[[int, Floats], Floats]:
    """KIVI's keys (arXiv 2402.02750): a scale for each channel of ``group`` tokens; a last part of
    fewer is left as it is."""

    def read(_: int, x: Floats) -> Floats:
        whole = len(x) // group * group
        parts = x[:whole].reshape(-1, group, *x.shape[1:])
        return np.concatenate([uniform(parts, bits, 1).reshape(whole, *x.shape[1:]), x[whole:]])

    return read


def native(kept: KVType, part: int) -> Callable[[int, Floats], Floats]:
    """A row of the table of KV types: of keys (0) or values (1)."""
    return lambda layer, x: kept.of(layer)[part].stored(x)


def lloyd_max(bits: int, draws: int = 50_000) -> Floats:
    """Levels that lose least of a standard normal number."""
    x = np.sort(np.random.default_rng(0).standard_normal(draws))
    levels = np.quantile(x, (np.arange(2**bits) + 0.5) / 2**bits)
    for _ in range(60):
        which = np.searchsorted((levels[1:] + levels[:-1]) / 2, x)
        levels = np.array([x[which == i].mean() for i in range(len(levels))])
    return levels.astype(np.float32)


def turbo(bits: int, dim: int) -> Callable[[int, Floats], Floats]:
    """TurboQuant (arXiv 2504.19874): the norm, and Lloyd-Max codes of the turned direction."""
    turn = np.linalg.qr(np.random.default_rng(1).standard_normal((dim, dim)))[0].astype(np.float32)
    levels = lloyd_max(bits)
    borders = (levels[1:] + levels[:-1]) / 2

    def read(_: int, x: Floats) -> Floats:
        norm = np.linalg.norm(x, axis=-1, keepdims=True).astype(np.float16).astype(np.float32)
        unit = (x / np.maximum(norm, 1e-20)) @ turn * np.sqrt(np.float32(dim))
        return (levels[np.searchsorted(borders, unit)] / np.sqrt(np.float32(dim)) @ turn.T) * norm

    return read


def turbo_unbiased(bits: int, dim: int, seed: int) -> Callable[[int, Floats], Floats]:
    """TurboQuant's variant for products: codes of a bit less, and signs of what they leave, turned
    by normal numbers, which make a product with anything right in the mean over these."""
    codes = turbo(bits - 1, dim)
    turn = np.random.default_rng(seed).standard_normal((dim, dim)).astype(np.float32)

    def read(layer: int, x: Floats) -> Floats:
        got = codes(layer, x)
        left = x - got
        norm = np.linalg.norm(left, axis=-1, keepdims=True)
        signs = np.where(left @ turn >= 0, np.float32(1), np.float32(-1))
        return got + np.sqrt(np.float32(np.pi / 2)) / dim * norm * (signs @ turn.T)

    return read


def oscar(bits: int, products: dict[int, Floats]) -> Callable[[int, Floats], Floats]:
    """OSCAR (arXiv 2605.17757): turned into the eigenvectors of what the other side is multiplied
    with, [kv_heads, dim, dim] a layer, and by Hadamard matrices after that."""
    turns = {layer: np.linalg.eigh(c)[1].astype(np.float32) for layer, c in products.items()}

    def read(layer: int, x: Floats) -> Floats:
        turn = turns[layer]
        y = _rotated(np.einsum("rhd,hde->rhe", x, turn).astype(np.float32))
        return np.einsum("rhe,hde->rhd", _rotated(uniform(y, bits, -1)), turn).astype(np.float32)

    return read


class Watch(Method):
    """Exact; keeps what others are calibrated with, and what premises are about."""

    def __init__(self) -> None:
        super().__init__()
        self.q: dict[int, Floats] = {}
        self.k: dict[int, Floats] = {}
        self.v: dict[int, Floats] = {}
        self.weighed: dict[int, Floats] = {}

    def attend(self, layer: int, q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
        w = softmax(scores(q, k, scale), causal(len(q)))
        self.q[layer], self.k[layer], self.v[layer] = q, k, v
        each = w.reshape(k.shape[1], -1, len(k))
        self.weighed[layer] = _value_products(each, v)
        return weigh(w, v)

    def key_products(self) -> dict[int, Floats]:
        """Queries by themselves, [kv_heads, dim, dim] a layer."""
        out = {}
        for layer, q in self.q.items():
            kv_heads = self.k[layer].shape[1]
            x = q.reshape(len(q), kv_heads, -1, q.shape[-1]).transpose(1, 0, 2, 3)
            x = x.reshape(kv_heads, -1, q.shape[-1])
            out[layer] = np.matmul(x.transpose(0, 2, 1), x)
        return out


def _value_products(w: Floats, v: Floats) -> Floats:
    """V' W' W V of each head that is kept; w [kv_heads, rows, keys]."""
    y = np.matmul(w, v.transpose(1, 0, 2))
    return np.matmul(y.transpose(0, 2, 1), y)


def turned_back(lab: Lab, x: Floats, sign: int) -> Floats:
    """RoPE by the position, forwards (1) or back (-1)."""
    return turned(lab, x, sign * np.arange(len(x), dtype=np.float32))


def turned(lab: Lab, x: Floats, by: Floats) -> Floats:
    """RoPE by so many positions, float32 [rows]; x [rows, heads, dim]."""
    half = len(lab.inv_freq)
    angle = by[:, None] * lab.inv_freq
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    if lab.interleaved:
        a, b = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    else:
        a, b = x[..., :half], x[..., half : 2 * half]
    out = x.copy()
    first, second = a * cos - b * sin, a * sin + b * cos
    if lab.interleaved:
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = first, second
    else:
        out[..., :half], out[..., half : 2 * half] = first, second
    return out


# --- what is not read -------------------------------------------------------------------------


class Kept(Method):
    """Keys that ``mask(layer, weights, rows)`` says, [heads or 1, rows, keys]; of all others there
    is nothing."""

    def __init__(self, mask: Callable[[int, Floats, int], NDArray[np.bool_]]) -> None:
        super().__init__()
        self.mask = mask

    def attend(self, layer: int, q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
        rows, kv_heads = len(q), k.shape[1]
        s = scores(q, k, scale)
        seen = causal(rows)
        group = q.shape[1] // kv_heads
        keep = self.mask(layer, s.reshape(kv_heads, group, rows, rows), rows)
        keep = np.broadcast_to(keep, (kv_heads, rows, rows)) & seen
        self.whole += float(seen.sum()) * kv_heads
        self.bytes += float(keep.sum())
        return weigh(softmax(s, np.repeat(keep, group, axis=0)), v)


def window(size: int, sinks: int) -> Kept:
    """The last ``size`` keys, and the first ones (StreamingLLM, arXiv 2309.17453)."""

    def mask(_: int, s: Floats, rows: int) -> NDArray[np.bool_]:
        at = np.arange(rows)
        return ((at[None] > at[:, None] - size) | (at[None] < sinks))[None]

    return Kept(mask)


def heavy_hitters(budget: int, recent: int) -> Kept:
    """H2O (arXiv 2306.14048): of each KV head those keys stay that got most attention so far, and
    the last ones; what went does not come back."""

    def mask(_: int, s: Floats, rows: int) -> NDArray[np.bool_]:
        heads = s.shape[0]
        keep, out = np.zeros((heads, rows), bool), np.zeros((heads, rows, rows), bool)
        got = np.zeros((heads, rows), np.float32)
        for i in range(rows):
            keep[:, i] = True
            seen = np.where(keep[:, None, : i + 1], s[:, :, i, : i + 1], -np.inf)
            w = np.exp(seen - seen.max(axis=-1, keepdims=True))
            got[:, : i + 1] += (w / w.sum(axis=-1, keepdims=True)).sum(axis=1)
            out[:, i] = keep
            if i + 1 > budget:
                old = np.where(keep, got, np.inf)
                old[:, max(0, i + 1 - recent) :] = np.inf
                keep[np.arange(heads), old.argmin(axis=1)] = False
        return out

    return Kept(mask)


def longformer(size: int, everywhere: int) -> Kept:
    """The last ``size`` keys and every ``everywhere``-th, whose own rows see all that is before
    them (arXiv 2004.05150)."""

    def mask(_: int, s: Floats, rows: int) -> NDArray[np.bool_]:
        at = np.arange(rows)
        seen = (at % everywhere == 0)[None] | (at % everywhere == 0)[:, None]
        return (seen | (at[None] > at[:, None] - size))[None]

    return Kept(mask)


def big_bird(block: int, drawn: int, seed: int) -> Kept:
    """Blocks: each row's own and the one before, the first, and some that are drawn for each block
    of rows (arXiv 2007.14062)."""

    def mask(layer: int, s: Floats, rows: int) -> NDArray[np.bool_]:
        random, count = np.random.default_rng((seed, layer)), -(-rows // block)
        b = np.arange(count)
        keep = (b[None] == 0) | (b[None] == b[:, None]) | (b[None] == b[:, None] - 1)
        for i in range(2, count):
            keep[i, random.permutation(i)[:drawn]] = True
        which = np.arange(rows) // block
        return keep[which][:, which][None]

    return Kept(mask)


class TwoOfFour(Method):
    """DFSS (arXiv 2203.00091): of each four neighbouring scores of a row the two largest stay."""

    def attend(self, layer: int, q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
        rows, s = len(q), scores(q, k, scale)
        seen = causal(rows)
        fours = np.full((*s.shape[:2], -(-rows // 4) * 4), -np.inf, np.float32)
        fours[..., :rows] = np.where(seen, s, -np.inf)
        fours = fours.reshape(*s.shape[:2], -1, 4)
        rank = np.argsort(np.argsort(-fours, axis=-1, kind="stable"), axis=-1)
        keep = (rank < 2).reshape(*s.shape[:2], -1)[..., :rows] & seen
        self.whole += float(seen.sum()) * len(s)
        self.bytes += float(keep.sum())
        return weigh(softmax(s, keep), v)


class Bounded(Method):
    """Blocks of keys of which the least and the largest number of each channel are known (Quest,
    LeoAM, arXiv 2506.20187): a bound of each score. Reads the first, the newest and either the
    ``top`` others with the largest bounds, or, with ``epsilon``, all but those whose weight is
    surely below that, all together."""

    def __init__(self, block: int, top: int | None = None, epsilon: float = 0.0) -> None:
        super().__init__()
        self.block, self.top, self.epsilon = block, top, epsilon

    def attend(self, layer: int, q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
        rows, kv_heads = len(q), k.shape[1]
        group, count = q.shape[1] // kv_heads, -(-rows // self.block)
        s = scores(q, k, scale)
        seen, at = causal(rows), np.arange(rows)
        bound = self._bounds(q, k, scale, count)
        which = at // self.block
        whole = (np.arange(count)[None] + 1) * self.block <= at[:, None]  # sealed, for each row
        always = (np.arange(count)[None] == 0) | (np.arange(count)[None] >= which[:, None])
        always = np.broadcast_to(always, bound.shape) | ~whole
        if self.top is not None:
            b = np.where(always | ~whole, -np.inf, bound)
            order = np.argsort(-b, axis=-1)[..., : self.top]
            read = always.copy()
            np.put_along_axis(read, order, True, axis=-1)
        else:
            read = self._needed(s, seen, bound, always, whole, which)
        read &= np.arange(count)[None, None] <= which[None, :, None]
        # What any head of a KV head reads is read.
        union = read.reshape(kv_heads, group, rows, count).any(axis=1)
        self.whole += float(kv_heads * (which + 1).sum() * self.block)
        self.bytes += float(union.sum() * self.block)
        keep = np.repeat(union, group, axis=0)[:, :, which] & seen
        return weigh(softmax(s, keep), v)

    def _bounds(self, q: Floats, k: Floats, scale: float, count: int) -> Floats:
        """[heads, rows, blocks]"""
        group = q.shape[1] // k.shape[1]
        out = np.empty((q.shape[1], len(q), count), np.float32)
        above, below = np.maximum(q, 0), np.minimum(q, 0)
        for b in range(count):
            part = k[b * self.block : (b + 1) * self.block]
            most, least = (np.repeat(f(axis=0), group, axis=0) for f in (part.max, part.min))
            out[..., b] = ((above * most).sum(-1) + (below * least).sum(-1)).T * scale
        return out

    def _needed(
        self, s: Floats, seen: Any, bound: Floats, always: Any, whole: Any, which: Any
    ) -> NDArray[np.bool_]:
        """Weights of what is read anyway bound those of others: blocks are left out from the
        smallest bound on, as long as all together stay below epsilon."""
        surely = always[:, :, which] & seen
        top = np.where(surely, s, -np.inf).max(axis=-1, keepdims=True)
        least = np.where(surely, np.exp(s - top), 0).sum(axis=-1, keepdims=True)
        most = self.block * np.exp(np.minimum(bound - top, 60)) / least
        most = np.where(always | ~whole, np.inf, most)
        order = np.argsort(most, axis=-1)
        total = np.cumsum(np.take_along_axis(most, order, axis=-1), axis=-1)
        read = np.empty(most.shape, bool)
        np.put_along_axis(read, order, total > self.epsilon, axis=-1)
        return read


class Blocks(Method):
    """Prefill over blocks of which a cheap estimate says that they weigh most (XAttention, arXiv
    2503.16428): ``share`` of the blocks of each row of them, by sums over antidiagonals of every
    ``stride``-th, over the diagonal alone, or drawn."""

    def __init__(self, block: int, share: float, by: str, stride: int = 8) -> None:
        super().__init__()
        self.block, self.share, self.by, self.stride = block, share, by, stride
        self.mass: list[float] = []

    def attend(self, layer: int, q: Floats, k: Floats, v: Floats, scale: float) -> Floats:
        rows = len(q) // self.block * self.block
        assert rows == len(q), "a whole number of blocks"
        count, s, seen = rows // self.block, scores(q, k, scale), causal(rows)
        tiles = np.where(seen, s, -np.inf).reshape(len(s), count, self.block, count, self.block)
        i = np.arange(self.block)
        if self.by == "antidiagonals":
            picked = (i[:, None] + i[None]) % self.stride == self.stride - 1
        elif self.by == "diagonal":
            picked = i[:, None] == i[None]
        else:
            picked = np.zeros((self.block, self.block), bool)
        top = tiles.max(axis=(2, 3, 4), keepdims=True)
        estimate = (np.exp(tiles - top) * picked[None, None, :, None, :]).sum(axis=(2, 4))
        if self.by == "random":
            estimate = np.random.default_rng(layer).random(estimate.shape)
        b = np.arange(count)
        estimate = np.where(b[None] < b[:, None], estimate, -1.0)
        rank = np.argsort(np.argsort(-estimate, axis=-1), axis=-1)
        most = np.ceil(self.share * (b + 1))[None, :, None]
        keep = ((rank < most - 1) & (b[None] < b[:, None])) | (b[None] == b[:, None])
        which = np.arange(rows) // self.block
        mask = keep[:, which][:, :, which] & seen
        w = softmax(s, np.broadcast_to(seen, s.shape))
        self.mass.append(float((w * mask).sum(axis=-1).mean()))
        self.whole += float(seen.sum() * len(s))
        self.bytes += float(mask.sum())
        return weigh(softmax(s, mask), v)
