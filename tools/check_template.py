"""Whether chat templates take time and memory that are linear in what they are given.

    python tools/check_template.py FILE...

prints for each the line for ``src/strata/guard/known_templates.py``, or why it does not belong
there. What is not known to be linear is refused: a refused template is still rendered, in a guarded
process. A macro is looked at for each of its calls, with what it is called with.

Every value has a level: that of the loop whose turns each have one of their own, 0 for what there
is once of the whole input, CONSTANT for what no input makes longer. Going through a value, or
writing it, is allowed in a loop of that level or outside it: then all turns together go through the
input once. What a request may set beside messages and tools is short, and counts as constant.
"""

from __future__ import annotations

import sys
from pathlib import Path

from jinja2 import nodes

from strata.guard.known_templates import digest
from strata.guard.sandbox import ChatEnvironment

FILTERS = frozenset(
    [
        "capitalize",
        "count",
        "d",
        "default",
        "dictsort",
        "e",
        "escape",
        "first",
        "float",
        "int",
        "items",
        "join",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "safe",
        "select",
        "selectattr",
        "string",
        "title",
        "tojson",
        "trim",
        "upper",
    ]
)
"""Those that are linear in what they are given, where their arguments are constants."""

TESTS = frozenset(
    [
        "boolean",
        "defined",
        "divisibleby",
        "eq",
        "equalto",
        "even",
        "false",
        "float",
        "ge",
        "gt",
        "in",
        "integer",
        "iterable",
        "le",
        "lt",
        "mapping",
        "ne",
        "none",
        "number",
        "odd",
        "sameas",
        "sequence",
        "string",
        "true",
        "undefined",
    ]
)
METHODS = frozenset(
    [
        "endswith",
        "find",
        "get",
        "items",
        "keys",
        "lower",
        "lstrip",
        "lstrip",
        "replace",
        "rsplit",
        "rstrip",
        "split",
        "splitlines",
        "startswith",
        "strip",
        "title",
        "upper",
        "values",
    ]
)
"""Of texts and mappings, likewise."""

FUNCTIONS = frozenset(["namespace", "raise_exception", "strftime_now"])
LOOP_INDICES = frozenset(["index", "index0", "revindex", "revindex0"])
LOOP_NUMBERS = LOOP_INDICES | {"length", "depth", "depth0"}
LOOP_VALUES = LOOP_NUMBERS | {"first", "last", "previtem", "nextitem"}
MOST_INDENT = 4
"""Of ``tojson``: bodies are nested 64 deep at most, and each value is counted with more than this
makes of it."""

CONSTANT = sys.maxsize
INPUTS = ("messages", "tools", "documents")


class NotLinear(Exception):
    """What is not known to be linear."""

    def __init__(self, node: nodes.Node, what: str) -> None:
        super().__init__(f"line {node.lineno}: {what}")


