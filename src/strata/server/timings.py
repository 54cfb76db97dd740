"""How far prompts have come and how long answers took, as llama-server says it."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

from strata.server.answers import Answer, Answers


def timings(answer: Answer) -> dict[str, Any]:
    """How long an answer took so far; milliseconds, and tokens a second."""
    request = answer.request
    prompt_ms = predicted_ms = 0.0
    if request and request.first_token is not None and request.last_token is not None:
        prompt_ms = 1e3 * (request.first_token - (request.started or request.submitted))
        predicted_ms = 1e3 * (request.last_token - request.first_token)
    prompt = len(request.prompt) - request.cached_tokens if request else 0
    return _figures(answer.cached_tokens, (prompt, prompt_ms), (answer.tokens, predicted_ms))


class PromptProgress:
    """``prompt_progress`` of a call's prompts, all together; ``timed`` with ``timings``."""

    def __init__(self, answers: Answers, *, timed: bool) -> None:
        self._run = answers.run
        self._timed = timed
        self._told: int | None = None

    def news(self) -> Iterator[dict[str, Any]]:
        """The fields of each chunk that is to be told since this was last asked: the first has what
        was known without computing."""
        requests = [ticket.request for ticket in self._run.run.tickets]
        begun = [request for request in requests if request is not None and request.started]
        done, total = self._run.progress
        if len(begun) < len(requests) or self._told == total:
            return
        cached = sum(request.cached_tokens for request in begun)
        if self._told is None:
            self._told = cached
            yield self._fields(cached, cached, total, 0.0)
        # One that gave way to others begins anew: what was told is not taken back.
        if done > self._told:
            self._told = done
            since = min(request.started or 0.0 for request in begun)
            yield self._fields(cached, done, total, 1e3 * (perf_counter() - since))

    def _fields(self, cached: int, done: int, total: int, ms: float) -> dict[str, Any]:
        found: dict[str, Any] = {
            "prompt_progress": {
                "total": total,
                "cache": cached,
                "processed": done,
                "time_ms": round(ms),
            }
        }
        if self._timed:
            found["timings"] = _figures(cached, (done - cached, ms), (0, 0.0))
        return found


def _figures(cached: int, prompt: tuple[int, float], answer: tuple[int, float]) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "cache_n": cached,
        "prompt_n": prompt[0],
        "predicted_n": answer[0],
    }
    for name, count, ms in (
        ("prompt", *prompt),
        # The first token comes with the prompt: the others took this long.
        ("predicted", max(answer[0] - 1, 0), answer[1]),
    ):
        figures |= {
            f"{name}_ms": ms,
            f"{name}_per_token_ms": ms / count if count else 0.0,
            f"{name}_per_second": 1e3 * count / ms if ms else 0.0,
        }
    return figures
