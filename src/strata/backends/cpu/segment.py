"""A Segment in native form: its nodes over values that are placed in the backend's arena."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.backends.base import Step
from strata.backends.cpu.experts import ExpertLayer, ExpertShapes, build_experts
from strata.backends.cpu.foresight import foresight
from strata.backends.cpu.lower import Node, lower
from strata.backends.cpu.nodes import NODES, Building, Parameters
from strata.backends.cpu.nodes_scans import SCAN_NODES
from strata.backends.cpu.nodes_streams import STREAM_NODES
from strata.backends.cpu.placement import NONE, ROW_FUNCTIONS, Placement
from strata.backends.cpu.tiles import ProductPart, Tile, cut
from strata.errors import UsageError
from strata.program import Op, ProgramError, Segment
from strata.program.ops import ACTIVATIONS, SIGNATURES, expert_inputs
from strata.records import dataclass

_NODES = {**NODES, **SCAN_NODES, **STREAM_NODES}
Track = list[list[tuple[_native.WeightPlace, int, int, int]]]
"""Tiles in the order of their use: panels as (place, part of the product, first, end)."""

# Nodes that write the int8 form themselves; any other has a copy node behind it.
_QUANTISES = frozenset(ROW_FUNCTIONS) | {"attention"}


@dataclass(frozen=True)
class HiddenState:
    """Stands for the hidden state, which lies at offset 0 of the arena in rows of this width."""

    width: int


class NativeSegment:
    """A lowered Segment and its packed weights.

    The hidden state that goes from Segment to Segment lies at offset 0 of the arena. ``logits``
    are written to an array of the caller's, of width ``external`` (0: there are none). ``track``
    are the tiles of streamed weights, ``experts`` the layers of experts that are not resident.
    ``ahead``: of the first of those it is told from what goes into the Segment which ones will
    probably be chosen, where its router reads that or the same after attention. ``planes`` of int8
    are kept of what products take so.
    """

    def __init__(
        self,
        segment: Segment,
        parameters: Parameters,
        max_tokens: int,
        max_logit_rows: int,
        isa: str,
        *,
        ahead: bool = False,
        planes: int = 1,
    ) -> None:
        self.segment = segment
        self._isa = isa
        self._parameters = parameters
        self.track: Track = []
        self.experts: list[ExpertLayer] = []
        self._max_tokens = max_tokens
        inner = (
            v for name, v in segment.program.values.items() if name not in segment.program.outputs
        )
        # Of what comes out itself the caller has the room.
        selects = any(v.shape[0] == "R" for v in inner if v.role != "weight")
        self._max_logit_rows = max_logit_rows if selects else None
        self._native = _native.NodeList()
        self.node_ops: list[str] = []
        self.node_parts: list[tuple[Op, ...]] = []
        program = segment.program
        forms = {
            name: str(weight.input_form)
            for name, weight in parameters.matrices.items()
            if not isinstance(weight, _native.FileRows)
        }
        lowered = lower(segment, forms)
        self._external = segment.result
        self.external = 0 if self._external is None else program.values[self._external].width
        self.hidden = {segment.outputs[0]: HiddenState(program.values[program.outputs[0]].width)}
        if len(program.outputs) != 1 or len(program.inputs) > 1:
            raise ProgramError(f"segment '{segment.name}': one activation in and one out")
        rows = {"T": max_tokens, "R": max_logit_rows}

        def row_count(name: str) -> int:
            # No method: that would tie the Segment to itself, and its weights would outlive it.
            dim = program.values[name].shape[0]
            return dim if isinstance(dim, int) else rows[dim]

        formats = {
            name: int(weight.format)
            for name, weight in parameters.matrices.items()
            if not isinstance(weight, _native.FileRows)
        }

        def workspace(node: Node) -> int:
            if node.op.kind != "experts":
                return 0
            rows = row_count(node.op.output)
            return ExpertShapes.of(node.op, program).work_bytes(formats, rows)

        self._placer = Placement(program, lowered, row_count, self._external, workspace, planes)
        self._ids = {
            name: self._native.value(
                program.values[name].width, f32, q8, program.values[name].shape[0] == "R", planes
            )
            for name, (f32, q8) in self._placer.places.items()
        }
        for name in program.inputs:
            if name in lowered.q8:
                self._quantise(name)
        if ahead:
            self._foresee()
        for i, node in enumerate(lowered.nodes):
            first = len(self.node_parts)
            places = (self._placer.narrow.get(i, NONE), self._placer.work.get(i, NONE))
            self._build(node, *places)
            # Of an Op that takes several native nodes only the first one says so.
            self.node_parts[first] = tuple(node.ops)
            for name in node.writes:
                made = node.glu.kind if node.glu and name == node.glu.output else node.op.kind
                if name in lowered.q8 and made not in _QUANTISES:
                    self._quantise(name)
        if self._external is None and self._placer.places[program.outputs[0]][0] != 0:
            hidden = self._native.value(program.values[program.outputs[0]].width, 0, NONE, False)
            self._row("copy", program.outputs[0], hidden)

    @property
    def native(self) -> _native.NodeList:
        """The nodes."""
        return self._native

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        matrices = self._parameters.matrices.values()
        packed = sum(int(w.nbytes) for w in matrices if isinstance(w, _native.PackedWeight))
        return packed + sum(f.nbytes for f in self._parameters.floats.values())

    @property
    def floats(self) -> Mapping[str, NDArray[np.float32]]:
        """Its vectors."""
        return self._parameters.floats

    def attach(self, stream: _native.Stream, number: int) -> None:
        """Take streamed weights from the stream's track ``number``, which is this ``track``."""
        self._native.attach(stream, number)

    def attach_experts(self, cache: _native.ExpertCache, first: int) -> None:
        """Take experts from the cache, whose layers from ``first`` on are these ``experts``."""
        self._native.attach_experts(cache, first)

    @property
    def streams(self) -> bool:
        """Whether some of its weights are not resident."""
        return bool(self.track or self.experts)

    @property
    def arena_bytes(self) -> int:
        """Bytes of arena that a step of the most tokens needs."""
        return self._placer.layout.size

    @property
    def scratch_floats(self) -> int:
        """Floats of scratch that each thread needs."""
        return int(self._native.scratch_floats)

    def run(
        self,
        team: Any,
        isa: str,
        arena: Any,
        native_step: Any,
        state: _native.StateStore,
        step: Step,
    ) -> Mapping[str, Any]:
        """Run over a step; returns the outputs under their outer names."""
        if self._external is None:
            self._native.run(team, isa, arena, native_step, state, self._max_tokens, None)
            return self.hidden
        rows, most = len(step.logits_indices), self._max_logit_rows
        if most is not None and rows > most:
            raise UsageError(
                f"a step wants {rows} rows of logits at once; this backend was made for {most}"
            )
        out = np.empty((len(step.logits_indices), self.external), np.float32)
        self._native.run(team, isa, arena, native_step, state, self._max_tokens, out)
        return {self.segment.outputs[0]: out}

    @property
    def node_times(self) -> NativeSegment:
        """The nodes are measured here."""
        return self

    def set_timing(self, on: bool) -> None:
        """Measure the time of each node from now on."""
        self._native.set_timing(on)

    def take_times(self) -> list[tuple[str, float]]:
        """Op kind and seconds of each node since the last call. ``node_ops`` are the kinds alone,
        ``node_parts`` the Ops that each node does."""
        return list(zip(self.node_ops, self._native.take_times(), strict=False))

    def multiplies(self, weight: str) -> str:
        """What the products with a weight multiply: int8, bf16 or f32."""
        return multiplies(str(self._parameters.matrices[weight].input_form), self._isa)

    def _mark(self, kind: str) -> None:
        added = int(self._native.nodes) - len(self.node_ops)
        self.node_ops += [kind] * added
        self.node_parts += [()] * added

    def _quantise(self, name: str) -> None:
        self._row("copy", name, self._ids[name])

    def _row(self, function: str, x: str, out: int, **rest: Any) -> None:
        self._native.row(ROW_FUNCTIONS[function], self._ids[x], out, **rest)
        self._mark("quantise" if function == "copy" else function)

    def _build(self, node: Node, narrow: int, work: int) -> None:
        op = node.op
        building = Building(self._native, self._parameters, self._ids, self.segment.program)
        if node.products:
            self._build_products(node, narrow)
        elif op.kind == "experts":
            layer = build_experts(building, op, narrow, work)
            if layer:
                self.experts.append(layer)
        elif op.kind in ROW_FUNCTIONS:
            self._row(op.kind, op.inputs[0], self._ids[op.output], **self._row_arguments(op))
        else:
            build = _NODES.get(op.kind)
            if build is None:
                raise ProgramError(f"segment '{self.segment.name}': no native '{op.kind}'")
            build(building, op)
        self._mark(op.kind)

    def _foresee(self) -> None:
        program, matrices = self.segment.program, self._parameters.matrices
        found = foresight(program)
        if found is None:
            return
        router = matrices[found.router]
        experts = matrices[expert_inputs(found.experts)["up"]]
        if not isinstance(experts, _native.ExpertMatrix) or not isinstance(
            router, _native.PackedWeight
        ):
            return
        floats = self._parameters.floats
        weight, shift, bias = (
            None if name is None else floats[name]
            for name in (found.weight, found.shift, found.bias)
        )
        x = self._ids[program.inputs[0]]
        self._native.foresee(x, found.norm, weight, shift, found.epsilon, router, bias)
        self._mark("foresee")

    def _row_arguments(self, op: Op) -> dict[str, Any]:
        if op.kind in ("rms_norm", "layer_norm"):
            weights = [self._parameters.floats[name] for name in op.inputs[1:]]
            weight, bias = (*weights, None, None)[:2]
            group = op.attrs["group"] if weight is None else weight.size
            return {"weight": weight, "bias": bias, "number": op.attrs["eps"], "group": group}
        if op.kind == "shift" or (op.kind == "mul" and op.attrs["weight"]):
            weight = self._parameters.floats[op.inputs[1]].reshape(-1)
            return {"weight": 1 / weight if op.attrs.get("inverse") else weight}
        if op.kind in ("clamp", "xielu", "position_scale"):
            # In the order of the Op's attributes, which is that of the native function.
            names = SIGNATURES[op.kind].attrs
            return {"weight": np.array([op.attrs[name] for name in names], np.float32)}
        if op.kind == "activation":
            return {"activation": ACTIVATIONS.index(op.attrs["function"])}
        if op.kind == "glu":
            return {
                "b": self._ids[op.inputs[1]],
                "activation": ACTIVATIONS.index(op.attrs["function"]),
            }
        if op.kind in ("add", "mul"):
            return {"b": self._ids[op.inputs[1]]}
        return {"number": op.attrs["factor" if op.kind == "scale" else "cap"]}

    def _build_products(self, node: Node, narrow: int) -> None:
        parts = []
        for product in node.products:
            _, weight, *bias = product.op.inputs
            parts.append(
                (
                    self._parameters.matrices[weight],
                    self._ids[product.output],
                    self._parameters.floats[bias[0]] if bias else None,
                    None if product.residual is None else self._ids[product.residual],
                )
            )
        glu = None
        if node.glu is not None:
            glu = (
                ACTIVATIONS.index(node.glu.attrs["function"]),
                self._ids[node.glu.output],
            )
        tiles = self._cut([part[0] for part in parts], together=glu is not None)
        x, weight = node.op.inputs[:2]
        shape = self.segment.program.values[weight].shape
        groups = int(shape[0]) if len(shape) == 3 else 1
        self._native.matmul(self._ids[x], parts, glu, len(tiles), narrow, groups)
        self._mark("matmul")

    def _cut(self, weights: list[Any], *, together: bool) -> list[Tile]:
        """The tiles of a product whose weights are streamed; none for packed ones."""
        if not isinstance(weights[0], _native.WeightPlace):
            return []
        shapes = [ProductPart(int(w.panels), int(w.panel_bytes)) for w in weights]
        tiles = cut(shapes, self._parameters.tile_bytes, together=together)
        for tile in tiles:
            self.track.append([(weights[r.part], r.part, r.first, r.end) for r in tile])
        return tiles


