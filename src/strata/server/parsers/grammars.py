"""Grammars of calls, in llguidance's Lark."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strata.decode.schemas import LAYOUT, closed, enforced
from strata.server.parsers.base import TokenId, Tool


def mark(name: str, token_id: TokenId) -> str:
    """A mark as its special token, where the model has one, and as text otherwise."""
    id = token_id(name)
    return json.dumps(name) if id is None else f"<[{id}]>"


def json_rule(schema: Mapping[str, Any]) -> str:
    """What is valid under a schema."""
    # A keyword that the compiler does not know loosens the form of a call; it is no error.
    options = {"lenient": True, **LAYOUT}
    return f"%json {json.dumps({**enforced(closed(schema))[0], 'x-guidance': options})}"


def lark_alternatives(tools: Sequence[Tool], before: Callable[[str], str], after: str) -> str:
    """``start`` as one of the tools: ``before(name)``, arguments by its schema, ``after``."""
    rules = []
    for number, tool in enumerate(tools):
        # A tool that names no arguments has none.
        rules.append(f"arguments_{number}: {json_rule({'properties': {}, **tool.parameters})}")
    starts = "\n     | ".join(
        f"{before(tool.name)} arguments_{number} {after}" for number, tool in enumerate(tools)
    )
    return f"start: {starts}\n" + "\n".join(rules)
