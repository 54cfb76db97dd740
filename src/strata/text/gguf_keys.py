"""What a GGUF file says about its tokenizer: the one place where these keys are read, each checked
for its type, range and length. Key names are those of the GGUF specification.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from strata.formats.errors import shown
from strata.formats.gguf_values import PackedStrings
from strata.text.errors import TokenizerError
from strata.text.pipeline import MAX_TOKEN_CHARACTERS, MAX_VOCABULARY

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_MAX_TEMPLATE_CHARACTERS = 1_000_000
# Strings that are looked at together: one by one each costs several times as much.
_TOGETHER = 1024


class TokenizerKeys:
    """The keys of `tokenizer.ggml`, without that prefix. TokenizerError for what they cannot be."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata

    def has(self, key: str) -> bool:
        """Whether the file has the key."""
        return _PREFIX + key in self._metadata

    def text(self, key: str) -> str:
        """A string, empty where there is none."""
        return _text(self._metadata, _PREFIX + key)

    def general(self, key: str) -> str:
        """The string `general.KEY`, empty where there is none."""
        return _text(self._metadata, f"general.{key}")

    def flag(self, key: str, default: bool) -> bool:
        """True or false; old converters write 1 and 0."""
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            return default
        if not isinstance(value, int) or value not in (0, 1):
            raise TokenizerError(f"{_PREFIX}{key} is {shown(value)}: true or false is expected")
        return bool(value)

    def id(self, key: str) -> int | None:
        """A token id, not yet held against the vocabulary: files write -1 or 2**32-1 for none."""
        value = self._metadata.get(_PREFIX + key)
        if value is None:
            return None
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, np.integer)):
            raise TokenizerError(f"{_PREFIX}{key} must be a token id, not {shown(value)}")
        return int(value)

    def strings(self, key: str) -> Sequence[str]:
        """An array of strings that are UTF-8 and no longer than any token."""
        name = _PREFIX + key
        values = self._metadata.get(name)
        if values is None:
            raise TokenizerError(f"the file has no {name}: it holds no usable vocabulary")
        if not isinstance(values, PackedStrings):
            if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
                raise TokenizerError(
                    f"{name} must be an array of strings, not {type(values).__name__}"
                )
            values = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values]
            if not all(isinstance(text, str) for text in values):
                raise TokenizerError(f"{name} must be an array of strings")
        _check_strings(values, name)
        return values

    def numbers(self, key: str, count: int, default: float) -> list[Any]:
        """As many numbers as there are tokens, ``default`` for each where there is no such key."""
        name = _PREFIX + key
        values = self._metadata.get(name)
        if values is None:
            return [default] * count
        if isinstance(values, (str, bytes)) or not hasattr(values, "__len__"):
            raise TokenizerError(f"{name} must be an array of numbers, not {type(values).__name__}")
        try:
            array = np.asarray(values)
        except ValueError:  # lists of different lengths
            array = np.empty(0, object)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "biuf"):
            raise TokenizerError(f"{name} must be an array of numbers")
        if len(array) < count:
            raise TokenizerError(f"{name} has {len(array)} entries for {count} tokens")
        if np.isnan(array[:count]).any():
            raise TokenizerError(f"{name} holds values that are not numbers")
        numbers: list[Any] = array[:count].tolist()
        return numbers

    def table(self, key: str) -> bytes | None:
        """An array of bytes, None where there is none."""
        value = self._metadata.get(_PREFIX + key)
        if value is None or isinstance(value, bytes):
            return value
        array = np.asarray(value)
        if array.ndim != 1 or array.dtype.kind not in "iu" or array.dtype.itemsize != 1:
            raise TokenizerError(f"{_PREFIX}{key} must be an array of bytes")
        return array.tobytes()

    def sizes(self) -> tuple[int, int] | None:
        """How many tokens and merges there are; None where the file has no tokens."""
        tokens, merges = self._length("tokens"), self._length("merges")
        return None if tokens is None else (tokens, merges or 0)

    def _length(self, key: str) -> int | None:
        value = self._metadata.get(_PREFIX + key)
        return len(value) if isinstance(value, (Sequence, np.ndarray)) else None

    def chat_templates(self) -> dict[str, str]:
        """`tokenizer.chat_template` is the default; `tokenizer.chat_template.NAME` are named."""
        found = {}
        for key, text in self._metadata.items():
            if key != _TEMPLATE and not key.startswith(_TEMPLATE + "."):
                continue
            name = key.removeprefix(_TEMPLATE).removeprefix(".") or "default"
            if not isinstance(text, str):
                raise TokenizerError(f"the chat template {shown(name)} of the file is not a string")
            if len(text) > _MAX_TEMPLATE_CHARACTERS:
                raise TokenizerError(
                    f"the chat template {shown(name)} of the file has {len(text)} characters; at "
                    f"most {_MAX_TEMPLATE_CHARACTERS} are read"
                )
            found[name] = text
        return found


def _text(metadata: Mapping[str, Any], key: str) -> str:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise TokenizerError(f"{key} is {shown(value)}: a string is expected")
    return value or ""


def _check_strings(texts: Sequence[str], name: str) -> None:
    if name.endswith("tokens") and len(texts) > MAX_VOCABULARY:
        raise TokenizerError(f"{name} has {len(texts)} entries; at most {MAX_VOCABULARY} are known")
    left = iter(texts)
    while together := list(islice(left, _TOGETHER)):
        _check_together(together, name)


def _check_together(texts: list[str], name: str) -> None:
    # A merge is two tokens and a space.
    if max(map(len, texts), default=0) > 2 * MAX_TOKEN_CHARACTERS:
        raise TokenizerError(
            f"{name} holds a text of {max(map(len, texts))} characters; no token has more than "
            f"{MAX_TOKEN_CHARACTERS}"
        )
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        wrong = next(text for text in texts if not _is_utf8(text))
        raise TokenizerError(
            f"{name} holds {shown(wrong)}, which is not UTF-8: the file is damaged"
        ) from None


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
