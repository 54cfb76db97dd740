"""Choosing the next token: exact, without sorting the vocabulary.

The order of what happens to the logits, which is that of transformers' generation: logit bias,
repetition penalty, frequency and presence penalty; tokens that the grammar does not allow are taken
out; then, unless greedy, temperature, top-k, top-p (the smallest set of most probable tokens that
holds the mass), min-p (relative to the most probable token). Each filter sees the distribution that
the ones before it left, renormalised. Equal logits are ranked by token id, lowest first. The draw
inverts the cumulative distribution of the surviving tokens in order of their ids.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from copy import copy
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.decode.params import SamplingParams
from strata.decode.proposer import Draft
from strata.errors import StrataError, UsageError
from strata.records import dataclass

Logits = NDArray[np.float32]

_SOON_S = 1e-3
"""For which those who obey no grammar wait for what one allows behind guessed tokens."""

_FEW = 1024
"""Weights that are ranked, or added up one after the other, at once."""


class LogitsError(StrataError):
    """Logits from which nothing can be chosen: not a number, or infinite."""


@dataclass(frozen=True)
class Sample:
    """A chosen token. With ``logprobs`` asked for: its natural log-probability and the most
    probable tokens with theirs, under the model's own distribution, before any penalty or filter;
    with ``processed_logprobs`` under that from which it was drawn, and only those that could be.
    """

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def log_sum_exp(logits: Logits) -> float:
    """log(sum(exp(logits))) in float64: what a logit lacks to be a log-probability."""
    best = float(logits.max())
    return best + float(np.log(_exp(logits, best, 1.0).sum()))


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Natural log-probabilities [vocabulary] in float64."""
    return logits.astype(np.float64) - log_sum_exp(logits)


