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
    taps, dilation = weight.shape[1], attrs.get("dilation", 1)
    out = np.zeros_like(x)
    for span in step.spans:
        source, target = span.tables[number]
        rows = slice(span.row, span.row + span.rows)
        before = np.zeros_like(kept[0]) if source == NO_BLOCK else kept[source]
        whole = np.concatenate([before, x[rows]])
        for tap in range(taps):
            first = tap * dilation
            out[rows] += weight[:, tap] * whole[first : first + span.rows]
        kept[target] = whole[span.rows :]
    return out if bias is None else out + bias


def ngrams(attrs: Attrs, table: Floats, step: Step, state: ReferenceState) -> Floats:
    """Rows by hashes; the state is the last tokens, each with 1 added."""
    number = state.group_of(attrs["layer"])
    (kept,) = state.recurrent(attrs["layer"])
    multipliers, end = attrs["multipliers"], attrs["end"]
    before, each = len(multipliers) - 1, len(attrs["starts"]) // (len(multipliers) - 1)
    out = np.zeros((len(step.tokens), len(attrs["starts"]) * table.shape[1]), np.float32)
    for span in step.spans:
        source, target = span.tables[number]
        past = [0] * before if source == NO_BLOCK else [int(t) for t in kept[source].reshape(-1)]
        own = step.tokens[span.row : span.row + span.rows].tolist()
        whole = [t - 1 for t in past] + own
        for row in range(span.rows):
            at = row + before
            seen = [whole[at]]
            for back in range(1, before + 1):
                token = whole[at - back]
                seen.append(end if token < 0 or (back > 1 and seen[-1] == end) else token)
            found, mixed = [], seen[0] * multipliers[0]
            for back in range(1, before + 1):
                mixed ^= seen[back] * multipliers[back]
                for i in range((back - 1) * each, back * each):
                    hashed = (mixed & ((1 << 64) - 1)) % attrs["sizes"][i]
                    found.append(table[attrs["starts"][i] + hashed])
            out[span.row + row] = np.concatenate(found)
        last = np.array([t + 1 for t in whole[len(own) :]], np.float32)
        kept[target] = last.reshape(kept[target].shape)
    return out


def previous(attrs: Attrs, x: Floats, step: Step, state: ReferenceState) -> Floats:
    """What came before; the state is the last row."""
    weight = np.tile(np.array([1, 0], np.float32), (x.shape[1], 1))
    return short_conv(attrs, x, weight, None, step, state)


RECURRENT: Mapping[str, Run] = {
    "ngrams": lambda a, x, step, state: ngrams(a, x[0], step, state),
    "previous": lambda a, x, step, state: previous(a, x[0], step, state),
    "short_conv": lambda a, x, step, state: short_conv(a, x[0], x[1], operand(x, 2), step, state),
}
