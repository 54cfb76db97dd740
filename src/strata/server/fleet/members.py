"""A model of a fleet: what is known of it, and how it is there."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import field
from pathlib import Path
from time import monotonic
from typing import Any

from strata.records import dataclass
from strata.server.errors import ApiError
from strata.server.fleet.allotment import Way, at
from strata.server.fleet.children import Child
from strata.server.fleet.entries import Entry
from strata.server.fleet.proxy import Address

KEEP_ALIVE_S = 300.0
"""As Ollama has it."""

_HALF_LIFE_S = 300.0
"""After which a request counts half, in how often a model is asked."""

_LEAST_WEIGHT = 0.01

_LOAD_BYTES_S = 1e9
"""A modest disk's, so that loading is dearer the larger a model is."""

_START_S = 2.0
"""For a process to begin."""

_WRONG_S = 10.0
"""For which a model that could not be described is not looked at again."""


@dataclass(frozen=True)
class Card:
    """What is known of a model from its header; ``helper.describe`` gives it."""

    path: Path
    ways: tuple[Way, ...]
    context: int
    size: int
    digest: str
    modified: str
    details: dict[str, Any]
    model_info: dict[str, Any]
    embeds: bool
    template: str

    @classmethod
    def of(cls, told: dict[str, Any]) -> Card:
        """As a helper told it."""
        values = {k: v for k, v in told.items() if k not in ("curve", "path")}
        # Many names of one model have one template.
        values["template"] = sys.intern(values["template"])
        return cls(Path(told["path"]), tuple(Way(*pair) for pair in told["curve"]), **values)


@dataclass(eq=False)
class Member:
    """A model, loaded or not.

    ``leases`` are requests that it has, of which some are ``answering``, and some ``waiting`` for
    it to be there, to whom an answer is ``owed`` then. ``share`` is its bytes, 0 when it is not
    there, and ``least`` what it turned out to need. One that is ``leaving`` gets no more to answer,
    and one that is ``gone`` is none of the fleet any more.
    """

    entry: Entry
    card: Card | None = None
    wrong: tuple[int, str] | None = None
    gone: bool = False
    child: Child | None = None
    address: Address | None = None
    share: int = 0
    least: int = 0
    context: int = 0
    leases: int = 0
    answering: int = 0
    waiting: set[object] = field(default_factory=set)
    owed: set[object] = field(default_factory=set)
    leaving: bool = False
    keep_alive_s: float = KEEP_ALIVE_S
    expires: float = 0.0
    progress: tuple[str, int, int | None] = ("waiting", 0, None)
    loading: asyncio.Task[None] | None = None
    _wrong_at: float = 0.0
    _asked: float = 0.0
    _asked_at: float = field(default_factory=monotonic)

    @property
    def loaded(self) -> bool:
        """Whether requests can be passed on."""
        return self.address is not None and self.child is not None and not self.child.ended

    @property
    def known(self) -> bool:
        """Whether it is known what it is, or lately that it is nothing."""
        late = monotonic() - self._wrong_at >= _WRONG_S
        return self.card is not None or (self.wrong is not None and not late)

    def set_wrong(self, status: int, why: str) -> None:
        """It cannot be described."""
        self.wrong = status, f"{self.entry.name} cannot be served: {why}"
        self._wrong_at = monotonic()

    def check_there(self) -> None:
        """ApiError 404 for one that is gone."""
        if self.gone:
            raise ApiError(
                404,
                f"{self.entry.name} was deleted or made anew meanwhile",
                param="model",
                code="model_not_found",
            )

    def weight(self) -> float:
        """How often it was asked lately."""
        age = monotonic() - self._asked_at
        return float(max(self._asked * 0.5 ** (age / _HALF_LIFE_S), _LEAST_WEIGHT))

    def count(self) -> None:
        """It is asked once more."""
        self._asked, self._asked_at = self.weight() + 1.0, monotonic()

    def ways(self) -> list[Way]:
        """Shares that it may have, with the one that it has."""
        assert self.card is not None
        found = [way for way in self.card.ways if way.nbytes >= self.least]
        found = found or [at(self.card.ways, self.least)]
        if self.share and self.share >= self.least:
            found.append(at(found, self.share))
        return sorted(set(found), key=lambda way: way.nbytes)

    def away_s(self) -> float:
        """What it costs whoever asks when it is not there: loading it, an answer then, and loading
        again whoever has to go for it."""
        assert self.card is not None
        return self.card.ways[-1].seconds + 2 * (_START_S + self.card.size / _LOAD_BYTES_S)
