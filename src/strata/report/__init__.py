"""What happened, for people: against the plan, by Op, as speed, as perplexity."""

from __future__ import annotations

from strata.report.measure import Measurement, Spread, context_for_measurement, measure
from strata.report.perplexity import Perplexity, perplexity

__all__ = [
    "Measurement",
    "Perplexity",
    "Spread",
    "context_for_measurement",
    "measure",
    "perplexity",
]
