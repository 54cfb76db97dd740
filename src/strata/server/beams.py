"""Beam search over HTTP, asked for by vLLM's names: ``use_beam_search``, of which ``n`` ways are
given; ``beam_width`` (or ``best_of``) says along how many it goes, otherwise as many."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from strata.engine.beam_search import MOST_BEAMS, Beam, BeamParams, BeamSearch
from strata.engine.engine import Engine
from strata.errors import UsageError
from strata.kv import PoolError
from strata.records import dataclass
from strata.server.answers import Answer, Answers
from strata.server.errors import ApiError, ShuttingDown
from strata.server.notes import note
from strata.server.openai.requests import Beamed, ChatRequest, CompletionRequest
from strata.server.parsers import Parser
from strata.server.service import Service
from strata.text.stream import StreamDecoder

# What a search has no way to obey, with the values that ask for nothing.
_NOT_OBEYED: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("stop", "stop_token_ids", "logit_bias"), ([], {}, "")),
    **dict.fromkeys(("min_tokens", "presence_penalty", "frequency_penalty"), (0,)),
    **dict.fromkeys(("repetition_penalty", "repeat_penalty"), (1,)),
    **dict.fromkeys(("stream", "echo", "timings_per_token", "return_progress"), (False,)),
    **dict.fromkeys(("suffix", "grammar"), ("",)),
    **dict.fromkeys(("tools", "functions"), ([],)),
    **dict.fromkeys(
        (
            *("prompt_logprobs", "regex", "json_schema"),
            *("structured_outputs", "guided_json", "guided_regex", "guided_choice"),
            *("guided_grammar",),
        ),
        (False,),
    ),
}


_WAIT_S = 0.02
"""Between two looks for free KV."""

_DRAWN = ("temperature", "top_p", "top_k", "min_p", "seed")


def check_beams(body: Beamed) -> bool:
    """Whether a search is asked for; ApiError for what goes with none, or not without one."""
    if not body.use_beam_search:
        for name, nothing in (("beam_width", None), ("length_penalty", 1.0)):
            if getattr(body, name) not in (None, nothing):
                raise ApiError(400, f"{name} needs use_beam_search to be true", param=name)
        return False
    for name, nothings in _NOT_OBEYED.items():
        value = getattr(body, name, None)
        # 0 asks for log-probabilities where False does not, though they are equal.
        if value is not None and not any(
            value == nothing and isinstance(value, bool) == isinstance(nothing, bool)
            for nothing in nothings
        ):
            raise ApiError(
                400, f"a beam search has no {name}: leave it out, or use_beam_search", param=name
            )
    limits = (getattr(body, n, None) for n in ("max_tokens", "max_completion_tokens", "n_predict"))
    if 0 in limits:
        raise ApiError(400, "a beam search gives one token at least", param="max_tokens")
    form = body.response_format if isinstance(body, ChatRequest) else None
    if form is not None and form.type != "text":
        raise ApiError(400, "a beam search obeys no response_format", param="response_format")
    drawn = [name for name in _DRAWN if getattr(body, name)]
    if drawn:
        note(f"a beam search draws nothing: without effect are {', '.join(drawn)}")
    return True


def beam_params(body: Beamed, max_tokens: int | None, logprobs: int | None) -> BeamParams:
    """What a request says of its search; ``max_tokens`` None is as many as there is room for, and
    ``logprobs`` how many of the most probable tokens are told beside each."""
    count = body.n or 1
    best_of = body.best_of if isinstance(body, CompletionRequest) else None
    width = body.beam_width or best_of or count
    if count > width:
        raise ApiError(400, f"n is {count}: more than the {width} beams of the search", param="n")
    if width > MOST_BEAMS:
        raise ApiError(
            400, f"a beam search has {MOST_BEAMS} beams at most, not {width}", param="beam_width"
        )
    penalty = 1.0 if body.length_penalty is None else body.length_penalty
    return BeamParams(width, count, max_tokens or 1 << 30, penalty, bool(body.ignore_eos), logprobs)


@dataclass
class BeamAnswer(Answer):
    """A choice that a search found."""

    beam: Beam | None = None

    @property
    def tokens(self) -> int:
        """Tokens chosen, an end token included."""
        return 0 if self.beam is None else len(self.beam.tokens)


class BeamAnswers(Answers):
    """The choices of searches, one of each prompt, which have no run."""

    def __init__(self, searches: Sequence[BeamSearch], choices: Sequence[BeamAnswer]) -> None:
        self._searches = searches
        self.choices = list(choices)

    @property
    def first_prompt(self) -> list[int]:
        """See Answers."""
        return self._searches[0].prompt

    @property
    def prompt_tokens(self) -> int:
        """See Answers."""
        return sum(len(search.prompt) for search in self._searches)

    @property
    def cached_tokens(self) -> int:
        """See Answers."""
        return sum(search.cached_tokens for search in self._searches)


async def search_beams(
    service: Service,
    prompts: Sequence[Sequence[int]],
    params: BeamParams,
    *,
    continuing: bool,
    show_special: bool = False,
    parser: Callable[[], Parser | None] = lambda: None,
) -> BeamAnswers:
    """The best ways on from each prompt, one search after the other, and those of all requests one
    at a time: each holds KV that answers want as well. They go on between its steps. ``parser``
    finds thoughts in a way's text; for the others see ``Service.run``."""
    if len(prompts) * params.width > service.settings.choices:
        raise UsageError(
            f"{len(prompts) * params.width} beams are asked for at once; this server gives at most "
            f"{service.settings.choices} answers"
        )
    tokenizer, skip = service.llm.tokenizer, not show_special
    searches: list[BeamSearch] = []
    choices: list[BeamAnswer] = []
    for prompt in prompts:
        room = max(service.llm.context - len(prompt), 1)
        limited = params.within(room)
        search = service.llm.engine.beam_search(prompt, limited)
        async with service.searching:
            await _finish(service, search)
        searches.append(search)

        def told(found: list[Beam] = search.best) -> list[BeamAnswer]:
            return [
                _answer(beam, parser(), tokenizer.stream(skip_special=skip, continuing=continuing))
                for beam in found
            ]

        choices += await service.off_loop(told)
        service.metrics.on_search(
            len(prompt), search.cached_tokens, [len(beam.tokens) for beam in search.best]
        )
    return BeamAnswers(searches, choices)


