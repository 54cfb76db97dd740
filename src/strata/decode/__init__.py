"""From logits to text: how the next token is chosen and where an answer ends."""

from __future__ import annotations

from strata.decode.params import SamplingParams
from strata.decode.sampling import LogitsError, Sample, Sampler, log_softmax, log_sum_exp
from strata.decode.stopping import Ending, FinishReason, StopStrings, TextStream

__all__ = [
    "Ending",
    "FinishReason",
    "LogitsError",
    "Sample",
    "Sampler",
    "SamplingParams",
    "StopStrings",
    "TextStream",
    "log_softmax",
    "log_sum_exp",
]
