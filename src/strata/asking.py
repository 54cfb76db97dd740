"""What callers of the Python class may give, checked and put into one form before anything runs."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from numbers import Integral
from time import perf_counter
from typing import Any, TypeVar

from strata.decode import SamplingParams
from strata.decode.defaults import SamplingDefaults
from strata.decode.params import LARGEST_SEED
from strata.errors import ArgumentTypeError, UsageError

MOST_CHOICES = 128
"""Answers to one prompt."""

_LONG_LIST = 8
_EVERY_S = 0.2
_NAMES = tuple(field.name for field in fields(SamplingParams))

Item = TypeVar("Item")


def typed(name: str, value: object, *kinds: type, optional: bool = False) -> None:
    """ArgumentTypeError if ``value`` is of none of ``kinds``; a bool is no number."""
    if optional and value is None:
        return
    wrong = isinstance(value, bool) and bool not in kinds
    if wrong or not isinstance(value, kinds):
        wanted = " or ".join(_KIND_NAMES.get(kind, kind.__name__) for kind in kinds)
        raise ArgumentTypeError(f"{name} must be {wanted}, not {type(value).__name__}")


_KIND_NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    Mapping: "a dict",
    Sequence: "a list",
}


def prompts_of(given: object) -> tuple[list[str | list[int]], bool]:
    """Prompts, each text or token ids, and whether it was a single one. A prompt may also be a dict
    with ``prompt`` or ``prompt_token_ids``."""
    if isinstance(given, (str, Mapping)):
        return [_prompt(given)], True
    if _is_list(given):
        items = list(given)  # type: ignore[call-overload]
        if items and _is_id(items[0]):
            return [_prompt(items)], True
        return [_prompt(item, number) for number, item in enumerate(items)], False
    raise ArgumentTypeError(
        f"prompts must be text, a list of texts, or token ids, not {type(given).__name__}"
    )


def _prompt(item: object, number: int | None = None) -> str | list[int]:
    name = "the prompt" if number is None else f"prompt {number}"
    if isinstance(item, Mapping):
        known = [key for key in ("prompt", "prompt_token_ids") if item.get(key) is not None]
        if len(known) != 1 or set(item) - {"prompt", "prompt_token_ids"}:
            raise UsageError(f"{name} is a dict, which has either prompt or prompt_token_ids")
        item = item[known[0]]
        if known == ["prompt"] and not isinstance(item, str):
            raise ArgumentTypeError(f"{name} must be text, not {type(item).__name__}")
    if isinstance(item, str):
        return item
    if not _is_list(item):
        raise ArgumentTypeError(f"{name} must be text or token ids, not {type(item).__name__}")
    ids = list(item)  # type: ignore[call-overload]
    if wrong := [each for each in ids if not _is_id(each)]:
        raise ArgumentTypeError(f"{name} has {wrong[0]!r} among its token ids")
    return [int(each) for each in ids]


def conversations_of(given: object) -> tuple[list[Sequence[Mapping[str, Any]]], bool]:
    """Conversations, and whether it was a single one: a list of messages, or a list of those."""
    if isinstance(given, str):
        raise ArgumentTypeError('messages must be a list: [{"role": "user", "content": "..."}]')
    if not _is_list(given):
        raise ArgumentTypeError(f"messages must be a list, not {type(given).__name__}")
    items = list(given)  # type: ignore[call-overload]
    if not items:
        raise UsageError("there are no messages")
    one = not _is_list(items[0])
    batch = [items] if one else items
    for number, messages in enumerate(batch):
        where = "" if one else f" of conversation {number}"
        if not _is_list(messages) or not messages:
            raise UsageError(f"the messages{where} must be a list of at least one")
        for message in messages:
            _check_message(message, where)
    return [list(map(_plain, messages)) for messages in batch], one


def _plain(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """Content in parts as one text, where all of them are texts."""
    parts = message.get("content")
    if not isinstance(parts, list):
        return message
    texts = [part.get("text") if isinstance(part, Mapping) else None for part in parts]
    if not all(isinstance(text, str) for text in texts):
        raise UsageError("a part of a message's content is not text")
    return {**message, "content": "".join(map(str, texts))}


def _check_message(message: object, where: str) -> None:
    if not isinstance(message, Mapping):
        raise ArgumentTypeError(
            f'a message{where} must be a dict such as {{"role": "user", "content": "..."}}, not '
            f"{type(message).__name__}"
        )
    if not isinstance(message.get("role"), str):
        raise UsageError(f"a message{where} has no role, such as user or assistant")
    content = message.get("content")
    if content is None and len(message) < 3:
        raise UsageError(f"a message{where} has no content")
    if content is not None and not isinstance(content, (str, list)):
        raise ArgumentTypeError(
            f"the content of a message{where} must be text, not {type(content).__name__}"
        )


def params_of(given: object, defaults: SamplingDefaults, count: int) -> list[SamplingParams]:
    """One SamplingParams for each of ``count`` prompts: those given for all, or a list of so many.
    A dict changes the model's own defaults, which None are."""
    if not _is_list(given):
        return [_params(given, defaults)] * count
    each = list(given)  # type: ignore[call-overload]
    if len(each) != count:
        raise UsageError(f"there are {count} prompts, and parameters for {len(each)}")
    return [_params(item, defaults) for item in each]


