"""Ops with a state of fixed size for a sequence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from strata.backends.base import (
    NO_BLOCK,
    Step,
)
from strata.backends.reference.run import Attrs, Run, operand
from strata.backends.reference.state import Floats, ReferenceState


def short_conv(
    attrs: Attrs,
    x: Floats,
    weight: Floats,
    bias: Floats | None,
    step: Step,
    state: ReferenceState,
) -> Floats:
    """Each column's weighted sum of its last values; the state is what came before the step."""
    number = state.group_of(attrs["layer"])
    (kept,) = state.recurrent(attrs["layer"])
    taps = weight.shape[1]
    out = np.zeros_like(x)
    for span in step.spans:
        source, target = span.tables[number]
        rows = slice(span.row, span.row + span.rows)
        before = np.zeros_like(kept[0]) if source == NO_BLOCK else kept[source]
        whole = np.concatenate([before, x[rows]])
        for tap in range(taps):
            out[rows] += weight[:, tap] * whole[tap : tap + span.rows]
        kept[target] = whole[span.rows :]
    return out if bias is None else out + bias


def previous(attrs: Attrs, x: Floats, step: Step, state: ReferenceState) -> Floats:
    """What came before; the state is the last row."""
    weight = np.tile(np.array([1, 0], np.float32), (x.shape[1], 1))
    return short_conv(attrs, x, weight, None, step, state)


RECURRENT: Mapping[str, Run] = {
    "previous": lambda a, x, step, state: previous(a, x[0], step, state),
    "short_conv": lambda a, x, step, state: short_conv(a, x[0], x[1], operand(x, 2), step, state),
}
