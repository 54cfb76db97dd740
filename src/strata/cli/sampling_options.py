"""The options that become SamplingParams."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import click

R = TypeVar("R")

_OPTIONS: dict[str, dict[str, Any]] = {
    "temperature": {"type": float, "help": "0, the default: the most probable token."},
    "top_k": {"type": int, "help": "Draw from the K most probable tokens."},
    "top_p": {"type": float, "help": "Draw from the likeliest tokens that hold this mass."},
    "min_p": {"type": float, "help": "Draw from tokens this likely beside the likeliest."},
    "seed": {"type": int, "help": "Makes draws repeatable."},
    "max_tokens": {"type": int, "help": "End after so many (default: when the context is full)."},
    "stop": {"multiple": True, "help": "Text that ends the answer; may be given several times."},
    "ignore_eos": {"is_flag": True, "default": None, "help": "Go on after end tokens."},
    "repetition_penalty": {"type": float, "help": "Above 1: against repeating."},
    "frequency_penalty": {"type": float, "help": "Off a token's logit per occurrence."},
    "presence_penalty": {"type": float, "help": "Off the logit of a token that occurred."},
}


def sampling_options(function: Callable[..., R]) -> Callable[..., R]:
    """Add the options; those that were given reach ``function`` as the dict ``sampling``."""

    @wraps(function)
    def collect(**arguments: Any) -> R:
        given = {name: arguments.pop(name) for name in _OPTIONS}
        sampling = {name: value for name, value in given.items() if value not in (None, ())}
        return function(sampling=sampling, **arguments)

    decorated: Callable[..., R] = collect
    for name, settings in reversed(_OPTIONS.items()):
        decorated = click.option(f"--{name.replace('_', '-')}", **settings)(decorated)
    return decorated