class Checker:
    """Goes through a template once, raising NotLinear."""

    def __init__(self, source: str) -> None:
        self.template = ChatEnvironment().parse(source)
        self.depth = 0
        self.loops: list[bool] = []  # whether ``loop`` is that of the innermost one
        self.names: dict[str, int] = dict.fromkeys(INPUTS, 0)
        self.macros: dict[str, nodes.Macro] = {}
        self.calling: list[str] = []
        self.top = self.names
        self.kept: dict[tuple[str, str], int] = {}
        self.kept = self._kept()

    def check(self) -> None:
        self.statements(self.template.body)

    def _kept(self) -> dict[tuple[str, str], int]:
        """Attributes of namespaces: CONSTANT where only numbers and constants are kept, else 0,
        because what is kept is there in every turn."""
        kept: dict[tuple[str, str], int] = {}
        for assign in self.template.find_all(nodes.Assign):
            if isinstance(assign.target, nodes.NSRef):
                key = (assign.target.name, assign.target.attr)
                plain = self.is_plain(assign.node) or _is_increment(assign.node, *key)
                kept[key] = min(kept.get(key, CONSTANT), CONSTANT if plain else 0)
        for block in self.template.find_all(nodes.AssignBlock):
            if isinstance(block.target, nodes.NSRef):
                kept[block.target.name, block.target.attr] = 0
        return kept

    def is_plain(self, node: nodes.Node) -> bool:
        """Whether it is a constant, a truth value or a number of the loop or of a length."""
        match node:
            case nodes.Const() | nodes.Compare() | nodes.Not() | nodes.Test():
                return True
            case nodes.List() | nodes.Dict():
                return not node.items
            case nodes.And() | nodes.Or():
                return self.is_plain(node.left) and self.is_plain(node.right)
            case nodes.CondExpr():
                other = node.expr2 is None or self.is_plain(node.expr2)
                return self.is_plain(node.expr1) and other
        return self.is_number(node)

    def is_number(self, node: nodes.Node) -> bool:
        match node:
            case nodes.Const():
                return isinstance(node.value, int)
            case nodes.Getattr(node=nodes.Name(name="loop")):
                return node.attr in LOOP_NUMBERS
            case nodes.Getattr(node=nodes.Name(name=name)):
                return self.kept.get((name, node.attr)) == CONSTANT
            case nodes.Filter():
                return node.name in ("length", "count")
            case nodes.Add() | nodes.Sub():
                return self.is_number(node.left) and self.is_number(node.right)
        return False

    # Statements: the level of what they write. ----------------------------------------------------

    def statements(self, body: list[nodes.Node]) -> int:
        return min([CONSTANT, *map(self.statement, body)])

    def statement(self, node: nodes.Node) -> int:
        match node:
            case nodes.Output():
                written = [
                    self.used(n) for n in node.nodes if not isinstance(n, nodes.TemplateData)
                ]
                return min([CONSTANT, *written])
            case nodes.If():
                return self.branches(node)
            case nodes.For():
                return self.loop(node)
            case nodes.Assign():
                self.assign(node.target, self.value(node.node), node.node)
            case nodes.AssignBlock() if node.filter is None:
                self.assign(node.target, self.statements(node.body), None)
            case nodes.Macro():
                self.macros[node.name] = node
            case nodes.ExprStmt():
                self.value(node.node)
            case nodes.Scope() | nodes.ScopedEvalContextModifier():
                return self.statements(node.body)
            case nodes.Break() | nodes.Continue():
                pass
            case _:
                raise NotLinear(node, type(node).__name__)
        return CONSTANT

    def assign(self, target: nodes.Node, level: int, value: nodes.Node | None) -> None:
        match target:
            case nodes.Name():
                self.names[target.name] = level
                if isinstance(value, nodes.Call) and _called(value) == "namespace":
                    for keyword in value.kwargs:
                        key = (target.name, keyword.key)
                        plain = self.is_plain(keyword.value)
                        self.kept[key] = min(self.kept.get(key, CONSTANT), CONSTANT if plain else 0)
            case nodes.NSRef():
                pass  # see _kept
            case nodes.Tuple():
                for part in target.items:
                    self.assign(part, level, None)
            case _:
                raise NotLinear(target, type(target).__name__)

    def branches(self, node: nodes.If) -> int:
        before = self.names
        ends, written = [], []
        tests: list[tuple[nodes.Node | None, list[nodes.Node]]] = [(node.test, node.body)]
        tests += [(branch.test, branch.body) for branch in node.elif_]
        tests.append((None, node.else_))
        for test, body in tests:
            self.names = dict(before)
            once = test is not None and self.happens_once(test)
            if test is not None:
                self.value(test)
            if once:
                self.depth -= 1
                self.loops[-1] = False
            written.append(self.statements(body))
            if once:
                self.depth += 1
                self.loops[-1] = True
            ends.append(self.names)
        names = {name for end in ends for name in end}
        self.names = {n: min(end.get(n, CONSTANT) for end in ends) for n in names}
        return min(written)

    def happens_once(self, test: nodes.Node) -> bool:
        """Whether a test holds in one turn of the innermost loop at most."""
        if not (self.loops and self.loops[-1]):
            return False
        match test:
            case nodes.Getattr(node=nodes.Name(name="loop")):
                return test.attr in ("first", "last")
            case nodes.And():
                return self.happens_once(test.left) or self.happens_once(test.right)
            case nodes.Compare(ops=[nodes.Operand(op="eq", expr=nodes.Const())]):
                at = test.expr
                of_loop = isinstance(at, nodes.Getattr) and _name(at.node) == "loop"
                return of_loop and at.attr in LOOP_INDICES
        return False

    def loop(self, node: nodes.For) -> int:
        if node.recursive:
            raise NotLinear(node, "a recursive loop")
        level = self.used(node.iter)
        outer = self.names
        if not self.loops and not self.calling:
            self.top = outer
        self.names = dict(outer)
        self.depth += 1
        self.loops.append(True)
        self.assign(node.target, CONSTANT if level == CONSTANT else self.depth, None)
        if node.test is not None:
            self.value(node.test)
        written = self.statements(node.body)
        self.loops.pop()
        self.depth -= 1
        self.names = dict(outer)
        if node.else_:
            written = min(written, self.statements(node.else_))
        self.names = outer
        # Of all turns together.
        return min(level, self.depth if written != CONSTANT else CONSTANT)

    # Expressions. ---------------------------------------------------------------------------------

    def used(self, node: nodes.Node) -> int:
        """The level of a value that is gone through here."""
        level = self.value(node)
        if level < self.depth:
            raise NotLinear(node, "is gone through in every turn of a loop")
        return level

    def all_used(self, *found: nodes.Node | None) -> int:
        return min([CONSTANT, *(self.used(n) for n in found if n is not None)])

    def value(self, node: nodes.Node) -> int:
        match node:
            case nodes.Const() | nodes.TemplateData():
                return CONSTANT
            case nodes.Name():
                return self.names.get(node.name, CONSTANT)
            case nodes.List() | nodes.Tuple():
                return min([CONSTANT, *map(self.value, node.items)])
            case nodes.Dict():
                return min([CONSTANT, *(self.value(pair.value) for pair in node.items)])
            case nodes.Getattr():
                return self.attribute(node)
            case nodes.Getitem():
                return self.item(node)
            case nodes.Not() | nodes.Neg() | nodes.Pos():
                self.value(node.node)
                return CONSTANT
            case nodes.And() | nodes.Or():
                return min(self.value(node.left), self.value(node.right))
            case nodes.CondExpr():
                self.value(node.test)
                other = CONSTANT if node.expr2 is None else self.value(node.expr2)
                return min(self.value(node.expr1), other)
            case nodes.Add() | nodes.Sub():
                return self.all_used(node.left, node.right)
            case nodes.Concat():
                return self.all_used(*node.nodes)
            case nodes.Mod() | nodes.FloorDiv():
                if not (self.is_number(node.left) and isinstance(node.right, nodes.Const)):
                    raise NotLinear(node, "a division, or a format, of what may be no number")
                return CONSTANT
            case nodes.Compare():
                return self.compare(node)
            case nodes.Filter():
                return self.filter(node)
            case nodes.Test():
                return self.test(node)
            case nodes.Call():
                return self.call(node)
        raise NotLinear(node, type(node).__name__)

    def attribute(self, node: nodes.Getattr) -> int:
        if isinstance(node.node, nodes.Name):
            name = node.node.name
            if name == "loop":
                if node.attr not in LOOP_VALUES:
                    raise NotLinear(node, f"loop.{node.attr}")
                return self.depth if node.attr.endswith("item") else CONSTANT
            if (name, node.attr) in self.kept:
                return self.kept[name, node.attr]
        return self.value(node.node)

    def item(self, node: nodes.Getitem) -> int:
        if isinstance(node.arg, nodes.Slice):
            for part in (node.arg.start, node.arg.stop, node.arg.step):
                if part is not None:
                    self.value(part)
            return self.used(node.node)
        level = self.value(node.node)
        self.value(node.arg)
        at = node.arg.left if isinstance(node.arg, (nodes.Add, nodes.Sub)) else node.arg
        if isinstance(at, nodes.Getattr) and self.is_number(at) and self.is_number(node.arg):
            # Another one in each turn.
            return max(level, self.depth) if level == self.depth - 1 else level
        return level

    def compare(self, node: nodes.Compare) -> int:
        sides = [node.expr, *(operand.expr for operand in node.ops)]
        kinds = {operand.op for operand in node.ops}
        short = any(isinstance(side, nodes.Const) or self.is_number(side) for side in sides)
        if kinds <= {"in", "notin"}:
            self.value(sides[0])
            self.all_used(*sides[1:])
        elif kinds <= {"eq", "ne", "lt", "gt", "lteq", "gteq"} and short:
            for side in sides:
                self.value(side)
        else:
            self.all_used(*sides)
        return CONSTANT

    def constants(self, node: nodes.Filter | nodes.Test | nodes.Call) -> None:
        keywords = [keyword.value for keyword in node.kwargs]
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise NotLinear(node, "arguments that are not known")
        for argument in (*node.args, *keywords):
            if not _is_constant(argument):
                raise NotLinear(node, f"{_called(node)} with an argument that is no constant")

    def filter(self, node: nodes.Filter) -> int:
        if node.name not in FILTERS or node.node is None:
            raise NotLinear(node, f"the filter {node.name}")
        if node.name in ("d", "default"):
            return min([self.value(node.node), *map(self.value, node.args)])
        self.constants(node)
        if node.name in ("length", "count"):
            # Of what is made of other things these are gone through.
            self.value(node.node)
            return CONSTANT
        if node.name in ("map", "select", "reject", "selectattr", "rejectattr"):
            self.check_inner(node)
        if node.name == "tojson":
            for keyword in node.kwargs:
                wide = keyword.key == "indent" and keyword.value.as_const() not in (
                    None,
                    *range(MOST_INDENT + 1),
                )
                if wide or node.args:
                    raise NotLinear(node, "tojson with more than a little indentation")
        if node.name in ("first", "last"):
            return self.value(node.node)
        return self.used(node.node)

    def check_inner(self, node: nodes.Filter) -> None:
        """The filter or test that another one is for."""
        names = [argument.as_const() for argument in node.args]
        if node.name == "map":
            known = not names or (names[0] in FILTERS and names[0] not in ("map", "tojson"))
            known = known and (bool(names) or [k.key for k in node.kwargs] == ["attribute"])
        elif node.name.endswith("attr"):
            known = len(names) < 2 or names[1] in (*TESTS, "equalto", "==")
        else:
            known = not names or names[0] in (*TESTS, "equalto", "==")
        if not known:
            raise NotLinear(node, f"{node.name} of {names}")

    def test(self, node: nodes.Test) -> int:
        if node.name not in TESTS:
            raise NotLinear(node, f"the test {node.name}")
        self.constants(node)
        self.value(node.node)
        return CONSTANT

    def call(self, node: nodes.Call) -> int:
        name = _called(node)
        if isinstance(node.node, nodes.Getattr):
            if name not in METHODS:
                raise NotLinear(node, f"the method {name}")
            if name == "get":
                self.constants(node)
                return self.value(node.node.node)
            self.constants(node)
            if name in ("startswith", "endswith"):
                self.value(node.node.node)
                return CONSTANT
            return self.used(node.node.node)
        if name in self.macros:
            return self.macro(node, self.macros[name])
        if name not in FUNCTIONS or node.dyn_args is not None or node.dyn_kwargs is not None:
            raise NotLinear(node, f"a call of {name}")
        if name == "strftime_now":
            self.constants(node)
        for argument in (*node.args, *(keyword.value for keyword in node.kwargs)):
            self.value(argument)
        return CONSTANT

    def macro(self, node: nodes.Call, macro: nodes.Macro) -> int:
        if macro.name in self.calling:
            raise NotLinear(node, f"{macro.name} calls itself")
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            raise NotLinear(node, "arguments that are not known")
        given = {keyword.key: self.value(keyword.value) for keyword in node.kwargs}
        given |= {p.name: self.value(a) for p, a in zip(macro.args, node.args, strict=False)}
        outer, loops = self.names, self.loops
        # It sees the names of the template, and no loop's.
        top = self.top if loops or self.calling else outer
        self.names = {**top, **{p.name: given.get(p.name, CONSTANT) for p in macro.args}}
        self.loops = []
        self.calling.append(macro.name)
        written = self.statements(macro.body)
        self.calling.pop()
        self.names, self.loops = outer, loops
        return written


def _called(node: nodes.Node) -> str:
    if isinstance(node, (nodes.Filter, nodes.Test)):
        return node.name
    what = getattr(node, "node", None)
    return what.attr if isinstance(what, nodes.Getattr) else _name(what)


def _name(node: object) -> str:
    return node.name if isinstance(node, nodes.Name) else ""


def _is_constant(node: nodes.Node) -> bool:
    if isinstance(node, (nodes.Tuple, nodes.List)):
        return all(map(_is_constant, node.items))
    return isinstance(node, nodes.Const)


def _is_increment(node: nodes.Node, name: str, attr: str) -> bool:
    match node:
        case nodes.Add(
            left=nodes.Getattr(node=nodes.Name(name=of), attr=what), right=nodes.Const(value=int())
        ):
            return (of, what) == (name, attr)
    return False


def main(paths: list[str]) -> int:
    """Prints what is to be listed; the number of templates that are not."""
    refused = 0
    for path in map(Path, paths):
        source = path.read_text()
        try:
            Checker(source).check()
        except NotLinear as reason:
            print(f"{path.name}: {reason}", file=sys.stderr)
            refused += 1
        else:
            print(f"{digest(source)}  {path.stem}")
    return refused


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