def _params(given: object, defaults: SamplingDefaults) -> SamplingParams:
    if given is None:
        return defaults.params
    if isinstance(given, SamplingParams):
        return given
    if not isinstance(given, Mapping):
        raise ArgumentTypeError(
            f"parameters must be SamplingParams or a dict, not {type(given).__name__}"
        )
    for name in given:
        if name not in _NAMES:
            near = difflib.get_close_matches(str(name), _NAMES, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise UsageError(f"there is no parameter {name!r}{hint}")
    return defaults.with_said(given)


def choices(params: SamplingParams, n: int) -> list[SamplingParams]:
    """Of ``n`` answers to one prompt: with a seed, each has its own, one more than the last."""
    typed("n", n, int)
    if not 1 <= n <= MOST_CHOICES:
        raise UsageError(f"n must be from 1 to {MOST_CHOICES}, not {n}")
    if params.seed is None:
        return [params] * n
    return [replace(params, seed=(params.seed + i) & LARGEST_SEED) for i in range(n)]


def shaped(answers: list[Item], one: bool, n: int) -> Any:
    """Answers in the shape in which they were asked for: of ``one`` prompt, or of a list; each of
    them ``n``."""
    if n == 1:
        return answers[0] if one else answers
    groups = [answers[i : i + n] for i in range(0, len(answers), n)]
    return groups[0] if one else groups


def schema_of(schema: object) -> Mapping[str, Any]:
    """A JSON schema: itself, or that of a class of pydantic's."""
    if isinstance(schema, Mapping):
        return schema
    of_class = getattr(schema, "model_json_schema", None)
    if isinstance(schema, type) and callable(of_class):
        found: Mapping[str, Any] = of_class()
        return found
    raise ArgumentTypeError(
        "schema must be a JSON schema (a dict) or a class of pydantic's, not "
        f"{type(schema).__name__}"
    )


def parsed(schema: object, text: str) -> Any:
    """The value in an answer that obeys ``schema``: plain JSON, or an object of its class."""
    if isinstance(schema, Mapping):
        return json.loads(text)
    return schema.model_validate_json(text)  # type: ignore[attr-defined]


def shown(
    items: Iterator[Item], count: int, wanted: bool | None, is_done: Callable[[Item], bool]
) -> Iterator[Item]:
    """``items`` as they come, with a line on standard error that says how many of ``count`` answers
    are done: where it is ``wanted``, or for long lists before a terminal if that is None."""
    if wanted is False or (wanted is None and (count < _LONG_LIST or not sys.stderr.isatty())):
        yield from items
        return
    begun = drawn = perf_counter()
    done = 0
    for tokens, item in enumerate(items, 1):
        done += is_done(item)
        now = perf_counter()
        if done == count or now - drawn >= _EVERY_S:
            drawn = now
            speed = tokens / max(now - begun, 1e-9)
            end = "\n" if done == count else ""
            sys.stderr.write(f"\r[{done}/{count}] {speed:.0f} tok/s\x1b[K{end}")
            sys.stderr.flush()
        yield item


def _is_list(value: object) -> bool:
    if isinstance(value, (str, bytes, bytearray, Mapping)):
        return False
    return isinstance(value, Sequence) or hasattr(value, "__array__") or hasattr(value, "typecode")


def _is_id(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)
