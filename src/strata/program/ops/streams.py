"""Ops on a residual that is several streams of one width side by side, and on rows as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from strata.program.ops.signature import Signature, per_element, rows_of, unary
from strata.program.program import ProgramError, Shape, Value

MOST_STREAMS = 64
"""Streams that a matrix may mix."""


def _mix(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x, weights = values
    n = attrs["streams"]
    if n < 1 or rows_of(x) != rows_of(weights) or x.width % n or weights.width % n:
        raise ProgramError(
            f"mix: '{weights.name}' {weights.shape} are no weights of {n} streams of '{x.name}' "
            f"{x.shape}"
        )
    return (*rows_of(x), weights.width // n * (x.width // n))


def _mix_flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    del context
    x, weights = values
    return int(2 * rows * weights.width * (x.width // attrs["streams"]))


def _match_rms(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    x, like = values
    if rows_of(x) != rows_of(like) or x.width % like.width or not attrs["least"] >= 0:
        raise ProgramError(
            f"match_rms: '{like.name}' {like.shape} is as wide as no stream of '{x.name}' {x.shape}"
        )
    return x.shape


def _sinkhorn(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    (x,), n = values, attrs["streams"]
    if not 1 <= n <= MOST_STREAMS or x.width != n * n or attrs["iterations"] < 1:
        raise ProgramError(f"sinkhorn: '{x.name}' {x.shape} is no matrix of {n} streams")
    return x.shape


def _sinkhorn_flops(values: list[Value], attrs: Mapping[str, Any], rows: int, context: int) -> int:
    del context
    return int(rows * values[0].width * (8 + 4 * attrs["iterations"]))


def _cutoff(values: list[Value], attrs: Mapping[str, Any]) -> Shape:
    if not 0 <= attrs["spare"] < values[0].width:
        raise ProgramError(f"cutoff: '{values[0].name}' {values[0].shape} has no deviation")
    return unary(values, attrs)


STREAMS: Mapping[str, Signature] = {
    # x is `streams` streams side by side; weights has as many numbers for each stream of the
    # outcome: stream j = sum over i of weights[j * streams + i] * (stream i of x)
    "mix": Signature(("x", "weights"), ("streams",), _mix, _mix_flops),
    # a matrix of each row, [from][to]: softmax over `to`, then `eps` added; then so many times each
    # element divided by `eps` and the sum over `from`, and in between by that over `to`; as weights
    # of `mix`, [to][from]
    "sinkhorn": Signature(("x",), ("streams", "iterations", "eps"), _sinkhorn, _sinkhorn_flops),
    # each stream of x, as wide as `like`, times the root of the mean square of `like` over its own,
    # whose mean square counts as `least` at least
    "match_rms": Signature(("x", "like"), ("least",), _match_rms, per_element(4)),
    # max(x - (mean + deviations * deviation), 0), where the square of the deviation is the sum of
    # (x - mean)^2 over a row divided by its width less `spare`
    "cutoff": Signature(("x",), ("deviations", "spare"), _cutoff, per_element(5)),
}
