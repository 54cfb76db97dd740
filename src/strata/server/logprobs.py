"""Log-probabilities of tokens in the form of OpenAI's chat, which Ollama took over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from strata.decode import Sample
from strata.text import Tokenizer


class TokenLogprob(BaseModel):
    """A token with its natural log-probability and its bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenLogprob(TokenLogprob):
    """The chosen token, and the most probable ones in its place."""

    top_logprobs: list[TokenLogprob]


def logprobs_of(tokenizer: Tokenizer, samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """A ``ChosenLogprob`` for each sample."""

    def token(id: int, logprob: float | None) -> dict[str, Any]:
        data = tokenizer.token_bytes(id, special=True)
        return {"token": token_text(tokenizer, id), "logprob": logprob, "bytes": list(data)}

    return [
        {
            **token(sample.token, sample.logprob),
            "top_logprobs": [token(id, logprob) for id, logprob in sample.top],
        }
        for sample in samples
    ]


def token_text(tokenizer: Tokenizer, id: int) -> str:
    """A token's text, whatever its bytes."""
    return tokenizer.token_bytes(id, special=True).decode("utf-8", "replace")
