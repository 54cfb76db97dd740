"""What is measured of each scored token, and what it comes to, with how sure that is.

Tokens of one window depend on each other, so that windows are what was drawn: intervals are those
of windows drawn anew (a block bootstrap), tests turn the signs of whole windows (a permutation
test, which assumes nothing of the distribution). The seeds are fixed: the same tokens give the same
figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp

import numpy as np
from numpy.typing import NDArray

from strata.decode import LogitsError, log_sum_exp
from strata.records import dataclass

Values = NDArray[np.float64]

FIGURE_BYTES = 2 * 4 * 8 + 1
"""Of each scored token of a model, with a copy while they are sorted."""

KL_QUANTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99, "p99_9": 0.999}
POSITION_BINS = 8

_RESAMPLES = 400
_FLIPS = 20_000
_CONFIDENCE = 0.95
_LARGEST_NLL = 700.0


@dataclass(frozen=True)
class Estimate:
    """A figure with the interval in which it lies with 95 % confidence; both bounds are the figure
    itself where there is one window only, and nothing is known of others."""

    value: float
    low: float
    high: float


class TokenFigures:
    """One value a scored token, by windows [windows, tokens of each].

    ``nll`` is the negative log-likelihood (natural logarithm). Against a base: ``base_nll`` is that
    of the base, ``kl`` the divergence KL(base || model) in nats, and ``same_top`` whether both hold
    the same token for the likeliest (the first of equals).
    """

    def __init__(self, windows: int, each: int, *, against: bool) -> None:
        self.windows = windows
        self.each = each
        self.against = against
        self.done = 0
        shape = windows * each
        self._nll = np.empty(shape)
        self._base_nll = np.empty(shape if against else 0)
        self._kl = np.empty(shape if against else 0)
        self._same_top = np.empty(shape if against else 0, np.bool_)

    def add(
        self, row: NDArray[np.float32], token: int, base: NDArray[np.float32] | None = None
    ) -> None:
        """Enter the next token by the logits that predict it. LogitsError for such as are no
        numbers."""
        at = self.done
        total = log_sum_exp(row)
        self._nll[at] = total - float(row[token])
        if self.against:
            assert base is not None
            base_total = log_sum_exp(base)
            self._base_nll[at] = base_total - float(base[token])
            self._kl[at] = _divergence(base, base_total, row, total)
            self._same_top[at] = row.argmax() == base.argmax()
        worst = max(self._nll[at], self._base_nll[at] if self.against else 0.0)
        if not np.isfinite(worst) or (self.against and not np.isfinite(self._kl[at])):
            raise LogitsError("the model gave logits that are not numbers; its weights are damaged")
        self.done += 1

    @property
    def complete(self) -> int:
        """Windows of which all tokens were entered."""
        return self.done // self.each

    def _by_window(self, values: NDArray[np.float64]) -> Values:
        n = self.complete
        return values[: n * self.each].reshape(n, self.each)

    @property
    def nll(self) -> Values:
        """[windows, tokens], of the windows that are complete, as those that follow."""
        return self._by_window(self._nll)

    @property
    def base_nll(self) -> Values:
        """That of the base."""
        return self._by_window(self._base_nll)

    @property
    def kl(self) -> Values:
        """KL(base || model) in nats."""
        return self._by_window(self._kl)

    @property
    def same_top(self) -> Values:
        """1 where both have the same likeliest token."""
        return self._by_window(self._same_top.astype(np.float64))

    @property
    def p_change(self) -> Values:
        """Probability of the right token, less that by the base."""
        return np.exp(-self.nll) - np.exp(-self.base_nll)


def _divergence(
    base: NDArray[np.float32], base_total: float, row: NDArray[np.float32], total: float
) -> float:
    """Sum of p * (log p - log q) in float64; tokens that the base excludes count nothing."""
    p = base.astype(np.float64)
    p -= base_total
    apart = p - row
    apart += total
    np.exp(p, out=p)
    if np.isneginf(base).any():
        apart[p == 0] = 0
    # Rounding may leave a little less than the nothing that it is.
    return max(float(np.dot(p, apart)), 0.0)


@dataclass(frozen=True)
class Summary:
    """A model on a text. The figures against a base are None where there is none.

    ``log_ratio`` is the mean change of nll (log of the ratio of perplexities), ``p_value`` how
    likely one so far from 0 would be if the model predicted as well as the base. ``kl`` in nats;
    ``p_change`` and its root mean square ``p_change_rms`` are of the probability of the right
    token. ``positions`` are means by parts of the window: first and last position, nll, kl.
    """

    tokens: int
    windows: int
    perplexity: Estimate
    log_ratio: Estimate | None = None
    p_value: float | None = None
    kl: Estimate | None = None
    kl_quantiles: dict[str, Estimate] | None = None
    kl_largest: float | None = None
    same_top: Estimate | None = None
    p_change: Estimate | None = None
    p_change_rms: Estimate | None = None
    positions: tuple[tuple[int, int, float, float | None], ...] = ()


def summarize(figures: TokenFigures, first: int) -> Summary:
    """What the complete windows come to; ``first`` is the position of the first scored token."""
    nll = figures.nll
    perplexity = _mean(nll)
    if perplexity.high > _LARGEST_NLL:
        raise LogitsError(f"the text is all but impossible to this model ({nll.mean():.0f} nats)")
    result = Summary(
        tokens=nll.size,
        windows=len(nll),
        perplexity=Estimate(exp(perplexity.value), exp(perplexity.low), exp(perplexity.high)),
        positions=_positions(figures, first),
    )
    if not figures.against:
        return result
    kl, change = figures.kl, figures.p_change
    square = _mean(change**2)
    loss = nll - figures.base_nll
    return Summary(
        tokens=result.tokens,
        windows=result.windows,
        perplexity=result.perplexity,
        log_ratio=_mean(loss),
        p_value=sign_test(loss.mean(axis=1)),
        kl=_mean(kl),
        kl_quantiles=_quantiles(kl),
        kl_largest=float(kl.max()),
        same_top=_mean(figures.same_top),
        p_change=_mean(change),
        p_change_rms=Estimate(square.value**0.5, square.low**0.5, square.high**0.5),
        positions=result.positions,
    )


def proportion(hits: Values) -> Estimate:
    """The mean of values of 0 and 1, one a question."""
    return _mean(hits[:, None])


def sign_test(apart: Values) -> float | None:
    """How likely a mean so far from 0 would be if each of the paired differences (one a window or
    question) could as well have the other sign; None for fewer than 2. Exact up to 14 of them, by
    20,000 draws beyond."""
    n = len(apart)
    if n < 2:
        return None
    if n <= 14:
        signs = 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        sums = np.abs(signs @ apart)
    else:
        generator = _generator()
        sums = np.array(
            [abs(generator.choice((-1.0, 1.0), n) @ apart) for _ in range(_FLIPS)] + [np.inf]
        )
    # Sums of the same numbers in another order differ by rounding.
    return float((sums >= abs(apart.sum()) * (1 - 1e-9)).mean())


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of the (bytes, loss) no other one is at least as good as in both and better in one."""
    return [
        not any(o[0] <= p[0] and o[1] <= p[1] and tuple(o) != tuple(p) for o in points)
        for p in points
    ]


