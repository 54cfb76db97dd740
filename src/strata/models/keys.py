"""Hyperparameters by one canonical name, read and checked from GGUF metadata or config.json."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from copy import copy
from typing import Any, Literal, TypeVar

import numpy as np

from strata.formats import ModelFile
from strata.formats.errors import shown
from strata.models import text_parts
from strata.models.errors import ConfigError
from strata.models.key_names import KEYS

_T = TypeVar("_T")
REQUIRED: Any = object()
"""The default that stands for: absence is an error."""


class Keys:
    """The hyperparameters of one file. Every reader checks type and range and names the key.

    ``default`` is returned where the key is absent or null; without one, absence is an error.
    """

    def __init__(self, file: ModelFile, architecture: str) -> None:
        self.kind: Literal["gguf", "huggingface"] = file.kind
        self.architecture = architecture
        self._prefix = f"{architecture}."
        metadata = file.metadata
        self._metadata: Mapping[str, Any] = (
            text_parts.settings(metadata) if file.kind == "huggingface" else metadata
        )

    def find(self, name: str) -> tuple[str, Any]:
        """The key as the file spells it, and its value (None where absent)."""
        gguf, others = KEYS[name]
        names: tuple[str, ...] = others
        if self.kind == "gguf":
            names = (self._gguf(gguf),) if gguf else ()
        for key in names:
            value = self._get(key)
            if value is not None:
                return key, value.tolist() if isinstance(value, np.ndarray) else value
        return (names[0] if names else name), None

    def _get(self, key: str) -> Any:
        """A value under the file's own key; with a dot in it, of an object in config.json."""
        # What is assumed lies under the whole name.
        if self.kind == "huggingface" and "." in key and key not in self._metadata:
            outer, key = key.split(".")
            inner = self._metadata.get(outer)
            return inner.get(key) if isinstance(inner, Mapping) else None
        return self._metadata.get(key)

    def without(self, *names: str) -> Keys:
        """The same keys but for some."""
        other = copy(self)
        keys = {self.find(name)[0] for name in names}
        other._metadata = {k: v for k, v in self._metadata.items() if k not in keys}
        return other

    def assuming(self, values: Mapping[str, Any]) -> Keys:
        """The same keys, and ``values`` by canonical name of what the file does not state."""
        other = copy(self)
        missing = {self.find(name)[0]: v for name, v in values.items() if not self.stated(name)}
        other._metadata = {**self._metadata, **missing}
        return other

    def stating(self, values: Mapping[str, Any]) -> Keys:
        """The same keys, but for ``values`` by canonical name, which follow from others."""
        other = self.without(*values)
        named = {KEYS[name][1][0]: value for name, value in values.items()}
        other._metadata = {**other._metadata, **named}
        return other

    def _gguf(self, key: str) -> str:
        """The whole key: but for xIELU's parameters it begins with the architecture."""
        return key if key.startswith("xielu.") else self._prefix + key

    def stated(self, name: str) -> bool:
        """Whether the file has the key at all; config.json says 'none' with an explicit null."""
        gguf, others = KEYS[name]
        names = (self._gguf(gguf or ""),) if self.kind == "gguf" else others
        return any(key in self._metadata or self._get(key) is not None for key in names)

    def raw(self, key: str) -> Any:
        """A value under the file's own key, None where absent; whoever asks checks it."""
        return self._metadata.get(key)

    def texts(self, name: str, count: int, known: Collection[str]) -> list[str] | None:
        """A list of ``count`` strings, each one of ``known``; None where absent."""
        key, value = self.find(name)
        if value is None:
            return None
        fits = isinstance(value, list) and len(value) == count
        if not fits or not all(isinstance(v, str) and v in known for v in value):
            words = ", ".join(sorted(known))
            raise ConfigError(f"'{key}': a list of {count} is expected, each one of {words}")
        return list(value)

    def flags(self, name: str, count: int) -> list[bool] | None:
        """A list of ``count`` truth values; None where absent or where it is a number."""
        key, value = self.find(name)
        if not isinstance(value, list):
            return None
        if len(value) != count:
            raise ConfigError(f"'{key}' lists {len(value)} layers; the model has {count}")
        if any(v not in (0, 1) for v in value):
            raise ConfigError(f"'{key}': a list of true or false is expected")
        return [bool(v) for v in value]

    def numbers(
        self,
        name: str,
        count: int,
        default: float = REQUIRED,
        *,
        low: float = 0.0,
        high: float = 1e9,
    ) -> list[float]:
        """A finite number for each of ``count`` layers: one for all, or a list."""
        key, value = self.find(name)
        if isinstance(value, list):
            if len(value) < count:
                raise ConfigError(f"'{key}' lists {len(value)} numbers for {count} layers")
            return [real(key, v, low, high) for v in value[:count]]
        return [self._or(key, default) if value is None else real(key, value, low, high)] * count

    def integer(
        self, name: str, default: int = REQUIRED, *, low: int = 1, high: int = 1 << 31
    ) -> int:
        """A whole number in ``low .. high``. A list (one a layer) must repeat one number."""
        key, value = self.find(name)
        if isinstance(value, list) and value:
            if any(v != value[0] for v in value):
                raise ConfigError(f"'{key}' differs from layer to layer: this is not supported")
            value = value[0]
        return self._or(key, default) if value is None else whole(key, value, low, high)

    def integers(
        self, name: str, count: int, default: int = REQUIRED, *, high: int = 1 << 31
    ) -> list[int]:
        """``count`` whole numbers, one a layer; where the file has one it is for all. 0 says that
        a layer has none."""
        key, value = self.find(name)
        if not isinstance(value, list):
            one = self._or(key, default) if value is None else whole(key, value, 0, high)
            return [one] * count
        if len(value) != count:
            raise ConfigError(f"'{key}' lists {len(value)} layers; the model has {count}")
        return [whole(key, v, 0, high) for v in value]

    def number(
        self, name: str, default: float = REQUIRED, *, low: float = 0.0, high: float = 1e9
    ) -> float:
        """A finite number in ``low .. high``."""
        key, value = self.find(name)
        return self._or(key, default) if value is None else real(key, value, low, high)

    def flag(self, name: str, default: bool = REQUIRED) -> bool:
        """True or false."""
        key, value = self.find(name)
        if value is None:
            return self._or(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"'{key}' is {shown(value)}: true or false is expected")
        return value

    def text(self, name: str, default: str = REQUIRED) -> str:
        """A string."""
        key, value = self.find(name)
        if value is None:
            return self._or(key, default)
        if not isinstance(value, str):
            raise ConfigError(f"'{key}' is {shown(value)}: a string is expected")
        return value

    @staticmethod
    def _or(key: str, default: _T) -> _T:
        if default is REQUIRED:
            raise ConfigError(f"'{key}' is missing: without it the model cannot be built")
        return default