class Sampler:
    """Chooses the tokens of one request.

    ``choose`` changes nothing and may be repeated; ``accept`` records what was chosen. Both take
    O(vocabulary). ``seed`` is the one in use, drawn if none was given. ``stop_ids`` are end tokens,
    which ``min_tokens`` keeps off.
    """

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        vocab_size: int,
        stop_ids: frozenset[int] = frozenset(),
    ) -> None:
        self.params = params
        ends = {id for id in (*stop_ids, *params.stop_token_ids) if id < vocab_size}
        self._ends = np.array(sorted(ends) if params.min_tokens else [], np.int64)
        self.seed = int.from_bytes(os.urandom(8), "little") if params.seed is None else params.seed
        self._chosen = 0
        self._bias_ids = np.fromiter(params.logit_bias, np.int64)
        self._bias = np.fromiter(params.logit_bias.values(), np.float32)
        if any(token >= vocab_size for token in params.logit_bias):
            raise UsageError(
                f"logit_bias names token {self._bias_ids.max()}, "
                f"but the vocabulary ends at {vocab_size - 1}"
            )
        self._constraint = params.grammar.start() if params.grammar else None
        self._penalises = params.penalises
        self._seen = np.zeros(vocab_size if self._penalises else 0, np.bool_)
        self._counts = np.zeros(vocab_size if self._penalises else 0, np.int32)
        if self._penalises:
            self._seen[np.asarray(prompt, np.int64)] = True

    def choose(self, logits: Logits) -> Sample:
        """The next token for ``logits`` [vocabulary]; raises LogitsError if there can be none."""
        adjusted = self._adjust(logits)
        best = int(adjusted.argmax())
        most = float(adjusted[best])
        # argmax stops at the first NaN, so one look at the winner covers the whole row.
        if not math.isfinite(most):
            raise LogitsError(
                f"the model gave the logit {most} to token {best}; "
                "its weights are damaged or its type is too narrow for it"
            )
        token = best if self.params.temperature == 0 else self._draw(adjusted, most)
        count = self.params.logprobs
        if count is None:
            return Sample(token)
        if self.params.processed_logprobs:
            logits = self._drawn_from(adjusted, token, most)
        return report(token, logits, count)

    def accept(self, token: int) -> None:
        """Record ``token`` as the next one of the answer."""
        self._chosen += 1
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._penalises:
            self._seen[token] = True
            self._counts[token] += 1

    def verify(self, rows: Iterator[Logits], draft: Draft, *, patient: bool = True) -> list[Sample]:
        """The next tokens along a draft: those of its tokens that are the very ones that would have
        been chosen without it, and the one after them. Changes nothing.

        ``rows`` gives the logits [vocabulary] after the last certain token and then after each of
        the draft's; each is valid until the next one. Unless ``patient`` a draft is left where what
        its grammar allows is not known soon.
        """
        if not draft.tokens:
            return [self.choose(next(rows))]
        children = {
            (draft.parent(number), token): number for number, token in enumerate(draft.tokens)
        }
        samples = [self.choose(next(rows))]
        at = children.get((-1, samples[0].token), len(draft.tokens))
        trial, until = None, perf_counter() + _SOON_S
        try:
            for number in range(len(draft.tokens)):
                if number != at:
                    next(rows)
                    continue
                trial = trial or self._fork()
                trial.accept(samples[-1].token)
                if not (patient or trial.ready(max(0.0, until - perf_counter()))):
                    break
                try:
                    samples.append(trial.choose(next(rows)))
                except Exception:
                    # The answer may end before this token; if not, it fails without a draft too.
                    break
                # What follows comes later, since parents come first.
                at = children.get((at, samples[-1].token), len(draft.tokens))
        finally:
            if trial is not None:
                trial.close()
        return samples

    def close(self) -> None:
        """There are no more tokens to choose: the answer's place in its grammar is given back."""
        if self._constraint is not None:
            self._constraint.close()

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether a grammar has not to be waited for to choose a token, after ``seconds`` at
        most."""
        return self._constraint is None or self._constraint.ready(seconds)

    def forced(self) -> Sequence[int]:
        """Tokens that a grammar forces to come next, as they are cut most likely; mostly none."""
        return () if self._constraint is None else self._constraint.forced()

    def without_grammar(self) -> Sampler:
        """Another one in the same state that obeys no grammar: for tokens that are only guessed."""
        other = copy(self)
        other._seen, other._counts = self._seen.copy(), self._counts.copy()
        other._constraint = None
        return other

    def _fork(self) -> Sampler:
        """Another one in the same state."""
        other = copy(self)
        other._seen, other._counts = self._seen.copy(), self._counts.copy()
        other._constraint = None if self._constraint is None else self._constraint.copy()
        return other

    def _adjust(self, logits: Logits) -> Logits:
        params = self.params
        early = len(self._ends) > 0 and self._chosen < params.min_tokens
        if not (self._penalises or len(self._bias) or self._constraint or early):
            return logits
        out: Logits = logits.copy()
        out[self._bias_ids] += self._bias
        if params.repetition_penalty != 1.0:
            seen = np.flatnonzero(self._seen)
            values, penalty = out[seen], np.float32(params.repetition_penalty)
            out[seen] = np.where(values > 0, values / penalty, values * penalty)
        if params.frequency_penalty or params.presence_penalty:
            used = np.flatnonzero(self._counts > 0)
            each = np.float32(params.frequency_penalty) * self._counts[used].astype(np.float32)
            out[used] -= each + np.float32(params.presence_penalty)
        if self._constraint is not None:
            allowed = self._constraint.allowed()
            # Rows that pad the embedding are no tokens.
            out[len(allowed) :] = -np.inf
            out[: len(allowed)][~allowed[: len(out)]] = -np.inf
        if early:
            ends = out[self._ends]
            out[self._ends] = -np.inf
            if not np.isfinite(out.max()):
                # A grammar lets the answer do nothing but end.
                out[self._ends] = ends
        return out

    def _draw(self, logits: Logits, best: float) -> int:
        ids, weights = self._weights(logits, best)
        generator = np.random.Generator(np.random.Philox(key=self.seed, counter=self._chosen))
        at = _invert(weights, generator.random())
        return at if ids is None else int(ids[at])

    def _drawn_from(self, logits: Logits, token: int, best: float) -> Logits:
        """The logits of the distribution from which ``token`` was drawn."""
        out = np.full(len(logits), -np.inf, np.float32)
        if self.params.temperature == 0:
            out[token] = 0
            return out
        ids, weights = self._weights(logits, best)
        with np.errstate(divide="ignore"):
            out[slice(None) if ids is None else ids] = np.log(weights)
        return out

    def _weights(
        self, logits: Logits, best: float
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.float64]]:
        """The ids of tokens that may be drawn, in order (None: all), and what each weighs."""
        params = self.params
        ids: NDArray[np.int64] | None = None
        if 0 < params.top_k < len(logits):
            ids = _ranked(logits, params.top_k)[: params.top_k]
            ids.sort()
        scores = logits if ids is None else logits[ids]
        weights = _exp(scores, best, params.temperature)
        keep: NDArray[np.int64] | None = None
        if params.top_p < 1:
            keep = _nucleus(weights, params.top_p)
        if params.min_p > 0:
            # Weights are relative to the best token, whose weight is 1.
            left = weights if keep is None else weights[keep]
            likely = np.flatnonzero(left >= params.min_p)
            keep = likely if keep is None else keep[likely]
        if keep is not None:
            weights = weights[keep]
            ids = keep if ids is None else ids[keep]
        return ids, weights


def report(token: int, logits: Logits, count: int) -> Sample:
    """A token with its log-probability, and the ``count`` most probable ones with theirs."""
    shift = log_sum_exp(logits)
    top = _ranked(logits, count)[:count].tolist() if count else []
    pairs = tuple((i, float(logits[i]) - shift) for i in top if logits[i] > -np.inf)
    return Sample(token, float(logits[token]) - shift, pairs)


def _exp(logits: Logits, best: float, temperature: float) -> NDArray[np.float64]:
    """exp((logits - best) / temperature) in float64."""
    # In place: for a large vocabulary, fresh memory costs more than the arithmetic.
    out: NDArray[np.float64] = logits.astype(np.float64)
    out -= best
    with np.errstate(over="ignore"):
        out /= temperature
    return np.exp(out, out=out)


def _ranked(values: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Indices of at least ``count`` largest values, largest first, equal ones by index."""
    count = min(count, len(values))
    # Everything equal to the last of them comes along, or a tie there would be broken by chance.
    least = np.partition(values, len(values) - count)[len(values) - count]
    candidates = np.flatnonzero(values >= least)
    ranked: NDArray[np.int64] = candidates[np.argsort(-values[candidates], kind="stable")]
    return ranked


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.int64]:
    """Indices, in order, of the fewest largest weights that hold ``top_p`` of the sum; at least
    one."""
    total = weights.sum()
    enough = top_p * total
    # All the weights below this one together are less than what may be left out.
    values = np.compress(weights >= (1 - top_p) * total / len(weights), weights)
    while len(values) > _FEW:
        # Halves as a quicksort would, but goes on only with the half that has the border in it.
        middle = np.partition(values, len(values) // 2)[len(values) // 2]
        heavy = np.compress(values > middle, values)
        if not len(heavy):
            break
        mass = heavy.sum()
        if mass >= enough:
            values = heavy
        else:
            enough -= mass
            values = np.compress(values <= middle, values)
    ranked = np.sort(values)[::-1]
    last = min(int(np.searchsorted(np.cumsum(ranked), enough)), len(ranked) - 1)
    equals = np.count_nonzero(ranked[: last + 1] == ranked[last])
    keep = weights > ranked[last]
    keep[np.flatnonzero(weights == ranked[last])[:equals]] = True
    return np.flatnonzero(keep)


def _invert(weights: NDArray[np.float64], u: float) -> int:
    """Index at which the running sum of weights passes the share ``u`` (below 1) of the whole."""
    # A running sum waits for every single addition: sums of stretches come first.
    starts = np.arange(0, len(weights), _FEW)
    stretches = np.cumsum(np.add.reduceat(weights, starts))
    target = u * stretches[-1]
    stretch = _passed(stretches, target)
    begin = int(starts[stretch])
    before = stretches[stretch - 1] if stretch else 0.0
    return begin + _passed(np.cumsum(weights[begin : begin + _FEW]), target - before)


def _passed(cumulative: NDArray[np.float64], target: float) -> int:
    """Index of the first sum above ``target``; where rounding leaves none, the last that grew."""
    at = int(np.searchsorted(cumulative, target, side="right"))
    return min(at, int(np.searchsorted(cumulative, cumulative[-1])))
