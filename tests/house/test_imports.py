"""Imports point one way: from the command line down to the formats, never up."""

from __future__ import annotations

import ast
from pathlib import Path

from support.source_trees import SOURCE, trees

# Room -> level; a room imports rooms of lower levels, or those named beside it.
LEVELS = {
    "cli": 8,
    "server": 8,
    "async_llm": 8,
    "llm": 7,
    "answers": 6,
    "asking": 6,
    "report": 6,
    "engine": 5,
    "synth": 5,
    "quantizer": 5,
    "models": 4,
    "decode": 4,
    "kv": 3,
    "plan": 4,
    "machine": 3,
    "memory": 3,
    "backends": 2,
    "program": 2,
    "hub": 2,
    "text": 1,
    "formats": 1,
    "quant": 1,
    "guard": 0,
    "cgroups": 0,
    "cores": 0,
    "errors": 0,
    "giving_way": 0,
    "huge_pages": 0,
    "sizes": 0,
    "records": 0,
    "_native": 0,
}
NEIGHBOURS = {
    ("backends", "program"),
    ("formats", "quant"),
    ("text", "formats"),
    ("sizes", "errors"),
    ("cores", "cgroups"),
    ("guard", "errors"),
    ("cli", "server"),
    ("machine", "memory"),
    ("answers", "asking"),
}
# Lazy re-exports of the public API, and the entry point.
ABOVE_ALL = {"__init__", "__main__"}


def room(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return parts[0]


def imported(tree: ast.AST) -> set[str]:
    """What of strata a module imports, at its top or within functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            assert node.level == 0, "relative imports hide their direction"
            names = (
                [f"strata.{a.name}" for a in node.names]
                if node.module == "strata"
                else [node.module]
            )
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        found |= {name for name in names if name.startswith("strata.")}
    return found


def imported_rooms(tree: ast.AST) -> set[str]:
    """Rooms of strata that a module imports."""
    return {name.split(".")[1] for name in imported(tree)}


def violation(importer: str, imported: str) -> bool:
    if importer in ABOVE_ALL or importer == imported or imported.startswith("__"):
        return False
    return LEVELS[imported] >= LEVELS[importer] and (importer, imported) not in NEIGHBOURS


def test_imports_point_down() -> None:
    for path, tree in trees().items():
        for imported in imported_rooms(tree):
            assert not violation(room(path), imported), f"{path} must not import {imported}"


def test_nobody_knows_the_native_backend() -> None:
    """The machine room measures the native kernels; everybody else asks what backend there is."""
    for path, tree in trees().items():
        if room(path) not in ("backends", "machine"):
            known = [name for name in imported(tree) if name.startswith("strata.backends.cpu")]
            assert not known, path


def test_plans_are_made_without_native_code() -> None:
    for path, tree in trees().items():
        assert room(path) != "plan" or "_native" not in imported_rooms(tree), path.name


def test_an_upward_import_is_seen() -> None:
    tree = ast.parse("def f():\n    from strata.engine.engine import Engine")
    assert violation("formats", next(iter(imported_rooms(tree))))
    assert not violation("llm", "engine")
