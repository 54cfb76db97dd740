"""Responses that were given, for who asks for them again or goes on with them: in memory, within a
bound, the oldest forgotten first."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from strata.records import dataclass
from strata.server.admission import Admission, Measure
from strata.server.errors import ApiError
from strata.server.replies import to_json

_SHARE = 4
"""Of the memory for requests they may take one in so many parts."""


@dataclass(frozen=True)
class Stored:
    """A response, the messages up to it and with it (without instructions), and the bytes that it
    counts for."""

    response: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]]
    items: Sequence[Mapping[str, Any]]
    nbytes: int


class ResponseStore:
    """Responses by their ids. For the event loop's thread."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._most = admission.capacity // _SHARE
        self._stored: OrderedDict[str, Stored] = OrderedDict()
        self._held = 0

    def get(self, id: str) -> Stored:
        """A response; ApiError 404 where it is not, or no longer, there."""
        try:
            return self._stored[id]
        except KeyError:
            raise ApiError(
                404,
                f"there is no response {id!r}: it was never stored, or has been forgotten since "
                "(they are kept in memory, the newest ones)",
                param="previous_response_id",
            ) from None

    def put(
        self,
        response: Mapping[str, Any],
        messages: Sequence[Mapping[str, Any]],
        items: Sequence[Mapping[str, Any]],
    ) -> None:
        """Keep a response, if it fits at all."""
        body = to_json([response, messages, items]).encode("utf-8", "replace")
        nbytes = Measure.of(body, len(body)).cost
        while self._stored and self._held + nbytes > self._most:
            self.drop(next(iter(self._stored)))
        if self._held + nbytes <= self._most and self._admission.try_take(nbytes):
            self._held += nbytes
            self._stored[response["id"]] = Stored(response, messages, items, nbytes)

    def drop(self, id: str) -> None:
        """Forget a response; ApiError 404 where it is not there."""
        nbytes = self.get(id).nbytes
        del self._stored[id]
        self._held -= nbytes
        self._admission.give(nbytes)
