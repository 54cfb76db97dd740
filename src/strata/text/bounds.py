"""How much a chat template may do: steps of a rendering, sizes of what it builds.

Sizes are checked before the work where one call can multiply its operands, afterwards elsewhere.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any

from jinja2.exceptions import TemplateError

MAX_CHARACTERS = 1 << 24  # of a prompt, and of any string or list a template builds on its way
MAX_STEPS = 5_000_000  # loop iterations and calls of one rendering: some seconds
_MAX_BITS = 1 << 12  # of a whole number that `*` or `**` makes

_steps: ContextVar[list[int]] = ContextVar("steps")


class LimitError(TemplateError):
    """A template did more work, or built something larger, than any chat needs."""


def start_counting() -> None:
    """Give the rendering that begins in this context its own count of steps."""
    _steps.set([0])


def step() -> None:
    """One loop iteration or call."""
    count = _steps.get()
    count[0] += 1
    if count[0] > MAX_STEPS:
        raise LimitError(f"the template takes more than {MAX_STEPS} steps")


def counted(items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, each a step."""
    for item in items:
        step()
        yield item


def _check(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise LimitError(f"the template builds a value of more than {MAX_CHARACTERS} elements")


def sized(value: Any) -> Any:
    """`value`, if it is not too long."""
    if isinstance(value, (str, list, tuple)):
        _check(len(value))
    return value


def weighed(value: Any) -> Any:
    """`value`, if it is not too long when printed: a list may hold another many times over."""
    _check(_weight(value, {}))
    return value


def _weight(item: Any, known: dict[int, int]) -> int:
    if isinstance(item, str):
        return len(item)
    if not isinstance(item, (list, tuple, dict)):
        return 1
    if id(item) not in known:
        members = itertools.chain(item, item.values()) if isinstance(item, dict) else item
        known[id(item)] = 1 + sum(_weight(member, known) for member in members)
    return known[id(item)]


def joined(*parts: Any) -> str:
    """What the operator `~` gives."""
    texts = [str(part) for part in parts]
    _check(sum(map(len, texts)))
    return "".join(texts)


def check_numbers(values: Iterable[Any]) -> None:
    """Refuse a number that, as a width or a count, would make something huge."""
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_CHARACTERS:
            raise LimitError("a number is too large for a chat template")


def check_call(name: str, subject: Any, arguments: Sequence[Any]) -> None:
    """Refuse a string method or filter whose result would be huge; `subject` is its string."""
    if name not in ("default", "d"):
        check_numbers(arguments)
    if name in ("translate", "maketrans"):
        raise LimitError(f"{name} is not for chat templates")
    if name == "join":
        separator, items = (
            (subject, arguments[0] if arguments else ())
            if isinstance(subject, str)
            else (arguments[0] if arguments else "", subject)
        )
        _check(len(str(separator)) * len(items))
    elif name == "replace" and len(arguments) > 1:
        _check(str(subject).count(str(arguments[0])) * len(str(arguments[1])))
    elif name == "expandtabs":
        _check(str(subject).count("\t") * (arguments[0] if arguments else 8))
    elif name == "indent":
        width = arguments[0] if arguments else 4
        lines = 1 + str(subject).count("\n")
        _check(lines * (width if isinstance(width, int) else len(str(width))))
    elif name == "wordwrap":
        _check(len(str(subject)) * max([1, *(len(a) for a in arguments if isinstance(a, str))]))
    elif name in ("format", "format_map") and isinstance(subject, str):
        check_format(subject, "{" if name == "format_map" else "{%", arguments)


def check_format(text: str, marks: str, values: Sequence[Any]) -> None:
    """Refuse a format string that is given a huge width, or a large value many times."""
    check_numbers(values)
    # A width is written out, or inside braces of its own.
    if re.search(r"\d{7}|\{[^{}]*\{", text):
        raise LimitError("a width in a format string is too large for a chat template")
    fields = max(text.count(mark) for mark in marks)
    _check(fields * max((_weight(value, {}) for value in values), default=0))


def check_operator(operator: str, left: Any, right: Any) -> None:
    """The same for `*`, `**` and `%`."""
    if operator == "%" and isinstance(left, str):
        check_format(left, "%", right if isinstance(right, tuple) else (right,))
    elif operator == "*" and isinstance(left, (str, list, tuple)) and isinstance(right, int):
        _check(len(left) * right)
    elif operator == "*" and isinstance(right, (str, list, tuple)) and isinstance(left, int):
        _check(len(right) * left)
    elif isinstance(left, int) and isinstance(right, int):
        bits = max(1, left.bit_length())
        if (bits * abs(right) if operator == "**" else bits + right.bit_length()) > _MAX_BITS:
            raise LimitError("a number is too large for a chat template")
