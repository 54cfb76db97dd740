"""``GET /docs``: the OpenAPI document for people, without scripts or files from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any


def reference_page(document: Mapping[str, Any]) -> str:
    """Every endpoint of an OpenAPI document with the fields of its body, as HTML."""
    groups: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            group = groups.setdefault(operation["tags"][0], [])
            group.append(_endpoint(method.upper(), path, operation, document))
    parts = "".join(
        f"<section><h2>{escape(name)}</h2>{''.join(endpoints)}</section>"
        for name, endpoints in groups.items()
    )
    title = f"{document['info']['title']} {document['info']['version']}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}: endpoints</title>"
        '<link rel="icon" href="/web/icon.svg"><link rel="stylesheet" href="/web/style.css">'
        f'</head><body class="reference"><main><h1>{escape(title)}</h1>'
        f"<p>{escape(document['info']['description'])} For programs: "
        '<a href="/openapi.json">openapi.json</a>.</p>'
        f"{parts}</main></body></html>"
    )


def _endpoint(
    method: str, path: str, operation: Mapping[str, Any], document: Mapping[str, Any]
) -> str:
    rows = [
        _row(each["name"], each["schema"], each.get("required", False))
        for each in operation.get("parameters", ())
    ]
    for body in operation.get("requestBody", {}).get("content", {}).values():
        schema = _followed(body["schema"], document)
        required = schema.get("required", ())
        fields = schema.get("properties", {})
        rows += [_row(name, field, name in required) for name, field in fields.items()]
    about = escape(operation.get("description", "")).replace("\n", " ")
    said = f"<h3>{method} <code>{escape(path)}</code></h3><p>{about}</p>"
    if not rows:
        return said
    head = "<tr><th>Field</th><th>Type</th><th>Meaning</th></tr>"
    return (
        f"{said}<details><summary>Fields of {method} {escape(path)}</summary>"
        f"<table>{head}{''.join(rows)}</table></details>"
    )


def _row(name: str, schema: Mapping[str, Any], required: bool) -> str:
    about = schema.get("description", "")
    if required:
        about = f"Required. {about}"
    elif schema.get("default") is not None:
        about = f"{about} (default: {schema['default']})"
    kind = escape(_kind(schema))
    return f"<tr><td><code>{escape(name)}</code></td><td>{kind}</td><td>{escape(about)}</td></tr>"


def _kind(schema: Mapping[str, Any]) -> str:
    """A schema in a word or two."""
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if any_of := schema.get("anyOf"):
        return " | ".join(dict.fromkeys(map(_kind, any_of)))
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("__", 1)[-1].rsplit("/", 1)[-1]
    if schema.get("type") == "array":
        return f"array of {_kind(schema.get('items', {}))}"
    return str(schema.get("type", "any"))


def _followed(schema: Mapping[str, Any], document: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in schema:
        return schema
    found: Mapping[str, Any] = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[-1]]
    return found
