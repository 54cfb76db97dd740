"""What a grammar is to the sampler: which tokens may come next, told anew after every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """Where one answer is in its grammar."""

    def allowed(self) -> NDArray[np.bool_]:
        """Which tokens may come next [tokenizer's vocabulary]; at least one may, end tokens when
        the answer is complete. Changes nothing."""

    def ready(self, seconds: float = 0.0) -> bool:
        """Whether ``allowed`` has not to be waited for, after ``seconds`` at most."""

    def forced(self) -> Sequence[int]:
        """Tokens that will most likely come next, since the text of them is all that may."""

    def accept(self, token: int) -> None:
        """Move on by the token that was chosen. Raises nothing: what goes wrong with it is raised
        by ``allowed``."""

    def copy(self) -> Constraint:
        """Another one at the same place."""

    def close(self) -> None:
        """Nobody asks any longer."""


class Grammar(Protocol):
    """A compiled grammar, shared by every answer that obeys it."""

    def start(self) -> Constraint:
        """The beginning of an answer."""

    def close(self) -> None:
        """No answer begins any longer; those that have begun go on."""