def _answer(beam: Beam, parser: Parser | None, text: StreamDecoder) -> BeamAnswer:
    """A way with its text and, where they are there, samples of the tokens that are in it."""
    answer = BeamAnswer(parser, beam=beam)
    shown = len(beam.tokens) - beam.ended
    answer.samples = beam.samples[:shown]
    for number, token in enumerate(beam.tokens[:shown]):
        piece = text.push(token)
        if answer.samples:
            # As where answers come token by token: what a token ends is told with it.
            answer.offsets.append(len(answer.text))
        last = number == len(beam.tokens) - 1
        answer.take(piece + (text.finish() if last else ""), "length" if last else None)
    if beam.ended:
        answer.take(text.finish(), "stop")
    answer.finish_reason = "stop" if beam.ended else "length"
    return answer


async def _finish(service: Service, search: BeamSearch) -> None:
    def step(engine: Engine) -> bool:
        try:
            engine.advance(search)
        except PoolError as error:
            if not engine.status().running:
                raise UsageError(str(error)) from None
            return False
        return True

    try:
        while not search.over:
            if service.bridge.closing:
                raise ShuttingDown("the server is shutting down")
            if not await service.alone(step):
                # Answers that run give back what they hold.
                await asyncio.sleep(_WAIT_S)
    finally:
        if not search.over:
            # Behind a step under way, also where nobody waits for this any longer.
            close = asyncio.ensure_future(service.alone(lambda _: search.close()))
            await asyncio.shield(close)