def _generator() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(20250))


def _bounds(value: float, drawn: Values) -> Estimate:
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Estimate(value, min(float(low), value), max(float(high), value))


def _draws(windows: int) -> NDArray[np.int64]:
    """How often each window is drawn, [resamples, windows]."""
    each = np.full(windows, 1 / windows)
    return _generator().multinomial(windows, each, size=_RESAMPLES)


def _mean(values: Values) -> Estimate:
    """Of [windows, tokens]."""
    by_window = values.mean(axis=1)
    value = float(by_window.mean())
    n = len(by_window)
    if n < 2:
        return Estimate(value, value, value)
    # Few windows drawn with replacement vary too little, by (n - 1) / n.
    drawn = value + (_draws(n) @ by_window / n - value) * (n / (n - 1)) ** 0.5
    return _bounds(value, drawn)


def _quantiles(values: Values) -> dict[str, Estimate]:
    """Of all tokens, between the two nearest of them as llama.cpp takes it."""
    flat = values.reshape(-1)
    order = np.argsort(flat, kind="stable")
    ranked = flat[order]
    n, each = values.shape
    found = {name: float(np.quantile(ranked, q)) for name, q in KL_QUANTILES.items()}
    if n < 2:
        return {name: Estimate(v, v, v) for name, v in found.items()}
    window = order // each
    drawn = np.empty((len(KL_QUANTILES), _RESAMPLES))
    for i, times in enumerate(_draws(n)):
        upto = np.cumsum(times[window])
        at = [
            np.searchsorted(upto, q * (upto[-1] - 1), side="right") for q in KL_QUANTILES.values()
        ]
        drawn[:, i] = ranked[np.minimum(at, len(ranked) - 1)]
    return {name: _bounds(v, d) for (name, v), d in zip(found.items(), drawn, strict=True)}


def _positions(
    figures: TokenFigures, first: int
) -> tuple[tuple[int, int, float, float | None], ...]:
    parts = np.array_split(np.arange(figures.each), min(POSITION_BINS, figures.each))
    nll = figures.nll.mean(axis=0)
    kl = figures.kl.mean(axis=0) if figures.against else None
    return tuple(
        (
            first + int(part[0]),
            first + int(part[-1]),
            float(nll[part].mean()),
            None if kl is None else float(kl[part].mean()),
        )
        for part in parts
    )