def multiplies(input_form: str, isa: str) -> str:
    """What products multiply whose input is ``q8``, ``bf16`` or ``f32``: int8, bf16 or f32."""
    if input_form == "bf16":
        return "bf16" if _native.multiply_peak(isa, "bf16", 1) else "f32"
    return "int8" if input_form == "q8" else "f32"


class JoinedSegments:
    """Resident Segments that run in one native call, in their order."""

    def __init__(self, segments: Sequence[NativeSegment], max_tokens: int) -> None:
        # They own what the native side points to.
        self.segments = tuple(segments)
        self.segment = segments[-1].segment
        self.node_times = None
        self._hidden = segments[-1].hidden
        self._max_tokens = max_tokens
        self._native = _native.Joined(tuple(s.native for s in segments))

    @property
    def nbytes(self) -> int:
        """Bytes of weights held."""
        return sum(s.nbytes for s in self.segments)

    @property
    def current(self) -> int:
        """See Joined."""
        return int(self._native.current)

    def run(
        self,
        team: Any,
        isa: str,
        arena: Any,
        native_step: Any,
        state: _native.StateStore,
        step: Step,
    ) -> Mapping[str, Any]:
        """Run over a step; returns the outputs of the last Segment under their outer names."""
        self._native.run(team, isa, arena, native_step, state, self._max_tokens)
        return self._hidden
