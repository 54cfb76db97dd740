"""AQLM: eight weights are the sum of entries of some codebooks, times a scale of their row.

Codes and codebooks are fitted in turns to what the matrix gives: codes by beam search, each group
of eight against the error that all others leave, codebooks by conjugate gradients. Source:
Egiazarian et al., arXiv:2401.06118.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strata.quant.block_type import Floats
from strata.quant.propagation import Matrix
from strata.records import dataclass

GROUP = 8
_STEPS = 8


@dataclass(frozen=True)
class Additive:
    """``codes`` [n, k / 8, m] are numbers of entries of ``books`` [m, 2^width, 8], ``scales`` those
    of rows."""

    width: int
    books: NDArray[np.float16]
    codes: NDArray[np.uint16]
    scales: NDArray[np.float16]

    @property
    def bits(self) -> float:
        """Bits a weight, all of it."""
        n, groups, _ = self.codes.shape
        rest = 8 * (self.books.nbytes + self.scales.nbytes)
        return float((self.width * self.codes.size + rest) / (n * groups * GROUP))


def encode(
    weights: Matrix,
    hessian: Matrix,
    count: int = 2,
    width: int = 8,
    *,
    rounds: int = 3,
    beam: int = 4,
    seed: int = 0,
) -> Additive:
    """``weights`` [n, k], k a multiple of 8, by the inputs' ``hessian`` [k, k], with ``count``
    codebooks of 2^``width`` entries, at first what chance and the residuals give."""
    n, k = weights.shape
    scales = np.sqrt((weights**2).mean(axis=1)).astype(np.float16)
    scales = np.where(scales == 0, np.float16(1), scales)
    scaled = weights / scales[:, None].astype(np.float64)
    books, codes = _begun(scaled.reshape(-1, GROUP), count, 1 << width, seed)
    codes = codes.reshape(n, k // GROUP, count)
    by = scales.astype(np.float64)[:, None] ** 2
    for _ in range(rounds):
        codes = search(scaled, hessian, books, codes, beam)
        books = _fitted(scaled, hessian, by, books, codes)
    kept = books.astype(np.float16)
    codes = search(scaled, hessian, kept.astype(np.float64), codes, beam)
    return Additive(width, kept, codes.astype(np.uint16), scales)


def decode(kept: Additive) -> Floats:
    """The values [n, k]."""
    sums = _sums(kept.books.astype(np.float32), kept.codes.astype(np.int64))
    found: Floats = sums * kept.scales.astype(np.float32)[:, None]
    return found


def product(kept: Additive, x: Floats) -> Floats:
    """The matrix times ``x`` [k] by tables: of each group its products with all entries, from which
    codes choose; no weight is unpacked."""
    tables = np.einsum("mcg,jg->mjc", kept.books.astype(np.float32), x.reshape(-1, GROUP))
    groups = np.arange(kept.codes.shape[1])
    sums = sum(tables[m][groups, kept.codes[:, :, m]] for m in range(len(tables)))
    found: Floats = np.asarray(sums, np.float32).sum(axis=1) * kept.scales.astype(np.float32)
    return found


def search(
    weights: Matrix, hessian: Matrix, books: Matrix, codes: NDArray[np.int64], beam: int
) -> NDArray[np.int64]:
    """Better codes, group after group: no row's error rises. With v a group's sum, that error is
    (t - v)^T H_gg (t - v) and what does not depend on v, where t also makes up for the others."""
    k = weights.shape[1]
    codes = codes.copy()
    lost = weights - _sums(books, codes)
    for group in range(k // GROUP):
        here = slice(group * GROUP, (group + 1) * GROUP)
        block = hessian[here, here] + 1e-9 * float(np.trace(hessian)) / k * np.eye(GROUP)
        now = _sums(books, codes[:, group : group + 1])
        pull = lost @ hessian[:, here] - lost[:, here] @ hessian[here, here]
        target = lost[:, here] + now + np.linalg.solve(block, pull.T).T
        root = np.linalg.cholesky(block)
        found = _beam(target @ root, books @ root, beam)
        before = (((target - now) @ root) ** 2).sum(axis=1)
        then = (((target - _sums(books, found[:, None])) @ root) ** 2).sum(axis=1)
        codes[:, group] = np.where((then < before)[:, None], found, codes[:, group])
        lost[:, here] += now - _sums(books, codes[:, group : group + 1])
    return codes


def _beam(targets: Matrix, books: Matrix, beam: int) -> NDArray[np.int64]:
    """Codes [n, m] whose sum is near each target [n, 8]: book after book the ``beam`` nearest."""
    n, entries = len(targets), books.shape[1]
    left = targets[:, None]
    codes = np.zeros((n, 1, 0), np.int64)
    for book in books:
        apart = (book**2).sum(axis=1) - 2 * left @ book.T + (left**2).sum(axis=2)[..., None]
        flat = apart.reshape(n, -1)
        best = np.argsort(flat, axis=1, kind="stable")[:, : min(beam, flat.shape[1])]
        parent, entry = best // entries, best % entries
        before = np.take_along_axis(codes, parent[..., None], axis=1)
        codes = np.concatenate([before, entry[..., None]], axis=2)
        left = np.take_along_axis(left, parent[..., None], axis=1) - book[entry]
    return codes[:, 0]


def _sums(books: NDArray[np.floating], codes: NDArray[np.int64]) -> NDArray[np.floating]:
    """The values [n, 8 * groups] of codes [n, groups, m]."""
    found = sum(book[codes[:, :, m]] for m, book in enumerate(books))
    return np.asarray(found).reshape(len(codes), -1)


def _begun(groups: Matrix, count: int, entries: int, seed: int) -> tuple[Matrix, NDArray[np.int64]]:
    """Books of k-means on what the books before them leave."""
    rng = np.random.default_rng(seed)
    left, books, codes = groups.copy(), [], []
    for _ in range(count):
        book = left[rng.permutation(len(left))[:entries]]
        if len(book) < entries:
            book = np.concatenate([book, rng.standard_normal((entries - len(book), GROUP))])
        for _ in range(4):
            near = _beam(left, book[None], 1)[:, 0]
            sums = np.zeros_like(book)
            np.add.at(sums, near, left)
            sizes = np.bincount(near, minlength=entries)[:, None]
            book = np.where(sizes == 0, book, sums / np.maximum(sizes, 1))
        near = _beam(left, book[None], 1)[:, 0]
        left = left - book[near]
        books.append(book)
        codes.append(near)
    return np.array(books), np.stack(codes, axis=1)


def _fitted(
    weights: Matrix, hessian: Matrix, by: Matrix, books: Matrix, codes: NDArray[np.int64]
) -> Matrix:
    """Books that lose less with these codes: some steps of conjugate gradients on the error, whose
    rows count as ``by`` [n, 1]."""

    def gradient(values: Matrix) -> Matrix:
        at = (by * (values @ hessian)).reshape(-1, GROUP)
        found = np.zeros_like(books)
        for m in range(len(books)):
            np.add.at(found[m], codes[:, :, m].reshape(-1), at)
        return found

    left = gradient(weights - _sums(books, codes))
    way, size = left.copy(), float((left**2).sum())
    for _ in range(_STEPS):
        bent = gradient(_sums(way, codes).astype(np.float64))
        curve = float((way * bent).sum())
        if curve <= 0 or size == 0:
            break
        books = books + size / curve * way
        left = left - size / curve * bent
        then = float((left**2).sum())
        way, size = left + then / size * way, then
    return books
