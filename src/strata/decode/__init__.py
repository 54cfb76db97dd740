"""From logits to text: how the next token is chosen and where an answer ends."""

from __future__ import annotations

from strata.decode.params import SamplingParams
from strata.decode.proposer import NO_DRAFT, Draft, Proposer
from strata.decode.sampling import LogitsError, Sample, Sampler, log_softmax, log_sum_exp
from strata.decode.stopping import FinishReason, StopChecker, StopStrings, TextStream

__all__ = [
    "NO_DRAFT",
    "Draft",
    "FinishReason",
    "LogitsError",
    "Proposer",
    "Sample",
    "Sampler",
    "SamplingParams",
    "StopChecker",
    "StopStrings",
    "TextStream",
    "log_softmax",
    "log_sum_exp",
]
