"""What a wheel has beside code: one version, and types for those who check theirs."""

from __future__ import annotations

import ast
import importlib.metadata
from pathlib import Path

import strata
from strata import _native


def test_the_version_is_the_one_of_the_package() -> None:
    assert importlib.metadata.version("strata-llm") == strata.__version__


def test_types_are_shipped() -> None:
    assert (Path(strata.__file__).parent / "py.typed").exists()
    assert _native.__file__ is not None
    stub = Path(_native.__file__).with_name("_native.pyi")
    described = set()
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            described.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            described.add(node.target.id)
    assert {name for name in dir(_native) if not name.startswith("_")} <= described
