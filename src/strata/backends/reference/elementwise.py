"""Ops on the elements of rows."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from strata.backends.reference.run import Run
from strata.backends.reference.state import Floats


def mul(a: Floats, b: Floats, weight: bool, inverse: bool) -> Floats:
    """Each column of b multiplies, or divides, as many neighbouring columns of a as there are for
    it."""
    factors = b.reshape(1, -1) if weight else b
    factors = np.float32(1) / factors if inverse else factors
    out: Floats = a * np.repeat(factors, a.shape[-1] // factors.shape[-1], axis=-1)
    return out


def xielu(x: Floats, negative: float, positive: float, beta: float, eps: float) -> Floats:
    """xIELU, whose parameters are those of its own layer."""
    f = np.float32
    below = (np.exp(np.minimum(x, f(eps))) - 1 - x) * f(negative)
    out: Floats = np.where(x > 0, x * x * f(positive), below) + f(beta) * x
    return out


def position_scale(
    x: Floats, positions: NDArray[np.int32], floor: float, scale: float, offset: float
) -> Floats:
    """Rows of late positions grow with the logarithm of how often ``floor`` goes into them."""
    steps = np.floor((positions + offset) / floor)
    out: Floats = x * (1 + scale * np.log1p(steps)).astype(np.float32)[:, None]
    return out


ELEMENTWISE: Mapping[str, Run] = {
    # Weights come as they are in the file: only activations have as many rows as a.
    "mul": lambda a, x, step, state: mul(x[0], x[1], a["weight"], a["inverse"]),
    "shift": lambda a, x, step, state: x[0] + x[1].reshape(-1),
    "clamp": lambda a, x, step, state: np.clip(x[0], np.float32(a["low"]), np.float32(a["high"])),
    "xielu": lambda a, x, step, state: xielu(
        x[0], a["negative"], a["positive"], a["beta"], a["eps"]
    ),
    "position_scale": lambda a, x, step, state: position_scale(
        x[0], step.positions, a["floor"], a["scale"], a["offset"]
    ),
}
