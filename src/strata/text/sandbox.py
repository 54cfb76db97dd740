"""The jinja2 environment in which a model's chat template runs: it comes from a stranger.

Semantics are those of transformers (block trimming, `tojson`, `raise_exception`, `strftime_now`,
`{% generation %}`, loop controls). On top of jinja2's sandbox, which keeps a template from the
interpreter's internals, work and size are bounded, so that it cannot hang or fill the memory.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 1 << 24  # of a prompt, and of any string or list a template builds on its way
MAX_STEPS = 5_000_000  # loop iterations and calls of one rendering: some seconds

_steps: ContextVar[list[int]] = ContextVar("steps")


class LimitError(TemplateError):
    """A template did more work, or built something larger, than any chat needs."""


def start_counting() -> None:
    """Give the rendering that begins in this context its own count of steps."""
    _steps.set([0])


def _step() -> None:
    count = _steps.get()
    count[0] += 1
    if count[0] > MAX_STEPS:
        raise LimitError(f"the template takes more than {MAX_STEPS} steps")


def _check_size(value: Any) -> Any:
    if isinstance(value, (str, list, tuple)) and len(value) > MAX_CHARACTERS:
        raise LimitError(f"the template builds a value of more than {MAX_CHARACTERS} elements")
    return value


def _weighed(value: Any) -> Any:
    """Refuse containers that would be huge when printed: one that holds another many times over."""
    weights: dict[int, int] = {}

    def weight(item: Any) -> int:
        if isinstance(item, str):
            return len(item)
        if not isinstance(item, (list, tuple, dict)):
            return 1
        known = weights.get(id(item))
        if known is None:
            members = itertools.chain(item, item.values()) if isinstance(item, dict) else item
            known = weights[id(item)] = 1 + sum(map(weight, members))
        return known

    if weight(value) > MAX_CHARACTERS:
        raise LimitError(f"the template builds a value of more than {MAX_CHARACTERS} elements")
    return value


def _check_arguments(arguments: Iterable[Any]) -> None:
    """Refuse what asks for a huge result: counts and widths, also inside format strings."""
    for value in arguments:
        if isinstance(value, int) and abs(value) > MAX_CHARACTERS:
            raise LimitError(f"the number {value:.3g} is too large for a chat template")


def _check_format(text: Any) -> None:
    if isinstance(text, str) and re.search(r"[%{][^a-zA-Z}]*\d{7}", text):
        raise LimitError("a width in a format string is too large for a chat template")


def _bounded_filter(function: Callable[..., Any]) -> Callable[..., Any]:
    # `wraps` keeps the marks by which jinja2 knows which filters want its context.
    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        _check_arguments((*args[1:], *kwargs.values()))
        _check_format(args[0] if function.__name__ == "do_format" else None)
        return _check_size(function(*args, **kwargs))

    return bounded


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step()
        yield item


def _joined(*parts: Any) -> str:
    texts = [str(part) for part in parts]
    if sum(map(len, texts)) > MAX_CHARACTERS:
        raise LimitError(f"the template builds a value of more than {MAX_CHARACTERS} elements")
    return "".join(texts)


class _Bounds(NodeTransformer):
    """Routes what the sandbox does not see through checks: loops, containers, the `~` operator."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.iter = _filter(node.iter, "strata_counted", [])
        return node

    def visit_List(self, node: nodes.List) -> nodes.Expr:
        return self._weigh(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        return self._weigh(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Expr:
        return self._weigh(node, [pair.value for pair in node.items])

    def _weigh(self, node: nodes.Expr, members: list[nodes.Expr]) -> nodes.Expr:
        self.generic_visit(node)
        plain = all(isinstance(member, nodes.Const) for member in members)
        return node if plain else _filter(node, "strata_weighed", [])

    def visit_Concat(self, node: nodes.Concat) -> nodes.Filter:
        self.generic_visit(node)
        return _filter(node.nodes[0], "strata_joined", node.nodes[1:])


def _filter(node: nodes.Node, name: str, arguments: list[nodes.Expr]) -> nodes.Filter:
    return nodes.Filter(node, name, arguments, [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """`{% generation %}` marks what a model wrote, for training; here only its body counts."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> nodes.Scope:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)  # what is set inside stays inside


class _ClosedNamespace(Namespace):
    """`namespace()` without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        values = dict(*args[1:], **kwargs)
        for name in values:
            _refuse_underscore(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_underscore(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # its values may hold it, or each other many times over


def _refuse_underscore(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold the name {name!r}")


class _Dict:
    """`dict(...)` without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        values: dict[Any, Any] = _weighed(dict(*args, **kwargs))
        return values


def _raise_exception(message: Any) -> None:
    raise TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes for HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """See the module."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, "jinja2.ext.loopcontrols"],
        )
        self.filters["tojson"] = _tojson
        self.filters = {name: _bounded_filter(f) for name, f in self.filters.items()}
        self.filters["strata_counted"] = _counted
        self.filters["strata_joined"] = _joined
        self.filters["strata_weighed"] = _weighed
        del self.globals["lipsum"]
        self.globals.update(
            raise_exception=_raise_exception,
            strftime_now=_strftime_now,
            dict=_Dict(),
            namespace=_ClosedNamespace,
        )

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _step()
        if isinstance(getattr(__obj, "__self__", None), (str, bytes, int)):
            _check_arguments((*args, *kwargs.values()))
            _check_format(getattr(__obj, "__self__", None))
        return _check_size(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            _check_arguments((left, right))
            if abs(right) * max(1, int(abs(left)).bit_length()) > 4096:
                raise LimitError("the power is too large for a chat template")
        elif operator == "*":
            for sequence, count in ((left, right), (right, left)):
                if isinstance(sequence, (str, list, tuple)) and isinstance(count, int):
                    _check_arguments((count, count * len(sequence)))
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
            _check_arguments(right if isinstance(right, tuple) else (right,))
        result = super().call_binop(context, operator, left, right)
        return _weighed(result) if isinstance(result, (list, tuple)) else _check_size(result)
