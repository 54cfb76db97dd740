"""How tokens are chosen where nobody says: one policy for every protocol, the page, the commands
and Python.

What the model's authors state comes first: ``generation_config.json`` of a Hugging Face directory,
``general.sampling.*`` of a GGUF file. What they leave open is as in ``SamplingParams``, which is
greedy: the most probable token, so that an answer does not change from run to run. Every caller can
say otherwise.

Keys: https://huggingface.co/docs/transformers/main_classes/text_generation and gguf-py's
constants.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from strata.decode.params import SamplingParams
from strata.errors import UsageError
from strata.formats import ModelFile
from strata.formats.side_files import read_object
from strata.records import dataclass

_GENERATION_CONFIG = "generation_config.json"

_HUGGING_FACE: Mapping[str, str] = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
}
_GGUF: Mapping[str, str] = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
_DRAWN = ("top_k", "top_p", "min_p")
_WHEN_DRAWN = 1.0
"""The temperature where it is said how tokens are drawn, but none is given."""


@dataclass(frozen=True)
class SamplingDefaults:
    """``params`` for who says nothing, what the model ``states`` of them, and its ``source``: the
    name of a file or of keys, None where it states nothing."""

    params: SamplingParams
    states: Mapping[str, float]
    source: str | None

    def with_said(self, said: Mapping[str, Any], *, choices: int = 1) -> SamplingParams:
        """``params`` with what a caller says instead; None is not said.

        Who says how tokens are drawn (``top_k``, ``top_p``, ``min_p``) or wants several answers,
        and says no temperature, means to draw: at 1, unless the model states another.
        """
        given = {name: value for name, value in said.items() if value is not None}
        silent = "temperature" not in given and not self.params.temperature
        if silent and (choices > 1 or _draws(given)):
            given["temperature"] = _WHEN_DRAWN
        return replace(self.params, **given)


def sampling_defaults(file: ModelFile) -> SamplingDefaults:
    """The defaults of a model. Reads one small file at most. UsageError for a value that makes no
    sense, FormatError for a file that cannot be read."""
    if file.kind == "gguf":
        return _from("general.sampling", file.metadata, _GGUF)
    path = file.sidecar(_GENERATION_CONFIG)
    if path is None:
        return SamplingDefaults(SamplingParams(), {}, None)
    config = read_object(path, file.room)
    sampled = config.get("do_sample")
    if sampled is True:
        config.setdefault("temperature", _WHEN_DRAWN)
    elif sampled is False:
        # What else it says of drawing was left there: transformers does not look at it either.
        drawn = (*_DRAWN, "temperature")
        config = {name: value for name, value in config.items() if name not in drawn}
    return _from(_GENERATION_CONFIG, config, _HUGGING_FACE)


def _from(source: str, stated: Mapping[str, Any], names: Mapping[str, str]) -> SamplingDefaults:
    states: dict[str, Any] = {}
    for key, name in names.items():
        value = stated.get(key)
        if value is not None:
            states[name] = _number(value)
    if states.get("top_k") == -1:
        states["top_k"] = 0
    if "temperature" not in states and _draws(states):
        states["temperature"] = _WHEN_DRAWN
    try:
        params = SamplingParams(**states)
    except UsageError as error:
        raise UsageError(f"{source} of the model: {error}; correct the file") from None
    return SamplingDefaults(params, states, source if states else None)


def _number(value: Any) -> Any:
    """A value as it was written before it became one of GGUF's narrow numbers."""
    if isinstance(value, np.generic):
        value = value.item()
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _draws(said: Mapping[str, Any]) -> bool:
    """Whether it is said which tokens may be drawn, in a way that leaves several."""
    off = {field.name: field.default for field in fields(SamplingParams)}
    return any(name in said and said[name] not in (off[name], 1) for name in _DRAWN)
