"""Where the activations of a Segment lie: from a lowered Program, without its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import strata._native as _native
from strata.backends.cpu.arena import ArenaLayout
from strata.backends.cpu.lower import Lowered, Node
from strata.program import Program

ROW_FUNCTIONS = {
    name: i
    for i, name in enumerate(
        (
            *("copy", "rms_norm", "layer_norm", "glu", "activation", "add", "scale", "softcap"),
            *("mul", "shift", "clamp", "xielu", "position_scale"),
        )
    )
}
NONE, EXTERNAL = -1, -2

# Ops that may write over an operand that nobody reads any more: each element (or row) is read
# before it is written.
IN_PLACE = frozenset(ROW_FUNCTIONS) - {"copy", "glu"} | {"rope"}


class Placement:
    """Gives every activation its places in the arena: offset as f32 and as int8, -1 for none.
    ``planes`` of int8 lie one behind the other, row by row.

    ``narrow`` is where the input of a node (by its number) lies as bfloat16 while that runs, and
    ``work`` where its workspace is, of as many bytes as ``workspace`` says.
    """

    def __init__(
        self,
        program: Program,
        lowered: Lowered,
        rows: Callable[[str], int],
        external: str | None,
        workspace: Callable[[Node], int] = lambda node: 0,
        planes: int = 1,
    ) -> None:
        self._planes = planes
        self.layout = ArenaLayout()
        self.places: dict[str, tuple[int, int]] = {}
        self.narrow: dict[int, int] = {}
        self.work: dict[int, int] = {}
        self._program, self._lowered, self._rows = program, lowered, rows
        last = self._last_reads()
        hidden = [name for name in (*program.inputs, *program.outputs) if name != external]
        if hidden:
            # Offset 0 is the hidden state's for the whole Segment, and for what comes in its place:
            # threads that copy a wider one there must not write over what others still read.
            self.layout.take(max(4 * program.values[name].width * rows(name) for name in hidden))
        for name in program.inputs:
            self.places[name] = (0, self._q8(name))
        for i, node in enumerate(lowered.nodes):
            taken_over: set[str] = set()
            for name in node.writes:
                f32 = self._f32(name, node, i, last, taken_over, external)
                self.places[name] = (f32, self._q8(name))
            if node.narrow:
                name = node.op.inputs[0]
                row = int(_native.act_row_bytes(self._program.values[name].width, "bf16"))
                self.narrow[i] = self.layout.take(row * self._rows(name))
            if workspace(node):
                self.work[i] = self.layout.take(workspace(node))
            for taken in (self.narrow, self.work):
                if i in taken:
                    self.layout.give(taken[i])
            for name in {*node.reads, *node.writes}:
                if last.get(name, i) == i:
                    self._free(name, keep_f32=name in taken_over)

    def _last_reads(self) -> dict[str, int]:
        last = {}
        for i, node in enumerate(self._lowered.nodes):
            for name in node.reads:
                last[name] = i
        for name in self._program.outputs:
            last[name] = len(self._lowered.nodes)
        return last

    def _f32(
        self,
        name: str,
        node: Node,
        index: int,
        last: Mapping[str, int],
        taken_over: set[str],
        external: str | None,
    ) -> int:
        if name == external:
            return EXTERNAL
        if name not in self._lowered.f32 and (
            node.op.kind in ROW_FUNCTIONS or (node.glu and name == node.glu.output)
        ):
            return NONE
        width = self._program.values[name].width
        for operand in self._replaceable(name, node):
            fits = self._program.values[operand].shape == self._program.values[name].shape
            if fits and last[operand] == index and operand not in taken_over:
                place = self.places[operand][0]
                if place >= 0:
                    taken_over.add(operand)
                    return place
        if name in self._program.outputs and not self._program.inputs:
            return 0
        return self.layout.take(4 * width * self._rows(name))

    def _replaceable(self, name: str, node: Node) -> list[str]:
        """Operands whose buffer the output may take over."""
        for product in node.products:
            if product.output == name and product.residual is not None:
                # Columns of it are written while the node still reads other ones of its input, and
                # what its other products add to.
                others = [p.residual for p in node.products if p is not product]
                shared = product.residual in (node.op.inputs[0], *others)
                return [] if shared else [product.residual]
        return list(node.reads) if node.op.kind in IN_PLACE else []

    def _q8(self, name: str) -> int:
        if name not in self._lowered.q8:
            return NONE
        row = int(_native.act_row_bytes(self._program.values[name].width))
        return self.layout.take(row * self._planes * self._rows(name))

    def _free(self, name: str, keep_f32: bool) -> None:
        f32, q8 = self.places[name]
        if f32 > 0 and not keep_f32:
            self.layout.give(f32)
        if q8 >= 0:
            self.layout.give(q8)
