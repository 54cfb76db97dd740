"""The comparison of quality figures: what it reads of the peer, and what it makes of both."""

from __future__ import annotations

import re

import pytest

import quality_against_llamacpp as beside

SAID = """
Mean PPL(Q)                   :  16.680493 ±   1.234567
Mean ln(PPL(Q)/PPL(base))     :   0.027233 ±   0.010000
Mean    KLD:   0.149360 ±   0.008321
99.9%   KLD:   2.385100
99.0%   KLD:   0.689200
Median  KLD:   0.138300
Mean    Δp: -1.720 ± 0.301 %
RMS Δp    :  8.220 ± 0.401 %
Same top p: 81.830 ± 1.395 %
"""


def test_every_figure_is_found_in_what_the_peer_prints() -> None:
    found = {name: re.search(pattern, SAID) for name, pattern in beside.LINES.items()}
    values = {name: match and match[1] for name, match in found.items()}
    assert values == {
        "perplexity": "16.680493",
        "log_ratio": "0.027233",
        "kl": "0.149360",
        "kl_median": "0.138300",
        "kl_p99": "0.689200",
        "kl_p99_9": "2.385100",
        "same_top": "81.830",
        "p_change": "-1.720",
        "p_change_rms": "8.220",
    }


def test_ranks_correlate_as_they_should() -> None:
    assert beside.rank_correlation([1, 5, 2], [10.0, 90.0, 11.0]) == pytest.approx(1)
    assert beside.rank_correlation([1, 5, 2], [3.0, 1.0, 2.0]) == pytest.approx(-1)
