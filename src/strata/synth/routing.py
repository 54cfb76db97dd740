"""Routers with a wanted skew and a wanted stickiness, by what all rows of an embedding share.

A row of the embedding is ``_CONSTANT`` u + ``_TOPIC`` v + the rest at random, with a u of all
tokens and a v of its topic (32 neighbouring ids have one of sixteen, the next 32 the next), larger
than what layers add to it. Of a router the logits are normal, of the deviation 1; to them comes by
way of u the logarithm of each expert's popularity, which falls with the root of its rank (in
another order in every layer), and for ``sticky`` by way of v what each topic likes. The head likes
the topic of the last token, so that a sampled text stays at it for some ten tokens, and its experts
with it.

What is reached is counted by ``tests/synth/test_routing.py``, in the reference, with 4 of 32
experts and a text that the model goes on with at temperature 1:

======= =============================== ==============================
routing choices that the most popular   chance that the next token
        quarter of the experts takes    chooses an expert again
======= =============================== ==============================
even    0.39 (as 600 choices fall)      0.17
skewed  0.55                            0.24
sticky  0.54                            0.56
======= =============================== ==============================

Weights at random, without any of this, are neither even nor free of stickiness: what attention adds
hardly changes from token to token.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from strata.errors import UsageError
from strata.synth.shape import Shape

RoutingName = Literal["even", "skewed", "sticky"]

TOPICS = 16
ROWS = 32
"""Neighbouring ids of one topic."""

# Of an embedding, in units of its deviation, and how much larger than 1 that is.
_CONSTANT, _TOPIC = 0.6, 0.75
_NOISE = math.sqrt(1 - _CONSTANT**2 - _TOPIC**2)
_SIZE = 16.0
_SKEW = 0.5
"""An expert of rank r is as popular as r to the power of minus this."""
_LIKED = 2.0
"""Deviation of what topics like."""
# By how much the logits of tokens of the same topic are higher: a chance of 9 in 10 among TOPICS.
_STAYS = math.log(9 * (TOPICS - 1))

Floats = NDArray[np.float32]


class Routing:
    """The tensors that decide the routes of a shape; UsageError for a shape without experts."""

    def __init__(self, shape: Shape, name: RoutingName, seed: int) -> None:
        if not shape.experts:
            raise UsageError(f"{shape.name} has no experts, so there is no --routing")
        self._shape, self._name = shape, name
        self._random = np.random.Generator(np.random.PCG64([seed, 1]))
        signs = self._random.integers(0, 2, (1 + TOPICS, shape.width)) * 2.0 - 1.0
        self._constant, self._topics = signs[0], signs[1:]

    def rows(self, name: str, shape: tuple[int, ...]) -> Floats | None:
        """Values of a tensor of a GGUF file, of which the rows repeat; None for one that has no
        part in routing."""
        if name.endswith(".ffn_gate_inp.weight"):
            found = self._router()
        elif name == "token_embd.weight":
            found = _SIZE * self._rows(_CONSTANT, _TOPIC, _NOISE)
        elif name == "output.weight":
            each = _STAYS / (_TOPIC * self._shape.width)
            found = self._rows(0.0, each, 1 / math.sqrt(self._shape.width))
        elif name in ("output_norm.weight", "token_embd_norm.weight") and self._shape.tied:
            # The head is the embedding: its logits are brought down to the size wanted.
            factor = _STAYS / (_SIZE * _TOPIC**2 * self._shape.width)
            found = np.full(shape, factor * self._shape.keys.get("logit_scale", 1.0))
        else:
            return None
        return found.astype(np.float32)

    def _rows(self, constant: float, topic: float, noise: float) -> NDArray[np.float64]:
        """A row for each id of all topics."""
        random = self._random.standard_normal((TOPICS, ROWS, self._shape.width))
        there: NDArray[np.float64] = (
            constant * self._constant + topic * self._topics[:, None, :] + noise * random
        )
        return there.reshape(TOPICS * ROWS, -1)

    def _router(self) -> NDArray[np.float64]:
        """A row for each expert."""
        n, width = self._shape.experts, self._shape.width
        common = np.vstack((self._constant, self._topics))
        # What is 1 with one of them and 0 with the others, and what is 0 with all.
        alone = np.linalg.pinv(common)
        random = self._random.standard_normal((n, width)) / (math.sqrt(width) * _NOISE)
        found: NDArray[np.float64] = random - random @ alone @ common
        if self._name != "even":
            popular = -_SKEW * np.log(1 + self._random.permutation(n)) / _CONSTANT
            found += np.outer(popular, alone[:, 0])
        if self._name == "sticky":
            liked = self._random.standard_normal((n, TOPICS)) * _LIKED / _TOPIC
            found += liked @ alone[:, 1:].T
        return found
