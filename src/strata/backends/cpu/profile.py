"""What the native backend takes and how long it computes, from a model's header alone."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import field
from functools import cached_property, lru_cache
from math import prod

import strata._native as _native
from strata.backends.cpu.experts import ExpertShapes
from strata.backends.cpu.lower import Lowered, Node, lower
from strata.backends.cpu.placement import Placement
from strata.backends.cpu.reading import native_id, packed_shape
from strata.backends.cpu.state import tier_bytes
from strata.backends.cpu.tiles import ProductPart, cut, smallest_tile
from strata.backends.kv_types import KV_BLOCK, KV_TYPES, choose_kv_type
from strata.backends.profile import (
    MatrixProfile,
    ModelProfile,
    OpRates,
    SegmentProfile,
    SweepSize,
    UnitProfile,
)
from strata.backends.settings import ActivationsName
from strata.backends.weights import WeightSource
from strata.huge_pages import HUGE_PAGE
from strata.program import SIGNATURES, Model, Op, Program, Segment, Weight, WeightUnit
from strata.program.cost import distinct_experts
from strata.program.ops import float_operands
from strata.program.ops.attention import choosing, main_operands
from strata.quant import by_name
from strata.records import dataclass

PANEL = 16
"""Rows of a matrix that are packed together, and the least that is streamed."""

READ_SLACK = 3 * 4096
"""What alignment adds to a read at both ends, and to its buffer."""

READ_ENTRY = 160
"""Where a read of a stream begins, and what becomes of it."""

STORED_LINES = 136 << 10
"""Lines of a transposed matrix that are read at a time."""

CACHE_LINE = 64
"""Bytes of one."""

SPLIT = 512
"""Positions of a split of attention (csrc/kernels/step_kernels.h)."""


@dataclass(frozen=True)
class CpuSegmentProfile(SegmentProfile):
    """A Segment as it will be lowered. ``planes`` of int8 are kept of what products take so."""

    lowered: Lowered = field(repr=False, compare=False)
    planes: int = 1

    @property
    def least_tile(self) -> int:
        """A panel, or two of each matrix where one gates another."""
        return max((smallest_tile(p, together=t) for p, t in self._products), default=0)

    def reads(self, tile_bytes: int) -> int:
        """See SegmentProfile."""
        return sum(_reads(parts, tile_bytes, together) for parts, together in self._products)

    @cached_property
    def _products(self) -> tuple[tuple[tuple[ProductPart, ...], bool], ...]:
        """The matrices of each node that multiplies, and whether its tiles have parts of all."""
        weights = {m.name: m for m in self.matrices}
        found = []
        for node in self.lowered.nodes:
            together = node.glu is not None
            matrices = [weights[p.op.inputs[1]] for p in node.products]
            parts = tuple(ProductPart(-(-m.rows // PANEL), panel_bytes(m)) for m in matrices)
            if parts:
                found.append((parts, together))
        return tuple(found)

    @cached_property
    def formats(self) -> dict[str, int]:
        """Native ids of the formats of its matrices."""
        return {m.name: native_id(by_name(m.format)) for m in self.matrices}

    def arena_bytes(self, tokens: int, logit_rows: int) -> int:
        """See SegmentProfile."""
        program = self.segment.program

        def rows(name: str) -> int:
            dim = program.values[name].shape[0]
            return dim if isinstance(dim, int) else {"T": tokens, "R": logit_rows}[dim]

        external = self.segment.result

        def workspace(node: Node) -> int:
            if node.op.kind != "experts":
                return 0
            shapes = ExpertShapes.of(node.op, program)
            return shapes.work_bytes(self.formats, rows(node.op.output))

        place = Placement(program, self.lowered, rows, external, workspace, self.planes)
        return place.layout.size

    def seconds(self, size: SweepSize, rates: OpRates, kv_element_bytes: float) -> float:
        """See SegmentProfile."""
        program = self.segment.program
        weights = {m.name: m for m in self.matrices}
        if self.selects and not size.logit_rows:
            return 0.0
        # Products, adds and gates that are fused cost as much by themselves as in one node.
        seconds = rates.call_s + rates.node_s * len(self.lowered.nodes)
        for op in program.ops:
            rows = size.logit_rows if program.values[op.output].shape[0] == "R" else size.tokens
            if op.kind == "matmul":
                m = weights[op.inputs[1]]
                planes = self.planes if _input_form(m.format) == "q8" else 1
                operations = 2.0 * rows * planes * m.rows * m.width
                seconds += rates.product_s(m.format, m.packed_bytes, operations)
            elif op.kind == "experts":
                seconds += sum(self._products_s(op, rows, rates))
            elif op.kind == "top_keys":
                seconds += _choice_s(op, program, size, rates, kv_element_bytes)
            elif op.kind == "attention":
                seconds += _attention_s(op, program, size, rates, kv_element_bytes)
            else:
                seconds += rates.elementwise_s(4 * rows * _widths(op, program))
                if SIGNATURES[op.kind].state == "recurrent":
                    seconds += _recurrence_s(op, program, size, rates)
        return seconds

    def experts_seconds(self, tokens: int, rates: OpRates) -> tuple[float, float]:
        """See SegmentProfile."""
        ops = [op for op in self.segment.program.ops if op.kind == "experts"]
        found = [self._products_s(op, tokens, rates) for op in ops]
        return sum(first for first, _ in found), sum(second for _, second in found)

    def _products_s(self, op: Op, rows: int, rates: OpRates) -> tuple[float, float]:
        """Seconds of the products with what goes into experts, and with what comes out."""
        weights = {m.name: m for m in self.matrices}
        shapes = ExpertShapes.of(op, self.segment.program)
        share = distinct_experts(shapes.experts, shapes.top_k, rows) / shapes.experts
        operations = 2.0 * rows * shapes.top_k * shapes.ffn * shapes.width

        def product(name: str) -> float:
            m = weights[name]
            return rates.product_s(m.format, int(m.packed_bytes * share), operations)

        first, second = shapes.products
        return sum(map(product, first)), sum(map(product, second))


@dataclass(frozen=True)
class CpuModelProfile(ModelProfile):
    """``turns`` says that some weights lie transposed in their file."""

    segments: tuple[CpuSegmentProfile, ...]
    turns: bool = False

    @cached_property
    def _arenas(self) -> dict[tuple[int, int], int]:
        return {}

    @cached_property
    def largest_panel(self) -> int:
        """File bytes of the largest panel that streams."""
        panels = (_panel_file_bytes(m) for s in self.segments for m in s.matrices if not m.lookup)
        return max(panels, default=0)

    def arena_bytes(self, tokens: int, logit_rows: int) -> int:
        """See ModelProfile."""
        key = (tokens, logit_rows)
        if key not in self._arenas:
            self._arenas[key] = max(s.arena_bytes(tokens, logit_rows) for s in self._distinct)
        return self._arenas[key]

    @cached_property
    def slot_bytes(self) -> int:
        """See ModelProfile; each matrix begins at a cache line."""
        each = (
            sum(
                -(-m.packed_bytes // unit.experts // CACHE_LINE) * CACHE_LINE for m in unit.matrices
            )
            for unit in self.units
            if unit.experts
        )
        return max(each, default=0)

    def scratch_bytes(self, *, streams: bool) -> int:
        """See ModelProfile; panels of what streams are packed in the scratch."""
        return self._streaming_scratch if streams else self._resident_scratch

    @cached_property
    def _resident_scratch(self) -> int:
        widths = [m.width for s in self.segments for m in s.matrices]
        shapes = {
            (op.attrs["k_dim"], op.attrs["v_dim"], main_operands(op.attrs, len(op.inputs)) == 2)
            for op in self._attentions
        }
        attention = [int(_native.attention_scratch_floats(*shape)) for shape in shapes]
        for _, heads, width in self._choices:
            attention.append(int(_native.weigh_keys_scratch_floats(heads, width // heads)))
        products = int(_native.matmul_scratch_floats(max(widths, default=0)))
        return max(4 * max(products, *attention, 0), self._experts_scratch)

    @cached_property
    def _experts_scratch(self) -> int:
        each = (
            ExpertShapes.of(op, s.segment.program).scratch_bytes(s.formats)
            for s in self._distinct
            for op in s.segment.program.ops
            if op.kind == "experts"
        )
        return max(each, default=0)

    @cached_property
    def _streaming_scratch(self) -> int:
        streamed = (m for unit in self.units if unit.reads == "all" for m in unit.matrices)
        products = (
            4 * int(_native.matmul_scratch_floats(m.width)) + _packing_bytes(m) for m in streamed
        )
        return max(self._resident_scratch, *products)

    def attention_bytes(
        self, context: int, parallel: int, threads: int, rows: int, *, in_turns: bool = False
    ) -> int:
        """See ModelProfile."""
        tables = sum(rope_table_bytes(n, rows) for n in self.rope_frequencies)
        if any(op.attrs["read"] for op in self._attentions):
            tables += choice_bytes(context, threads, rows)
        if self._choices:
            tables += chosen_bytes(context, threads, rows, max(n for n, _, _ in self._choices))
        shapes = self._attention_shapes
        if not in_turns:
            return tables + partials_bytes(shapes, context, parallel, threads)
        # Only windows are split for threads then.
        windows = any(group.window for group in self.groups)
        split = partials_bytes(shapes, context, parallel, threads) if windows else 0
        return tables + max(split, running_bytes(shapes, rows))

    def kv_ring_bytes(self, kv_type: str) -> int:
        """See ModelProfile."""
        return self._tier_bytes(kv_type, 0)[0]

    def kv_file_bytes(self, kv_type: str, blocks: int) -> int:
        """See ModelProfile."""
        return self._tier_bytes(kv_type, blocks)[1]

    def _tier_bytes(self, kv_type: str, blocks: int) -> tuple[int, int]:
        return tier_bytes(choose_kv_type(kv_type, self.kv_types), self.state, self.groups, blocks)

    def loading_bytes(self, threads: int, request_bytes: int) -> int:
        """A request a thread, or at least a panel of any matrix; in huge pages, of which a buffer
        that is read into is made."""
        nbytes = threads * self.request_room(request_bytes)
        return -(-nbytes // HUGE_PAGE) * HUGE_PAGE

    def request_room(self, request_bytes: int) -> int:
        """Bytes that one thread reads into while loading."""
        read = max(request_bytes, self.largest_panel)
        # Weights that are turned on the way need their bytes twice.
        return (2 if self.turns else 1) * read + READ_SLACK

    def streaming_bytes(self, threads: int, tile_bytes: int) -> int:
        """Entries of the reads of a sweep, and lines that are turned."""
        return self.reads(tile_bytes) * READ_ENTRY + (threads * STORED_LINES if self.turns else 0)

    @cached_property
    def rope_frequencies(self) -> tuple[int, ...]:
        """Frequencies of each table of rotary positions."""
        kinds = {
            (*(op.attrs[name] for name in ("inv_freq", "mscale", "limit")), op.inputs[1:]): len(
                op.attrs["inv_freq"]
            )
            for s in self.segments
            for op in s.segment.program.ops
            if op.kind == "rope"
        }
        return tuple(kinds.values())

    @cached_property
    def _attention_shapes(self) -> frozenset[AttentionShape]:
        return attention_shapes(self._attentions)

    @cached_property
    def _attentions(self) -> tuple[Op, ...]:
        """Every attention."""
        ops = (op for s in self.segments for op in s.segment.program.ops)
        return tuple(op for op in ops if op.kind == "attention")

    @cached_property
    def _choices(self) -> frozenset[tuple[int, int, int]]:
        """Choices of a row, heads and widths of the queries by which keys are chosen."""
        return frozenset(found for s in self.segments for found in choices(s.segment.program))

    @cached_property
    def _distinct(self) -> tuple[CpuSegmentProfile, ...]:
        """One Segment of each kind: layers are alike but for names."""
        kinds: dict[tuple[object, ...], CpuSegmentProfile] = {}
        for s in self.segments:
            forms = tuple(_input_form(m.format) for m in s.matrices)
            ops = tuple((op.kind, len(op.inputs)) for op in s.segment.program.ops)
            widths = tuple(v.shape for v in s.segment.program.values.values())
            kinds.setdefault((ops, widths, forms), s)
        return tuple(kinds.values())


def int8_planes(activations: ActivationsName) -> int:
    """Rows of int8 that stand for a row of activations."""
    return 2 if activations == "int16" else 1


def profile(
    model: Model, weights: WeightSource, activations: ActivationsName = "int8"
) -> CpuModelProfile:
    """The profile of a Model on this backend. Asks ``weights`` for block types, and reads none."""
    planes = int8_planes(activations)
    segments = tuple(_segment(segment, weights, planes) for segment in model.segments)
    everything = [w for segment in model.segments for w in segment.weights]
    turns = any(w.transform == "transpose" for w in everything)
    return CpuModelProfile(segments, model.state, KV_TYPES, activations, turns)


AttentionShape = tuple[int, int, int, int]
"""Heads, heads of keys, columns of values, and the positions that a row sees, 0 for all."""


def attention_shapes(ops: Iterable[Op]) -> frozenset[AttentionShape]:
    """The shapes of every attention among some Ops."""
    return frozenset(
        (
            *(op.attrs["heads"], op.attrs["kv_heads"], op.attrs["v_dim"]),
            op.attrs["causal"]
            and op.attrs["window"]
            and op.attrs["window"] + op.attrs["beginning"],
        )
        for op in ops
        if op.kind == "attention"
    )


def partials_bytes(
    shapes: Collection[AttentionShape], positions: int, parallel: int, threads: int
) -> int:
    """Bytes of partial results that split attention of these shapes may come to take."""
    most = 0
    for heads, kv_heads, v_dim, seen in shapes:
        # The rows of a tile see somewhat more than one, and splits begin and end where they do.
        reach = min(positions, seen + 3 * SPLIT) if seen else positions
        shape = (heads, kv_heads, v_dim, threads, parallel, reach)
        most = max(most, int(_native.partials_bytes(*shape)))
    return most


def running_bytes(shapes: Collection[AttentionShape], tokens: int) -> int:
    """Bytes of what attention of these shapes has for each of so many rows where it goes in turns:
    the maximum, the sum and the output of each head, with room to grow."""
    each = max((heads * (2 + -(-v_dim // 16) * 16) for heads, _, v_dim, _ in shapes), default=0)
    return tokens * each * 4 * 3 // 2


def choice_bytes(context: int, threads: int, rows: int) -> int:
    """Bytes of the blocks that each row of a step sees, a bit each, and of what choosing them takes
    of a thread, with room to grow."""
    blocks = -(-context // KV_BLOCK)
    return (8 * rows * -(-blocks // 64) + 12 * threads * (-(-blocks // 16) * 16)) * 3 // 2


def choices(program: Program) -> list[tuple[int, int, int]]:
    """Of each choice of keys: how many a row makes, heads and width of the queries."""
    found = []
    for op in program.ops:
        if op.kind == "top_keys":
            q, k = (program.values[name].width for name in op.inputs[:2])
            found.append((choosing(len(op.inputs), q // k), q // k, q))
    return found


def chosen_bytes(context: int, threads: int, rows: int, choices: int) -> int:
    """Bytes of the keys that each row of a step sees where these are chosen one by one, a bit each,
    with a bit a block, or of what so many choices of them take before, with room to grow."""
    blocks = -(-context // KV_BLOCK)
    bits = 8 * rows * (blocks + -(-blocks // 64))
    return max(bits, 4 * (choices + 1) * threads * blocks * KV_BLOCK) * 3 // 2


def rope_table_bytes(frequencies: int, rows: int) -> int:
    """Bytes of cos and sin of the position of each row of a step, and of the positions."""
    return 4 * rows * (2 * frequencies + 1)


def panel_bytes(m: MatrixProfile) -> int:
    """Bytes of one packed panel."""
    return m.packed_bytes // -(-m.rows // PANEL)


def _panel_file_bytes(m: MatrixProfile) -> int:
    """Bytes that one panel takes in the file."""
    return m.file_bytes * min(PANEL, m.rows) // m.rows


def _packing_bytes(m: MatrixProfile) -> int:
    """Bytes of the panels that a thread packs together while the matrix streams."""
    kind = native_id(by_name(m.format))
    return int(_native.packing_bytes(kind, m.width)) if _native.format_info(kind) else 0


def _segment(segment: Segment, weights: WeightSource, planes: int) -> CpuSegmentProfile:
    chosen = {
        name: op.attrs["top_k"]
        for op in segment.program.ops
        if op.kind == "experts"
        for name in op.inputs
    }
    units = tuple(
        UnitProfile(
            unit.name,
            unit.reads,
            tuple(_matrix(w, unit, weights) for w in unit.weights),
            unit.experts,
            chosen.get(unit.weights[0].name, 0),
            _lookups(unit, segment.program) if unit.reads == "rows" else 0,
        )
        for unit in segment.units
    )
    floats = float_operands(segment.program)
    vectors = sum(
        4 * prod(w.shape) for w in segment.weights if len(w.shape) == 1 or w.name in floats
    )
    forms = {m.name: _input_form(m.format) for unit in units for m in unit.matrices}
    return CpuSegmentProfile(segment, units, vectors, lower(segment, forms), planes)


def _lookups(unit: WeightUnit, program: Program) -> int:
    """Rows of a unit's tables that a token asks for."""
    names = {weight.name for weight in unit.weights}
    return sum(
        program.values[op.output].width // program.values[name].width
        for op in program.ops
        for name in op.inputs
        if name in names
    )


