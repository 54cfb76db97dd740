"""Calls whose arguments stand each between tags of its own, given as JSON.

What is between the tags is text for an argument that is a string by its schema, and JSON for one
that is not; where both may be, it is JSON if it can be read so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strata.server.parsers.base import Reading, Tool
from strata.server.parsers.grammars import json_rule
from strata.server.parsers.literals import json_text, python_as_json
from strata.server.parsers.source import Source

_PYTHON = {"True": "true", "False": "false", "None": "null"}
_BRANCHES = ("anyOf", "oneOf", "allOf")
_DEEPEST = 16
_STRING, _OTHER = frozenset(("string",)), frozenset(("other",))
_ANY = _STRING | _OTHER


class Arguments:
    """The arguments of a call of ``tool``, which begins."""

    def __init__(self, source: Source, tool: Tool, id: str | None = None) -> None:
        self._source = source
        self._tool = tool
        self._first = True
        source.begin_call(tool.name, id)

    def read(
        self, name: str, *ends: str, newlines: bool = False, is_text: bool | None = None
    ) -> Reading[str | None]:
        """Read an argument's value up to one of ``ends``, and go on behind it; the one that came.

        With ``newlines``, one at the beginning and one at the end are not of the value. ``is_text``
        is what the markup says of it.
        """
        source = self._source
        source.argue(f"{'{' if self._first else ', '}{json.dumps(name, ensure_ascii=False)}: ")
        self._first = False
        if newlines:
            yield from source.take("\n")
            ends = (*(f"\n{end}" for end in ends), *ends)
        kinds = kinds_of(self._tool, name) if is_text is None else _STRING if is_text else _OTHER
        if kinds == _STRING:
            source.argue('"')
            yield from source.until(*ends, give=lambda text: source.argue(json_text(text)))
            end = yield from source.take(*ends)
            if end is not None:
                source.argue('"')
            return end
        parts: list[str] = []
        yield from source.until(*ends, give=parts.append)
        end = yield from source.take(*ends)
        if end is not None:
            source.argue(_as_json("".join(parts)))
        return end

    def end(self) -> None:
        """All of them are there."""
        self._source.argue("{}" if self._first else "}")
        self._source.end_call()


def kinds_of(tool: Tool, name: str) -> frozenset[str]:
    """Whether an argument may be a string, something else, or both, by the tool's schema."""
    properties = tool.parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, Mapping) else None
    return _kinds(schema, tool.parameters, _DEEPEST)


def _kinds(schema: Any, root: Mapping[str, Any], deepest: int) -> frozenset[str]:
    if not isinstance(schema, Mapping) or not deepest:
        return _ANY
    if isinstance(path := schema.get("$ref"), str):
        return _kinds(_at(root, path), root, deepest - 1)
    if "const" in schema:
        return _kind(schema["const"])
    if isinstance(values := schema.get("enum"), list) and values:
        return frozenset().union(*map(_kind, values))
    kinds = schema.get("type")
    if isinstance(kinds, str):
        kinds = [kinds]
    if isinstance(kinds, list) and kinds:
        return frozenset().union(*(_STRING if k == "string" else _OTHER for k in kinds))
    for key in _BRANCHES:
        if isinstance(branches := schema.get(key), list) and branches:
            # A schema may be as large as a request: what is beyond says nothing new.
            found = [_kinds(branch, root, deepest - 1) for branch in branches[:_DEEPEST]]
            return frozenset().union(*found)
    return _ANY


def _kind(value: Any) -> frozenset[str]:
    return _STRING if isinstance(value, str) else _OTHER


def _at(root: Mapping[str, Any], path: str) -> Any:
    node: Any = root
    for part in path.removeprefix("#/").split("/"):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def _as_json(text: str) -> str:
    """``text`` if it is JSON, or what Python writes for it; else a string of it."""
    stripped = text.strip()
    if stripped in _PYTHON:
        return _PYTHON[stripped]
    if _is_json(stripped):
        return stripped
    value = python_as_json(stripped)
    if value is not None and _is_json(value):
        return value
    return json.dumps(text, ensure_ascii=False)


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return True


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def tagged_alternatives(
    tools: Sequence[Tool],
    before: Callable[[str], str],
    argument: Callable[[str, bool], tuple[str, str]],
    after: str,
) -> str:
    """A grammar: ``start`` as one of the tools, ``before(name)``, its arguments in their order,
    those that are not required if they please, and ``after``.

    ``argument(name, is_text)`` is the text in front of a value, and behind it.
    """
    rules = []
    for number, tool in enumerate(tools):
        properties = tool.parameters.get("properties")
        required = tool.parameters.get("required")
        parts = []
        for place, (name, schema) in enumerate(
            properties.items() if isinstance(properties, Mapping) else ()
        ):
            rule = f"value_{number}_{place}"
            is_text = kinds_of(tool, name) == _STRING
            opening, closing = argument(name, is_text)
            choices = _texts(schema, tool.parameters) if is_text else None
            if not is_text:
                definitions = {
                    key: tool.parameters[key]
                    for key in ("$defs", "definitions")
                    if key in tool.parameters
                }
                whole = {**(schema if isinstance(schema, Mapping) else {}), **definitions}
                rules.append(f"{rule}: {json_rule(whole)} {json.dumps(closing)}")
            elif choices:
                rules.append(
                    f"{rule}: ({' | '.join(map(json.dumps, choices))}) {json.dumps(closing)}"
                )
            else:
                rules.append(f"{rule}[suffix={json.dumps(closing)}]: /(?s:.*)/")
            part = f"{json.dumps(opening)} {rule}"
            optional = not isinstance(required, list) or name not in required
            parts.append(f"({part})?" if optional else part)
        rules.append(f"arguments_{number}: {' '.join(parts) or json.dumps('')}")
    starts = "\n     | ".join(
        f"{before(tool.name)} arguments_{number} {after}" for number, tool in enumerate(tools)
    )
    return f"start: {starts}\n" + "\n".join(rules)


def _texts(schema: Any, root: Mapping[str, Any]) -> list[str]:
    """The strings that alone are valid, where a schema names them."""
    if isinstance(schema, Mapping) and isinstance(path := schema.get("$ref"), str):
        schema = _at(root, path)
    if not isinstance(schema, Mapping):
        return []
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []
