"""What a caller may ask of a generation, checked when it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from typing import cast

from strata.decode.constraint import Grammar
from strata.errors import UsageError
from strata.formats.errors import shown

LARGEST_BIAS = 1e30
"""Added to a logit it is still a number of 32 bits."""

LARGEST_SEED = 2**64 - 1
MOST_LOGPROBS = 100


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Raises UsageError for a value that makes no sense.

    - ``temperature``: 0, the default, is greedy: the most probable token, so that the answer does
      not change from run to run. Above 0 tokens are drawn from softmax(logits / temperature).
    - ``top_k`` (0: off), ``top_p`` (1: off), ``min_p`` (0: off): which tokens may be drawn.
    - ``repetition_penalty`` (1: off): logits of tokens in the prompt or the answer are divided by
      it when positive, multiplied when negative.
    - ``frequency_penalty``, ``presence_penalty`` (0: off): taken from the logit of a token once per
      occurrence in the answer, and once if it occurs there at all.
    - ``seed``: 0 to 2**64 - 1; None draws a fresh one. The draw for token i of an answer depends on
      the seed and i alone, so that batching and resuming do not change it.
    - ``stop``: strings that end the answer and do not appear in it. ``stop_token_ids``: tokens that
      do the same, besides the model's own end tokens; ``ignore_eos`` switches the latter off.
    - ``min_tokens``: of the answer, before which no end token is chosen.
    - ``max_tokens``: None is the rest of the context.
    - ``logprobs``: None for none, else the number of most probable tokens reported beside the
      chosen one. ``processed_logprobs``: under the distribution that tokens are drawn from, after
      penalties, filters and temperature, instead of the model's own.
    - ``logit_bias``: token id to a number added to its logit.
    - ``grammar``: what the answer must obey, by ``strata.decode.grammar``; excludes ``ignore_eos``.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    max_tokens: int | None = None
    logprobs: int | None = None
    processed_logprobs: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        _number("temperature", self.temperature, 0.0, None)
        _whole("top_k", self.top_k, 0, None)
        _number("top_p", self.top_p, 0.0, 1.0)
        _number("min_p", self.min_p, 0.0, 1.0)
        _number("repetition_penalty", self.repetition_penalty, 0.0, None)
        if self.repetition_penalty == 0:
            raise UsageError("repetition_penalty must be above 0; 1 switches it off")
        _number("frequency_penalty", self.frequency_penalty, None, None)
        _number("presence_penalty", self.presence_penalty, None, None)
        if self.seed is not None:
            _whole("seed", self.seed, 0, LARGEST_SEED)
        _whole("min_tokens", self.min_tokens, 0, None)
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, None)
        if self.logprobs is not None:
            _whole("logprobs", self.logprobs, 0, MOST_LOGPROBS)
        if not isinstance(self.stop, Iterable):
            raise UsageError(f"stop must be text or a list of texts, not {shown(self.stop)}")
        if not isinstance(self.stop_token_ids, Iterable) or isinstance(self.stop_token_ids, str):
            raise UsageError(f"stop_token_ids must be token ids, not {shown(self.stop_token_ids)}")
        if not isinstance(self.logit_bias, Mapping):
            raise UsageError(f"logit_bias must be a dict, not {shown(self.logit_bias)}")
        for name in ("ignore_eos", "processed_logprobs"):
            value = getattr(self, name)
            if not isinstance(value, bool):
                raise UsageError(f"{name} must be True or False, not {shown(value)}")
        if self.grammar is not None and not hasattr(self.grammar, "start"):
            raise UsageError(
                "grammar must be what LLM.compile gives: llm.compile(json_schema=...), not "
                f"{type(self.grammar).__name__}"
            )
        if not all(isinstance(s, str) and s for s in self.stop_strings):
            raise UsageError("stop must be strings of at least one character")
        for token in self.stop_token_ids:
            _whole("stop_token_ids", token, 0, None)
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0, None)
            _number("logit_bias", bias, -LARGEST_BIAS, LARGEST_BIAS)
        if self.grammar is not None and self.ignore_eos:
            raise UsageError("an answer by a grammar ends with an end token: drop ignore_eos")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple, also when it is one string."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def penalises(self) -> bool:
        """Whether earlier tokens change the logits of later ones."""
        return (
            self.repetition_penalty != 1.0
            or self.frequency_penalty != 0.0
            or self.presence_penalty != 0.0
        )


def _number(name: str, value: object, least: float | None, most: float | None) -> None:
    try:
        good = isinstance(value, Real) and not isinstance(value, bool) and isfinite(value)
    except OverflowError:
        good = False
    if not good:
        raise UsageError(f"{name} must be a number{_bounds(least, most)}, not {shown(value)}")
    _within(name, cast(float, value), least, most)


def _whole(name: str, value: object, least: int, most: int | None) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UsageError(f"{name} must be a whole number{_bounds(least, most)}, not {shown(value)}")
    _within(name, int(value), least, most)


def _within(name: str, value: float, least: float | None, most: float | None) -> None:
    if (least is not None and value < least) or (most is not None and value > most):
        raise UsageError(f"{name} must be{_bounds(least, most)}, not {shown(value)}")


def _bounds(least: float | None, most: float | None) -> str:
    if least is None:
        return ""
    return (
        f" at least {_plain(least)}" if most is None else f" from {_plain(least)} to {_plain(most)}"
    )


def _plain(bound: float) -> str:
    # :g would round the largest seed to a number that is refused.
    return str(bound) if isinstance(bound, int) else f"{bound:g}"
