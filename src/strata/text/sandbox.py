"""The jinja2 environment in which a model's chat template runs: it comes from a stranger.

Semantics are those of transformers (block trimming, `tojson`, `raise_exception`, `strftime_now`,
`{% generation %}`, loop controls). On top of jinja2's sandbox, which keeps a template from the
interpreter's internals, work and size are bounded (see `bounds`), so that it cannot hang or fill
the memory.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from jinja2 import Environment, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from strata.text.bounds import (
    check_call,
    check_operator,
    counted,
    joined,
    sized,
    step,
    weighed,
)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    # `wraps` keeps the marks by which jinja2 knows which filters want its context.
    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        subject = 1 if isinstance(args[0], (Context, Environment, nodes.EvalContext)) else 0
        if name == "join" and isinstance(args[subject], Iterator):
            args = (*args[:subject], list(args[subject]), *args[subject + 1 :])
        check_call(name, args[subject], (*args[subject + 1 :], *kwargs.values()))
        return sized(function(*args, **kwargs))

    return bounded


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
        values: dict[Any, Any] = weighed(dict(*args, **kwargs))
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
        self.filters = {name: _bounded_filter(name, f) for name, f in self.filters.items()}
        self.filters["strata_counted"] = counted
        self.filters["strata_joined"] = joined
        self.filters["strata_weighed"] = weighed
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
        step()
        # The sandbox wraps str.format; the method is underneath.
        method = getattr(__obj, "__wrapped__", __obj)
        owner = getattr(method, "__self__", None)
        if isinstance(owner, (str, bytes, int)):
            if args and isinstance(args[0], Iterator):
                args = (list(args[0]), *args[1:])
            check_call(method.__name__, owner, (*args, *kwargs.values()))
        return sized(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        check_operator(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        return weighed(result) if isinstance(result, (list, tuple)) else sized(result)
