"""The options that become SamplingParams, and what an answer must obey."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

R = TypeVar("R")

_OPTIONS: dict[str, dict[str, Any]] = {
    "temperature": {
        "type": float,
        "help": "0: always the most probable token (default: as the model says, else 0).",
    },
    "top_k": {"type": int, "help": "Sample from the K most probable tokens only (0: from all)."},
    "top_p": {
        "type": float,
        "help": "Sample from the most probable tokens that add up to P.",
    },
    "min_p": {
        "type": float,
        "help": "Sample from tokens at least P times as probable as the first.",
    },
    "seed": {"type": int, "help": "Makes sampling repeatable."},
    "max_tokens": {
        "type": int,
        "help": "Most tokens of an answer (default, and -1: until the context is full).",
    },
    "stop": {"multiple": True, "help": "Text that ends the answer; may be repeated."},
    "ignore_eos": {"is_flag": True, "default": None, "help": "Continue past end-of-text tokens."},
    "repetition_penalty": {"type": float, "help": "Above 1, discourages repetition."},
    "frequency_penalty": {
        "type": float,
        "help": "Subtracted from a token's logit for each time it has occurred.",
    },
    "presence_penalty": {
        "type": float,
        "help": "Subtracted once from a token's logit if it has occurred.",
    },
}

_SHORT = {"max_tokens": ["-n"]}


def sampling_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add the options; those that were given reach ``function`` as the dict ``sampling``."""

    @wraps(function)
    def collect(**arguments: Any) -> R:
        given = {name: arguments.pop(name) for name in _OPTIONS}
        sampling = {name: value for name, value in given.items() if value not in (None, ())}
        if sampling.get("max_tokens") == -1:
            del sampling["max_tokens"]
        return function(sampling=sampling, **arguments)

    decorated: Callable[..., R] = collect
    for name, settings in reversed(_OPTIONS.items()):
        names = [*_SHORT.get(name, ()), f"--{name.replace('_', '-')}"]
        decorated = click.option(*names, **settings)(decorated)
    return decorated


Constraint = dict[str, Any]
"""What ``LLM.compile`` is given."""

_GRAMMARS = ("json_schema", "json_schema_file", "grammar", "grammar_file", "regex")


def grammar_options(function: Callable[..., R]) -> Callable[..., R]:
    """``--json-schema``, ``--grammar``, their files and ``--regex``; what was given reaches
    ``function`` as ``constraint``."""

    @wraps(function)
    def collect(**arguments: Any) -> R:
        given = {name: arguments.pop(name) for name in _GRAMMARS}
        return function(constraint=_constraint(given), **arguments)

    decorated: Callable[..., R] = collect
    path = click.Path(exists=True, dir_okay=False, path_type=Path)
    for name, type, help in (
        ("--regex", None, "Answer with text that matches this expression as a whole."),
        ("--grammar-file", path, "A file of such a grammar."),
        ("--grammar", None, "Answer by this grammar (llama.cpp's GBNF, or Lark)."),
        ("--json-schema-file", path, "A file of such a schema."),
        ("--json-schema", None, "Answer with JSON that is valid under this schema."),
    ):
        decorated = click.option(name, type=type, help=help)(decorated)
    return decorated


def _constraint(given: dict[str, Any]) -> Constraint | None:
    from strata.errors import UsageError

    said = {name: value for name, value in given.items() if value is not None}
    if not said:
        return None
    if len(said) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in said)
        raise UsageError(f"{names} exclude each other")
    ((name, value),) = said.items()
    text = _read(value) if name.endswith("_file") else value
    kind = name.removesuffix("_file")
    if kind != "json_schema":
        return {kind: text}
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the JSON schema is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise UsageError("a JSON schema is an object")
    return {kind: schema}


def template_text(given: str) -> str:
    """A chat template, given itself, as the name of its file, or by llama.cpp's name for it."""
    from strata.text.template_names import TEMPLATES

    if "{" in given or given in TEMPLATES:
        return given
    path = Path(given)
    if not path.is_file():
        from strata.errors import UsageError

        names = ", ".join(TEMPLATES)
        raise UsageError(
            f"there is no chat template {given}: it is a template, a file of one, or one of {names}"
        )
    return _read(path)


def _read(path: Path) -> str:
    from strata.cli.engine_options import read_text

    return read_text(path)
