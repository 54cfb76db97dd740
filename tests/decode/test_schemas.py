"""How schemas are read: objects have what they name, and nothing is changed that depends on it."""

from __future__ import annotations

from typing import Any

import pytest

from strata.decode.schemas import closed, enforced

OBJECT: dict[str, Any] = {"type": "object", "properties": {"a": {"type": "integer"}}}
CLOSED = {**OBJECT, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (OBJECT, CLOSED),
        ({"type": "object"}, {"type": "object"}),
        ({**OBJECT, "additionalProperties": True}, {**OBJECT, "additionalProperties": True}),
        ({**OBJECT, "patternProperties": {"x": {}}}, {**OBJECT, "patternProperties": {"x": {}}}),
        (
            {"properties": {"o": OBJECT}},
            {"properties": {"o": CLOSED}, "additionalProperties": False},
        ),
        ({"additionalProperties": OBJECT}, {"additionalProperties": CLOSED}),
        ({"items": OBJECT, "$defs": {"o": OBJECT}}, {"items": CLOSED, "$defs": {"o": CLOSED}}),
        ({"anyOf": [OBJECT, {"type": "null"}]}, {"anyOf": [CLOSED, {"type": "null"}]}),
        ({"prefixItems": [OBJECT]}, {"prefixItems": [CLOSED]}),
        ({"oneOf": [OBJECT], "discriminator": {}}, {"oneOf": [CLOSED], "discriminator": {}}),
        ({"enum": [OBJECT], "const": OBJECT}, {"enum": [OBJECT], "const": OBJECT}),
        # Properties may have the names of keywords.
        (
            {"properties": {"properties": {"type": "string"}}},
            {"properties": {"properties": {"type": "string"}}, "additionalProperties": False},
        ),
        ({"items": True}, {"items": True}),
    ],
)
def test_objects_have_what_they_name(schema: Any, expected: Any) -> None:
    assert closed(schema) == expected


@pytest.mark.parametrize(
    "schema",
    [
        {"allOf": [OBJECT, {"properties": {"b": {}}}]},
        {"$defs": {"o": OBJECT}, "allOf": [{"$ref": "#/$defs/o"}, {"properties": {"b": {}}}]},
        {"items": {**OBJECT, "if": {}, "then": {"properties": {"b": {}}}}},
        {**OBJECT, "anyOf": [{"properties": {"b": {}}}, {"required": ["a"]}]},
        {**OBJECT, "$ref": "#/$defs/o", "$defs": {"o": OBJECT}},
        {"oneOf": [OBJECT, {"properties": {"b": {}}}]},
        {"not": OBJECT},
    ],
)
def test_what_is_composed_is_left_alone(schema: Any) -> None:
    assert closed(schema) == schema


def test_what_no_grammar_enforces_is_left_open() -> None:
    schema = {
        "type": "object",
        "properties": {
            "ids": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
            "when": {"type": "string", "format": "date-time"},
            "name": {"type": "string", "format": "slug", "pattern": "^(?=a)[a-z]+$"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
            "kind": {"oneOf": [{"const": "a"}, {"not": {"const": "b"}, "type": "string"}]},
            "not": {"type": "string"},
        },
        "propertyNames": {"pattern": "^[a-z]+$"},
        "if": {"required": ["ids"]},
        "then": {"required": ["name"]},
        "dependentRequired": {},
    }
    found, left_out = enforced(schema)
    assert found == {
        "type": "object",
        "properties": {
            "ids": {"type": "array", "items": {"type": "integer"}},
            "when": {"type": "string", "format": "date-time"},
            "name": {"type": "string"},
            "code": {"type": "string", "pattern": "^[A-Z]{2}$"},
            "kind": {"anyOf": [{"const": "a"}, {"type": "string"}]},
            # A property may be called so.
            "not": {"type": "string"},
        },
    }
    assert left_out == [
        "properties.ids.uniqueItems",
        "properties.name.format (slug)",
        "properties.name.pattern",
        "properties.kind.oneOf.1.not",
        "propertyNames",
        "if",
        "then",
    ]
    assert enforced(found) == (found, [])
