"""Past calls and their results, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def one_call_a_message(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """``messages`` in which each call is a message of its own, with its result behind it; what was
    said and thought stays with the first."""
    results = {m["tool_call_id"]: m for m in messages if m.get("tool_call_id") is not None}
    out: list[Mapping[str, Any]] = []
    placed: set[str] = set()
    for message in messages:
        if message.get("tool_call_id") in placed:
            continue
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            out.append(message)
            continue
        for number, call in enumerate(calls):
            first = message if number == 0 else {"role": message["role"], "content": ""}
            out.append({**first, "tool_calls": [call]})
            if call.get("id") in results and call["id"] not in placed:
                placed.add(call["id"])
                out.append(results[call["id"]])
    return out
