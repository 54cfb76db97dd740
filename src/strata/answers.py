"""What callers are given: answers, and pieces of them as they come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from strata import asking
from strata.decode import FinishReason, Sample
from strata.engine import Delta, Timings
from strata.text import Tokenizer

if TYPE_CHECKING:
    from strata.engine.beam_search import Beam


@dataclass(frozen=True)
class Output:
    """A whole answer. ``token_ids`` includes an end token, ``text`` does not.

    ``logprobs`` has one Sample a token if they were asked for. ``seed`` is the one that was
    used, None for a greedy answer. ``cached_tokens`` of the prompt were known and not computed.
    ``parsed`` is the value of an answer that obeys a schema, None if it was cut.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[Sample, ...] | None
    finish_reason: FinishReason
    prompt_tokens: int
    seed: int | None
    timings: Timings
    cached_tokens: int = 0
    parsed: Any = None


@dataclass(frozen=True)
class BeamOutput:
    """One of the answers that a beam search found. ``token_ids`` includes an end token, ``text``
    does not; ``cumulative_logprob`` is the sum of their log-probabilities, and ``score`` that over
    a power of their number."""

    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float
    score: float
    finish_reason: FinishReason

    @classmethod
    def of(cls, beam: Beam, tokenizer: Tokenizer) -> BeamOutput:
        """A beam with its text."""
        said = beam.tokens[:-1] if beam.ended else beam.tokens
        text = tokenizer.decode(said, continuing=True)
        reason: FinishReason = "stop" if beam.ended else "length"
        return cls(text, beam.tokens, beam.logprob, beam.score, reason)


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer: one token of answer number ``index``, and the text certain with it.
    Answers are numbered by their prompts, those to one prompt one after the other.

    ``logprob`` and ``top`` are as in ``strata.decode.Sample``. The last chunk of an answer has its
    ``finish_reason``, and the whole of it as ``output``.
    """

    index: int
    text: str
    token_id: int
    logprob: float | None
    top: tuple[tuple[int, float], ...]
    finish_reason: FinishReason | None
    output: Output | None


class Answer:
    """Puts the deltas of one request together."""

    def __init__(self, index: int, schema: object) -> None:
        self._index, self._schema = index, schema
        self._texts: list[str] = []

    def add(self, delta: Delta) -> Chunk:
        """The piece that a delta is; the last one has the whole."""
        self._texts.append(delta.text)
        sample, request = delta.sample, delta.request
        output = None
        if delta.finish_reason is not None:
            params = request.sampler.params
            text = "".join(self._texts)
            ended = self._schema is not None and delta.finish_reason == "stop"
            output = Output(
                text=text,
                parsed=asking.parsed(self._schema, text) if ended else None,
                token_ids=tuple(sample.token for sample in request.output),
                logprobs=tuple(request.output) if params.logprobs is not None else None,
                finish_reason=delta.finish_reason,
                prompt_tokens=len(request.prompt),
                cached_tokens=request.cached_tokens,
                seed=request.sampler.seed if params.temperature else None,
                timings=request.timings,
            )
        return Chunk(
            self._index,
            delta.text,
            sample.token,
            sample.logprob,
            sample.top,
            delta.finish_reason,
            output,
        )


def whole(run: Iterator[Chunk], count: int) -> list[Output]:
    """So many answers, once they are there."""
    outputs = {chunk.index: chunk.output for chunk in run if chunk.output is not None}
    return [outputs[index] for index in range(count)]