def _matrix(weight: Weight, unit: WeightUnit, weights: WeightSource) -> MatrixProfile:
    kind = weights.type(weight)
    rows, width = packed_shape(weight, routed=unit.reads == "routed")
    file_bytes = kind.tensor_nbytes(weight.shape)
    known = _native.format_info(native_id(kind)) is not None
    packed = int(_native.packed_bytes(native_id(kind), rows, width)) if known else file_bytes
    source = (weight.source, weight.rows)
    lookup = unit.reads == "rows"
    return MatrixProfile(weight.name, source, kind.name, rows, width, file_bytes, packed, lookup)


@lru_cache(maxsize=64)
def _input_form(format: str) -> str:
    info = _native.format_info(native_id(by_name(format)))
    return str(info["input_form"]) if isinstance(info, dict) else "f32"


@lru_cache(maxsize=1024)
def _reads(parts: tuple[ProductPart, ...], tile_bytes: int, together: bool) -> int:
    return sum(map(len, cut(parts, tile_bytes, together=together)))


def _attention_s(
    op: Op, program: Program, size: SweepSize, rates: OpRates, kv_element_bytes: float
) -> float:
    window = op.attrs["window"] and op.attrs["window"] + op.attrs["beginning"]
    seen = size.past + size.rows
    # Keys are gone through in whole blocks, of which half of the last is in vain.
    average = size.past + (size.rows + 1) / 2 + (KV_BLOCK / 2 if size.rows > 1 else 0)
    if read := op.attrs["read"]:
        # Of a whole block of the others bounds are gone through, which are as much as two keys.
        bounds = 2 * size.past / KV_BLOCK
        seen, average = min(seen, size.rows * (read + bounds)), min(average, read + bounds)
    if window:
        seen, average = min(seen, window + size.rows), min(average, window)
    values = [program.values[name] for name in op.inputs]
    position = SIGNATURES[op.kind].kept(values, op.attrs) * kv_element_bytes
    per_key = op.attrs["heads"] * (op.attrs["k_dim"] + op.attrs["v_dim"])
    operations = 2.0 * size.tokens * average * per_key
    return rates.attention_s(size.sequences * position * seen, operations)


