"""A request as the engine keeps it, and what it gives while it runs."""

from __future__ import annotations

from dataclasses import field

from strata.decode import FinishReason, Sample, Sampler, StopChecker
from strata.errors import StrataError
from strata.records import dataclass


@dataclass(frozen=True)
class Timings:
    """Speed of one request in seconds and tokens a second; None where nothing was timed.

    ``ttft_s`` runs from submission to the first token, waiting for a place included; the prefill
    rate counts prompt tokens from the first step that held some, those that were known already
    included; the decode rate counts the tokens after the first.
    """

    ttft_s: float | None = None
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None


@dataclass(eq=False)
class Request:
    """A sequence with its prompt, the tokens chosen so far and how it came to its end.

    ``finish_reason`` is None while it runs, and stays None for one that was ``cancelled``.
    ``cached_tokens`` of the prompt were not computed for it: their KV was known when it started.
    ``late``: when its token was to be chosen it was not known what its grammar allows.
    """

    id: int
    prompt: tuple[int, ...]
    sampler: Sampler
    stop_checker: StopChecker
    submitted: float
    output: list[Sample] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    cancelled: bool = False
    late: bool = False
    cached_tokens: int = 0
    started: float | None = None
    first_token: float | None = None
    last_token: float | None = None

    @property
    def done(self) -> bool:
        """Whether no more tokens will come."""
        return self.cancelled or self.finish_reason is not None

    @property
    def timings(self) -> Timings:
        """Speeds so far."""
        if self.started is None or self.first_token is None or self.last_token is None:
            return Timings()
        decode_s = self.last_token - self.first_token
        return Timings(
            self.first_token - self.submitted,
            len(self.prompt) / max(self.first_token - self.started, 1e-9),
            (len(self.output) - 1) / decode_s if decode_s > 0 else None,
        )


@dataclass(frozen=True)
class Delta:
    """One token of one request: the text that became certain with it, and the end if it is one.

    With an ``error`` the request has failed and holds nothing any more; there is no token then, and
    no finish reason.
    """

    request: Request
    sample: Sample
    text: str
    finish_reason: FinishReason | None
    error: StrataError | None = None
