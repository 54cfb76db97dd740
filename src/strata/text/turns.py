"""Conversations that have become too long: which turns are left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Message = Mapping[str, Any]


def without_oldest(
    messages: Sequence[Message], tokens: Callable[[Sequence[Message]], int], *, most: int, aim: int
) -> tuple[list[Message], int]:
    """``messages`` in at most ``most`` tokens, and how many turns were left out for it.

    A turn is a user's message and all that follows it up to the next one; what comes before the
    first (a system message) stays. Where all does not fit, the oldest turns go until the rest has
    at most ``aim`` tokens, so that a conversation is not cut anew at every turn. The last turn
    always stays, however long it is.
    """
    kept = list(messages)
    if tokens(kept) <= most:
        return kept, 0
    begins = [i for i, message in enumerate(kept) if message.get("role") == "user"]
    if len(begins) < 2:
        return kept, 0
    head = kept[: begins[0]]
    # The fewest turns that have to go, by halves: each look renders the whole conversation.
    low, high = 1, len(begins) - 1
    while low < high:
        middle = (low + high) // 2
        if tokens([*head, *kept[begins[middle] :]]) <= aim:
            high = middle
        else:
            low = middle + 1
    return [*head, *kept[begins[low] :]], low
