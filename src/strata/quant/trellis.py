"""Trellis codes (QTIP, EXL3): each weight is a function of the last bits of a stream.

A state of up to 16 bits is shifted by some bits a weight, and a hash of it is the value: nothing is
looked up. Which bits come nearest to a run of weights is found by Viterbi's algorithm; runs bite
their tails (the first state has the last bits), so that nothing is stored beside these bits.
Weights are made normal before by signs and Hadamard matrices on both sides, and tiles of 16 by 16
are coded one after the other with error propagation. Sources: Tseng et al., arXiv:2406.11235; the
hash is that of exllamav3 (multiply, mask, two halves of which the sum is the value).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats
from strata.quant.propagation import Matrix, inverse_factor, propagate
from strata.records import dataclass

RUN = 256
TILE = 16
_MULTIPLIER, _MASK, _FLIP = 0xCBAC1FED, 0x8FFF8FFF, 0x3B603B60


@cache
def values(state_bits: int) -> Floats:
    """What each state stands for, [2^state_bits], with a mean square of 1."""
    states = np.arange(1 << state_bits, dtype=np.uint64)
    hashed = (states * np.uint64(_MULTIPLIER)) & np.uint64(0xFFFFFFFF)
    halves = ((hashed & np.uint64(_MASK)) ^ np.uint64(_FLIP)).astype(np.uint32).view(np.float16)
    sums = halves.reshape(-1, 2).astype(np.float32).sum(axis=1)
    found: Floats = sums / np.sqrt((sums**2).mean(dtype=np.float64)).astype(np.float32)
    return found


def best_path(
    runs: Floats, bits: int, state_bits: int, overlap: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """The states [runs, length] of the path that is nearest to each of ``runs`` [runs, length].

    ``overlap`` [runs] are the bits that the first state has of a state before it, and the last one
    leaves to the next; without it any will do, and need not agree.
    """
    table, shared = values(state_bits), 1 << (state_bits - bits)
    count, length = runs.shape
    best = np.zeros((count, shared), np.float32)
    if overlap is not None:
        best[:] = np.inf
        best[np.arange(count), overlap] = 0
    back = np.zeros((length, count, shared), np.uint8)
    cost = np.zeros((count, 1 << state_bits), np.float32)
    for t in range(length):
        if t:
            # Of a state the high bits of the one before it are gone: 2^bits may have been it.
            before = cost.reshape(count, 1 << bits, shared)
            back[t] = before.argmin(axis=1)
            best = before.min(axis=1)
        cost = np.repeat(best, 1 << bits, axis=1) + (table - runs[:, t : t + 1]) ** 2
    if overlap is not None:
        ends = np.arange(1 << state_bits) % shared
        cost = np.where(ends == overlap[:, None], cost, np.inf)
    states = np.zeros((count, length), np.int64)
    states[:, -1] = cost.argmin(axis=1)
    each = np.arange(count)
    for t in range(length - 1, 0, -1):
        high = states[:, t] >> bits
        states[:, t - 1] = back[t, each, high].astype(np.int64) * shared + high
    return states


def encode_runs(runs: Floats, bits: int, state_bits: int) -> NDArray[np.uint8]:
    """Symbols [runs, length] of ``bits`` bits each that bite their tails, where length times bits
    is at least ``state_bits``. Where a run meets itself is found from the run begun in its middle,
    as QTIP does."""
    half = runs.shape[1] // 2
    turned = best_path(np.roll(runs, -half, axis=1), bits, state_bits)
    # What the state has that begins the run when it comes round.
    overlap = turned[:, runs.shape[1] - half] >> bits
    states = best_path(runs, bits, state_bits, overlap)
    return (states & ((1 << bits) - 1)).astype(np.uint8)


def decode_runs(symbols: NDArray[np.uint8], bits: int, state_bits: int) -> Floats:
    """The values [runs, length]."""
    states = np.zeros(symbols.shape, np.int64)
    for back in range(-(-state_bits // bits)):
        states |= np.roll(symbols, back, axis=1).astype(np.int64) << (back * bits)
    found: Floats = values(state_bits)[states & ((1 << state_bits) - 1)]
    return found


@dataclass(frozen=True)
class Trellis:
    """``symbols`` [k / 16, n / 16, 256]: tiles, whose rows are one after the other; ``scales`` [n];
    ``signs`` of rows and columns."""

    bits: int
    state_bits: int
    symbols: NDArray[np.uint8]
    scales: NDArray[np.float16]
    signs: tuple[NDArray[np.int8], NDArray[np.int8]]

    @property
    def total_bits(self) -> float:
        """Bits a weight, all of it; signs take one."""
        rest = 16 * self.scales.size + sum(s.size for s in self.signs)
        return self.bits + rest / self.symbols.size


def encode(
    weights: Matrix, hessian: Matrix, bits: int = 2, state_bits: int = 16, *, seed: int = 0
) -> Trellis:
    """``weights`` [n, k], n and k multiples of 16, by the inputs' ``hessian`` [k, k]."""
    rng = np.random.default_rng(seed)
    signs = tuple(
        rng.integers(0, 2, size).astype(np.int8) * np.int8(2) - np.int8(1) for size in weights.shape
    )
    left, right = (hadamard(len(s)) * s for s in signs)
    turned = left @ weights @ right.T
    scales = np.sqrt((turned**2).mean(axis=1)).astype(np.float16)
    by = np.where(scales == 0, np.float16(1), scales).astype(np.float64)[:, None]
    n, k = weights.shape
    symbols = np.zeros((k // TILE, n // TILE, RUN), np.uint8)

    def rounded(first: int, kept: Matrix) -> Matrix:
        runs = kept[:, first : first + TILE].reshape(-1, RUN).astype(np.float32)
        found = encode_runs(runs, bits, state_bits)
        symbols[first // TILE] = found
        return decode_runs(found, bits, state_bits).reshape(n, TILE).astype(np.float64)

    propagate(turned / by, inverse_factor(right @ hessian @ right.T), rounded, TILE)
    return Trellis(bits, state_bits, symbols, scales, (signs[0], signs[1]))


def decode(kept: Trellis) -> Floats:
    """The values [n, k]."""
    n, k = (len(s) for s in kept.signs)
    runs = decode_runs(kept.symbols.reshape(-1, RUN), kept.bits, kept.state_bits)
    tiles = runs.reshape(k // TILE, n, TILE).transpose(1, 0, 2).reshape(n, k)
    scaled = (tiles * kept.scales.astype(np.float32)[:, None]).astype(np.float64)
    left, right = kept.signs
    across = turned(scaled, turned_together(k)) * right
    down = turned(across.T, turned_together(n)) * left
    return np.ascontiguousarray(down.T, np.float32)


def turned_together(width: int) -> int:
    """How many of so many numbers a Hadamard matrix mixes: the largest power of two that divides
    it, up to 128."""
    return min(width & -width, 128)


def turned(values: Matrix, size: int) -> Matrix:
    """Runs of ``size`` numbers of each row times the orthogonal Hadamard matrix: sums and
    differences in one order, so that bits depend on no library of matrices."""
    found = values.reshape(len(values), -1, size)
    half = 1
    while half < size:
        pairs = found.reshape(len(values), -1, 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        found = np.stack([first + second, first - second], axis=2)
        half *= 2
    whole: Matrix = found.reshape(values.shape) / np.sqrt(size)
    return whole


def hadamard(width: int) -> Matrix:
    """Orthogonal: Hadamard matrices of ``turned_together`` rows, side by side on the diagonal."""
    size = turned_together(width)
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.block([[found, found], [found, -found]]) / np.sqrt(2)
    whole: Matrix = np.kron(np.eye(width // size), found).astype(np.float64)
    return whole