def _choice_s(
    op: Op, program: Program, size: SweepSize, rates: OpRates, kv_element_bytes: float
) -> float:
    """Nothing where every key is chosen; else all are gone through."""
    signature, seen = SIGNATURES[op.kind], size.past + size.rows
    if seen <= op.attrs["most"]:
        return 0.0
    values = [program.values[name] for name in op.inputs]
    nbytes = signature.kept(values, op.attrs) * kv_element_bytes * size.sequences * seen
    return rates.attention_s(nbytes, signature.flops(values, op.attrs, size.tokens, seen))


def _recurrence_s(op: Op, program: Program, size: SweepSize, rates: OpRates) -> float:
    """State is read and written once by every sequence, and is in cache for the rows between, of
    which each goes through it: what attention does with keys is as much work a byte."""
    signature = SIGNATURES[op.kind]
    values = [program.values[name] for name in op.inputs]
    nbytes = 2 * 4 * signature.kept(values, op.attrs) * size.sequences
    operations = signature.flops(values, op.attrs, size.tokens, size.past)
    return rates.attention_s(nbytes, operations)


def _widths(op: Op, program: Program) -> int:
    """Elements read and written for each row by an Op without a matrix."""
    read = sum(
        program.values[name].width for name in op.inputs if program.values[name].role != "weight"
    )
    return read + program.values[op.output].width