def architecture(file: ModelFile) -> str:
    """The name under which the file's architecture is looked up, empty where there is none.

    Of a model that also sees or hears it is that of its text part.
    """
    if file.kind == "gguf":
        name = file.metadata.get("general.architecture")
        return name if isinstance(name, str) else ""
    names = file.metadata.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        name = file.metadata.get("model_type")
    return text_parts.family(name, file.metadata) if isinstance(name, str) else ""


def several_senses(file: ModelFile) -> bool:
    """Whether a directory is of a model that also sees or hears."""
    return file.kind == "huggingface" and text_parts.several_senses(file.metadata)


# What a GGUF file says in other words, or counts otherwise, than config.json.
_OTHERWISE = ("context", "window", "window_pattern", "rope_layers", "next_token_layers")
_REAL = ("eps", "softcap", "scale", "alibi", "clamp")


def mapped_keys(keys: Keys) -> dict[str, Any]:
    """The hyperparameters that config.json states and GGUF has a key for, without the prefix of the
    architecture, as a GGUF writer takes them. Positions are left to `rope.gguf_scaling`."""
    found: dict[str, Any] = {}
    for name, (gguf, _) in KEYS.items():
        key, value = keys.find(name)
        if gguf is None or value is None or name in _OTHERWISE or name.startswith("rope_"):
            continue
        if name == "layer_norm_eps" and key == "rms_norm_eps":
            continue
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(v, (bool, int, float)) for v in values):
            continue
        if all(isinstance(v, bool) for v in values):
            type: Any = np.bool_
        elif any(isinstance(v, float) for v in values) or name.endswith(_REAL):
            type = np.float32
            most = float(np.finfo(type).max)
            for v in values:
                real(key, float(v), -most, most)
        else:
            type = np.uint32
            for v in values:
                whole(key, v, 0, (1 << 32) - 1)
        array = np.array(values, type)
        found[gguf] = array if isinstance(value, list) else array[0]
    return found


def quantization_method(file: ModelFile) -> object:
    """What config.json says of how its weights were quantised, None where it says nothing."""
    stated = file.metadata.get("quantization_config") if file.kind == "huggingface" else None
    return stated.get("quant_method") or "" if isinstance(stated, Mapping) else stated


def mentions(file: ModelFile, key: str) -> bool:
    """Whether config.json has a key, at whatever depth."""
    return file.kind == "huggingface" and _mentions(file.metadata, key)


def _mentions(table: object, key: str) -> bool:
    return isinstance(table, Mapping) and (
        key in table or any(_mentions(value, key) for value in table.values())
    )


def whole(key: str, value: Any, low: int, high: int) -> int:
    """``value`` as an int in ``low .. high``, or ConfigError that names ``key``."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value != int(value):
        raise ConfigError(f"'{key}' is {shown(value)}: a whole number is expected")
    if not low <= value <= high:
        raise ConfigError(f"'{key}' is {shown(value)}: from {low} to {high} is expected")
    return int(value)


def real(key: str, value: Any, low: float, high: float) -> float:
    """``value`` as a finite float in ``low .. high``, or ConfigError that names ``key``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"'{key}' is {shown(value)}: a number is expected")
    if not low <= value <= high:
        raise ConfigError(f"'{key}' is {shown(value)}: from {low:g} to {high:g} is expected")
    return float(value)
