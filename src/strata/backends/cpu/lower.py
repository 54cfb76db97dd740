"""From a Program to native nodes: which Ops run together, and what each needs of its operands.

Fused here, because each saves a trip through memory or a barrier between threads:
an ``add`` whose other operand is ready goes into the product before it; products of one input
run as one node; ``glu`` is applied to each range of columns as its two products make it; norms and
the like write the int8 form that the next product reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from strata.program import Op, Program, Segment
from strata.program.ops import expert_inputs
from strata.records import dataclass

MAX_PARTS = 3


@dataclass
class Product:
    """One weight of a product node: output value, and the Op that may have been folded in."""

    op: Op
    output: str
    residual: str | None = None


@dataclass
class Node:
    """A node to be built: one Op, or a group of products with an optional ``glu``.

    ``ops`` are all that it does, those folded in included. ``narrow``: products that may read their
    input as bfloat16, from a place beside it.
    """

    op: Op
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    products: list[Product] = field(default_factory=list)
    glu: Op | None = None
    ops: list[Op] = field(default_factory=list)
    narrow: bool = False

    def __post_init__(self) -> None:
        self.ops.append(self.op)


@dataclass(frozen=True)
class Lowered:
    """Nodes in order, and the forms in which each activation is wanted."""

    nodes: tuple[Node, ...]
    f32: frozenset[str]
    q8: frozenset[str]


def lower(segment: Segment, forms: Mapping[str, str]) -> Lowered:
    """Group a Program's Ops into nodes; ``forms`` says what input each weight takes: ``f32``,
    ``bf16`` or ``q8``."""
    program = segment.program
    readers: dict[str, list[int]] = {}
    for i, op in enumerate(program.ops):
        for name in op.inputs:
            readers.setdefault(name, []).append(i)
    for name in program.outputs:
        readers.setdefault(name, []).append(len(program.ops))
    # Products of one node have their weights from one unit, which stays or streams as a whole.
    units = {w.name: unit.name for unit in segment.units for w in unit.weights}
    kinds = {
        name: (form, units.get(name), len(program.values[name].shape))
        for name, form in forms.items()
    }
    nodes = _group(_fold_adds(program, readers), readers, kinds)
    return _forms(program, nodes, forms)


def _fold_adds(program: Program, readers: Mapping[str, list[int]]) -> list[Node]:
    """A node an Op, but for adds that the product just before them can do."""
    made: dict[str, int] = dict.fromkeys(program.inputs, -1)
    nodes: list[Node] = []
    by_output: dict[str, Node] = {}
    for i, op in enumerate(program.ops):
        activations = tuple(n for n in op.inputs if program.values[n].role != "weight")
        made[op.output] = i
        if op.kind == "add":
            for product, other in (op.inputs, op.inputs[::-1]):
                node = by_output.get(product)
                ready = node is not None and made[other] < made[product]
                if node is None or not node.products or not ready or product == other:
                    continue
                if len(readers[product]) > 1 or node.products[0].residual is not None:
                    continue
                node.products[0].residual = other
                node.products[0].output = op.output
                node.ops.append(op)
                node.reads += (other,)
                node.writes = (op.output,)
                by_output[op.output] = node
                # It is made when its product is: Ops after it may not be overtaken.
                made[op.output] = made[product]
                break
            else:
                nodes.append(Node(op, activations, (op.output,)))
                by_output[op.output] = nodes[-1]
            continue
        products = [Product(op, op.output)] if op.kind == "matmul" else []
        nodes.append(Node(op, activations, (op.output,), products))
        by_output[op.output] = nodes[-1]
    return nodes


def _group(
    nodes: list[Node],
    readers: Mapping[str, list[int]],
    kinds: Mapping[str, tuple[str, str | None, int]],
) -> list[Node]:
    """Join neighbouring products of one input and of weights of one kind, and a glu with the two
    products it takes."""
    out: list[Node] = []
    for node in nodes:
        last = out[-1] if out else None
        if (
            last is not None
            and node.products
            and last.products
            and kinds[node.op.inputs[1]][-1] == 2
            and last.glu is None
            and len(last.products) < MAX_PARTS
            and node.op.inputs[0] == last.op.inputs[0]
            and kinds[node.op.inputs[1]] == kinds[last.op.inputs[1]]
            # What the earlier products make is not there yet when the later ones start.
            and not set(node.reads) & set(last.writes)
        ):
            last.products += node.products
            last.ops += node.ops
            last.reads = tuple(dict.fromkeys(last.reads + node.reads))
            last.writes += node.writes
        elif (
            last is not None
            and node.op.kind == "glu"
            and len(last.products) == 2
            and tuple(p.output for p in last.products) == node.op.inputs
            and all(len(readers[name]) == 1 for name in node.op.inputs)
        ):
            last.glu = node.op
            last.ops.append(node.op)
            last.writes += node.writes
        else:
            out.append(node)
    return out


def _forms(program: Program, nodes: list[Node], forms: Mapping[str, str]) -> Lowered:
    f32: set[str] = set(program.outputs)
    q8: set[str] = set()
    for node in nodes:
        if node.op.kind == "experts":
            x, *others = node.reads
            form = forms[expert_inputs(node.op)["up"]]
            (q8 if form == "q8" else f32).add(x)
            node.narrow = form == "bf16"
            f32.update(others)
            continue
        if not node.products:
            f32.update(node.reads)
            continue
        form = forms[node.op.inputs[1]]
        (q8 if form == "q8" else f32).add(node.op.inputs[0])
        node.narrow = form == "bf16"
        f32.update(p.residual for p in node.products if p.residual is not None)
        if node.glu is not None:
            f32.update(node.glu.inputs)
    return Lowered(tuple(nodes), frozenset(f32), frozenset(q8))
