"""How well a model predicts a text, as one number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import exp, sqrt

import numpy as np
from numpy.typing import NDArray

from strata.decode import LogitsError
from strata.engine.engine import Engine
from strata.errors import UsageError
from strata.records import dataclass

SCORED_BYTES = 16
"""Of each token that is scored: its logarithm, and a copy while the deviation is computed."""

_LARGEST_NLL = 700.0
"""Its exp is near the largest float64; uniform guessing over any vocabulary is below 20."""


@dataclass(frozen=True)
class Perplexity:
    """exp of the mean negative log-likelihood (natural logarithm) of ``tokens`` scored tokens.

    ``stderr`` is the standard error of ``perplexity`` by the delta method: that of the mean times
    the perplexity. ``chunks`` windows of ``context`` tokens were run.
    """

    perplexity: float
    stderr: float
    nll: float
    tokens: int
    chunks: int
    context: int


def perplexity(
    engine: Engine,
    tokens: Sequence[int],
    *,
    context: int,
    chunks: int | None = None,
    bos: int | None = None,
    progress: Callable[[Perplexity, int], None] | None = None,
) -> Perplexity:
    """Perplexity as llama.cpp's ``perplexity`` tool defines it, so that figures compare.

    ``tokens`` is cut into windows of ``context``; a rest is left out. ``bos``, for models that
    begin with such a token, takes the place of the first token of every window. Of each window the
    tokens after position ``context // 2`` are scored, each given those before it in the window.
    ``progress`` gets the estimate so far and the number of windows in all.
    """
    if context < 4:
        raise UsageError(f"a context of {context} tokens is too small to score; take at least 4")
    there = len(tokens) // context
    wanted = max(there, 1) if chunks is None else chunks
    if not 1 <= wanted <= there:
        raise UsageError(
            f"{wanted or 'no'} windows of {context} tokens cannot be scored: the text has "
            f"{len(tokens)} tokens, enough for {there}"
        )
    first = context // 2
    each = context - 1 - first
    scored = np.empty(wanted * each)
    for number in range(wanted):
        window = list(tokens[number * context : (number + 1) * context])
        if bos is not None:
            window[0] = bos
        scored[number * each : (number + 1) * each] = engine.logprobs(window, first)
        result = _summary(scored[: (number + 1) * each], number + 1, context)
        if progress:
            progress(result, wanted)
    return result


def _summary(logprobs: NDArray[np.float64], chunks: int, context: int) -> Perplexity:
    nll = -float(logprobs.mean())
    if nll > _LARGEST_NLL:
        raise LogitsError(f"the text is all but impossible to this model ({nll:.0f} nats a token)")
    error = float(logprobs.std()) / sqrt(max(len(logprobs) - 1, 1))
    return Perplexity(exp(nll), error * exp(nll), nll, len(logprobs), chunks, context)
