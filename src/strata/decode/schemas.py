"""JSON schemas as they are asked of a model: on one line, and no properties beside those named."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from strata.giving_way import give_way

LAYOUT: Mapping[str, Any] = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}
"""llguidance's options for JSON on one line. Where JSON may have space, small models lose
themselves in it, and every space costs a token."""

# Of schemas that hold at once, or that exclude each other, none can be made narrower by itself.
_COMPOSING = frozenset(
    ("allOf", "if", "not", "dependentSchemas", "dependencies", "unevaluatedProperties")
)
_OPEN = frozenset(("additionalProperties", "patternProperties"))
_BRANCHES = ("anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions")


def closed(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """``schema`` whose objects have no properties but those they name, unless it says something of
    others.

    What is valid under it is valid under ``schema``. Models otherwise go on inventing properties;
    llama.cpp and xgrammar read schemas in this way too. One that composes objects of several
    schemas is left as it is.
    """
    return schema if _composes(schema) else _close(schema)


_OPEN_HERE = frozenset(
    (
        *("uniqueItems", "propertyNames", "not", "if", "then", "else", "unevaluatedProperties"),
        *("contains", "minContains", "maxContains", "dependentRequired", "dependentSchemas"),
        *("dependencies", "unevaluatedItems", "contentSchema"),
    )
)
_FORMATS = frozenset(
    (
        *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
        *("uri", "unknown"),
    )
)
_LOOKING = re.compile(r"\(\?<?[=!]|\\[1-9]")
"""In a pattern: what looks around, or back at a group."""


def enforced(schema: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """``schema`` without what no grammar can hold an answer to, and the paths of what was left out.

    What is valid under ``schema`` stays valid. Of ``oneOf`` it is left open that no second branch
    may hold.
    """
    left_out: list[str] = []
    return _enforced(schema, "", left_out), left_out


def _enforced(node: Any, path: str, left_out: list[str]) -> Any:
    give_way()
    if not isinstance(node, Mapping):
        return node
    out: dict[str, Any] = {}
    for key, value in node.items():
        here = f"{path}.{key}" if path else key
        pattern = key == "pattern" and isinstance(value, str) and _LOOKING.search(value)
        format = key == "format" and isinstance(value, str) and value not in _FORMATS
        if key in _OPEN_HERE or pattern or format:
            # What asks for nothing is not missed.
            if value not in (False, {}, []):
                left_out.append(f"{here} ({value})" if format else here)
        elif key in (*_NAMED, "patternProperties") and isinstance(value, Mapping):
            out[key] = {name: _enforced(v, f"{here}.{name}", left_out) for name, v in value.items()}
        elif key in (*_BRANCHES, "allOf") and isinstance(value, list):
            branches = [_enforced(v, f"{here}.{i}", left_out) for i, v in enumerate(value)]
            alone = key == "oneOf" and "anyOf" not in node
            out["anyOf" if alone else key] = branches
        elif key in ("items", "additionalProperties", "additionalItems"):
            out[key] = _enforced(value, here, left_out)
        else:
            out[key] = value
    return out


def _composes(node: Any) -> bool:
    give_way()
    if isinstance(node, list):
        return any(_composes(item) for item in node)
    if not isinstance(node, Mapping):
        return False
    exclusive = "oneOf" in node and "discriminator" not in node
    beside = "properties" in node and not node.keys().isdisjoint(("$ref", "anyOf", "oneOf"))
    return (
        exclusive
        or beside
        or not node.keys().isdisjoint(_COMPOSING)
        or any(_composes(value) for value in node.values())
    )


def _close(node: Any) -> Any:
    give_way()
    if not isinstance(node, Mapping):
        return node
    out = dict(node)
    for key in _NAMED:
        if isinstance(named := node.get(key), Mapping):
            out[key] = {name: _close(value) for name, value in named.items()}
    for key in _BRANCHES:
        if isinstance(branches := node.get(key), list):
            out[key] = [_close(branch) for branch in branches]
    for key in ("items", "additionalProperties"):
        if key in node:
            out[key] = _close(node[key])
    if isinstance(node.get("properties"), Mapping) and node.keys().isdisjoint(_OPEN):
        out["additionalProperties"] = False
    return out
