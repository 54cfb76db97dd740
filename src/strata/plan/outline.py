"""What the planner knows of a model: sizes, from its header alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import strata._native as _native
from strata.backends.cpu.backend import CpuBackend, native_id
from strata.backends.cpu.lower import Lowered, lower
from strata.backends.cpu.placement import Placement
from strata.backends.cpu.tiles import ProductPart, cut, smallest_tile
from strata.backends.kv_types import KV_BLOCK, choose_kv_type
from strata.formats import ModelFile
from strata.plan.tokenizer_memory import TokenizerOutline
from strata.program import KVLayer, Model, Op, Reads, Segment, Weight
from strata.quant import by_name
from strata.text.huggingface import count_merges

PANEL = 16
"""Rows of a matrix that are packed together, and the least that is streamed."""

_PARTIAL_EXTRA = 2
_QUERY_TILE = 48
_SPLIT_BLOCKS = 8


@dataclass(frozen=True)
class Matrix:
    """A weight of two axes. ``source`` says what it is stored as: a tied head is the embedding
    table. ``lookup`` marks tables of which only the rows of a step's tokens are read."""

    name: str
    source: tuple[str, tuple[int, int] | None]
    format: str
    rows: int
    width: int
    file_bytes: int
    packed_bytes: int
    lookup: bool

    @property
    def panel_bytes(self) -> int:
        """Bytes of one packed panel."""
        return self.packed_bytes // -(-self.rows // PANEL)

    @property
    def packing_bytes(self) -> int:
        """Bytes of the panels that a thread packs together while the matrix streams."""
        kind = by_name(self.format)
        if _native.format_info(native_id(kind)) is None:
            return 0
        return int(_native.packing_bytes(native_id(kind), self.width))

    @property
    def panel_file_bytes(self) -> int:
        """Bytes that one panel takes in the file."""
        return self.file_bytes * min(PANEL, self.rows) // self.rows


@dataclass(frozen=True)
class UnitOutline:
    """A WeightUnit's sizes: ``packed_bytes`` in memory when it stays, ``streamed_bytes`` read from
    the file in a sweep when it does not. Of tables only the rows of a step's tokens are read, which
    is not counted."""

    name: str
    reads: Reads
    matrices: tuple[Matrix, ...]

    @cached_property
    def streamed_bytes(self) -> int:
        """Bytes read from the file in a sweep when it is not resident."""
        return 0 if self.reads == "rows" else sum(m.file_bytes for m in self.matrices)

    @cached_property
    def packed_bytes(self) -> int:
        """Bytes of its matrices in memory."""
        return sum(m.packed_bytes for m in self.matrices)


@dataclass(frozen=True)
class SegmentOutline:
    """A Segment's weights and Ops. ``vector_bytes`` are norms and biases as floats."""

    segment: Segment
    units: tuple[UnitOutline, ...]
    vector_bytes: int
    lowered: Lowered = field(repr=False, compare=False)

    @cached_property
    def matrices(self) -> tuple[Matrix, ...]:
        """Those of all units."""
        return tuple(m for unit in self.units for m in unit.matrices)

    @property
    def name(self) -> str:
        """The Segment's name."""
        return self.segment.name

    @cached_property
    def selects(self) -> bool:
        """Whether it gives logits: of selected rows, and not at all for a step that wants none."""
        return any(op.kind == "select" for op in self.segment.program.ops)

    @cached_property
    def streamed_bytes(self) -> int:
        """Bytes read from the file in a sweep when nothing of it is resident."""
        return sum(unit.streamed_bytes for unit in self.units)

    @property
    def packed_bytes(self) -> int:
        """Bytes of its matrices in memory."""
        return sum(unit.packed_bytes for unit in self.units)

    @property
    def least_tile(self) -> int:
        """Bytes of the smallest tile that every product of it can be cut into: a panel, or two of
        each matrix where one gates another."""
        return max((smallest_tile(p, together=t) for p, t in self._products), default=0)

    def reads(self, tile_bytes: int) -> int:
        """Reads that a sweep takes when it streams: one for each matrix's part of a tile."""
        return sum(_reads(parts, tile_bytes, together) for parts, together in self._products)

    @cached_property
    def _products(self) -> tuple[tuple[tuple[ProductPart, ...], bool], ...]:
        """The matrices of each node that multiplies, and whether its tiles have parts of all."""
        weights = {m.name: m for m in self.matrices}
        found = []
        for node in self.lowered.nodes:
            matrices = [weights[p.op.inputs[1]] for p in node.products]
            parts = tuple(ProductPart(-(-m.rows // PANEL), m.panel_bytes) for m in matrices)
            if parts:
                found.append((parts, node.glu is not None))
        return tuple(found)

    def arena_bytes(self, tokens: int, out_rows: int) -> int:
        """Bytes of activations that a step of so many tokens and rows of logits takes."""
        program = self.segment.program

        def rows(name: str) -> int:
            dim = program.values[name].shape[0]
            return dim if isinstance(dim, int) else {"T": tokens, "R": out_rows}[dim]

        external = program.outputs[0] if "logits" in self.segment.outputs else None
        return Placement(program, self.lowered, rows, external).layout.size


@dataclass(frozen=True)
class Outline:
    """A model's sizes. ``copies`` says that some weights are not read as the kernels want them:
    8-bit floats apart from their scales, or transposed, which ``turns`` says."""

    name: str
    segments: tuple[SegmentOutline, ...]
    kv: tuple[KVLayer, ...]
    vocabulary: int
    context: int
    tokenizer: TokenizerOutline
    copies: bool = False
    turns: bool = False

    @cached_property
    def _arenas(self) -> dict[tuple[int, int], int]:
        return {}

    @cached_property
    def largest_panel(self) -> int:
        """File bytes of the largest panel that streams."""
        panels = (m.panel_file_bytes for s in self.segments for m in s.matrices if not m.lookup)
        return max(panels, default=0)

    @cached_property
    def vector_bytes(self) -> int:
        """Bytes of all norms and biases."""
        return sum(s.vector_bytes for s in self.segments)

    @cached_property
    def units(self) -> tuple[UnitOutline, ...]:
        """Those of all Segments, in running order."""
        return tuple(unit for s in self.segments for unit in s.units)

    @property
    def streamed_bytes(self) -> int:
        """Bytes of all matrices that a sweep multiplies with, as the file has them."""
        return sum(s.streamed_bytes for s in self.segments)

    def reads(self, tile_bytes: int) -> int:
        """Reads of a sweep in which everything streams in tiles of this size."""
        return sum(s.reads(tile_bytes) for s in self.segments)

    def kv_bytes(self, blocks: int, kv_type: str) -> int:
        """Bytes of KV blocks."""
        return blocks * choose_kv_type(kv_type, CpuBackend.kv_types).block_nbytes(self.kv)

    def arena_bytes(self, tokens: int, out_rows: int) -> int:
        """Bytes of the arena that all Segments share."""
        key = (tokens, out_rows)
        if key not in self._arenas:
            self._arenas[key] = max(s.arena_bytes(tokens, out_rows) for s in self._distinct)
        return self._arenas[key]

    @cached_property
    def scratch_bytes(self) -> int:
        """Bytes of scratch of each thread."""
        widths = [m.width for s in self.segments for m in s.matrices]
        heads = [layer.head_dim for layer in self.kv]
        floats = max(
            _product_floats(max(widths, default=0)),
            _QUERY_TILE * (3 * max(heads, default=0) + KV_BLOCK + 2 * _PARTIAL_EXTRA) + 256,
        )
        return 4 * floats

    @cached_property
    def streaming_scratch_bytes(self) -> int:
        """The same where any matrix may stream: its panels are packed there."""
        streamed = (m for s in self.segments for m in s.matrices if not m.lookup)
        products = (4 * _product_floats(m.width) + m.packing_bytes for m in streamed)
        return max(self.scratch_bytes, *products)

    def attention_bytes(self, context: int, parallel: int, threads: int) -> int:
        """Bytes of tables of rotary positions, and of partial results of long attention."""
        # A table grows by doubling: at its last growth the one before is still there.
        tables = sum(2 * 2 * 4 * frequencies * (context + 256) for frequencies in self._ropes)
        splits = -(-context // (KV_BLOCK * _SPLIT_BLOCKS))
        partials = 0
        for op in self._attentions:
            per_row = op.attrs["heads"] * splits * 4 * (op.attrs["head_dim"] + _PARTIAL_EXTRA)
            tile = max(1, _QUERY_TILE // (op.attrs["heads"] // op.attrs["kv_heads"]))
            # Attention is split while there are too few tiles to give every thread some.
            sequences = min(parallel, 8 * threads)
            partials = max(partials, per_row * tile * sequences if splits > 1 else 0)
        return tables + partials * 3 // 2

    @cached_property
    def _ropes(self) -> tuple[int, ...]:
        """Frequencies of each table of rotary positions."""
        kinds = {
            (op.attrs["inv_freq"], op.attrs["mscale"], op.inputs[1:]): len(op.attrs["inv_freq"])
            for s in self.segments
            for op in s.segment.program.ops
            if op.kind == "rope"
        }
        return tuple(kinds.values())

    @cached_property
    def _attentions(self) -> tuple[Op, ...]:
        """One attention of each kind."""
        names = ("heads", "kv_heads", "head_dim")
        kinds = {
            tuple(op.attrs[name] for name in names): op
            for s in self.segments
            for op in s.segment.program.ops
            if op.kind == "attention"
        }
        return tuple(kinds.values())

    @cached_property
    def _distinct(self) -> tuple[SegmentOutline, ...]:
        """One Segment of each kind: layers are alike but for names."""
        kinds: dict[tuple[object, ...], SegmentOutline] = {}
        for s in self.segments:
            forms = tuple(_input_form(m.format) for m in s.matrices)
            ops = tuple((op.kind, len(op.inputs)) for op in s.segment.program.ops)
            widths = tuple(v.shape for v in s.segment.program.values.values())
            kinds.setdefault((ops, widths, forms), s)
        return tuple(kinds.values())


def outline(name: str, model: Model, file: ModelFile) -> Outline:
    """The Outline of a Model that was built from ``file``."""
    segments = tuple(_segment(segment, file) for segment in model.segments)
    weights = [w for segment in model.segments for w in segment.weights]
    turns = any(w.transform == "transpose" for w in weights)
    copies = turns or any(file.tensors[w.source].type.gguf_id is None for w in weights)
    return Outline(
        name,
        segments,
        model.kv,
        model.vocab_size,
        model.context_length,
        _tokenizer(model, file),
        copies,
        turns,
    )


def _product_floats(width: int) -> int:
    return 32 * width + 1024


def _segment(segment: Segment, file: ModelFile) -> SegmentOutline:
    units = tuple(
        UnitOutline(
            unit.name,
            unit.reads,
            tuple(_matrix(w, file, unit.reads == "rows") for w in unit.weights),
        )
        for unit in segment.units
    )
    vectors = sum(4 * w.shape[0] for w in segment.weights if len(w.shape) == 1)
    forms = {m.name: _input_form(m.format) for unit in units for m in unit.matrices}
    return SegmentOutline(segment, units, vectors, lower(segment, forms))


def _matrix(weight: Weight, file: ModelFile, lookup: bool) -> Matrix:
    kind = file.tensors[weight.source].type
    if weight.transform == "add_one":
        kind = by_name("F32")
    rows, width = weight.shape
    file_bytes = kind.tensor_nbytes(weight.shape)
    known = _native.format_info(native_id(kind)) is not None
    packed = int(_native.packed_bytes(native_id(kind), rows, width)) if known else file_bytes
    source = (weight.source, weight.rows)
    return Matrix(weight.name, source, kind.name, rows, width, file_bytes, packed, lookup)


@lru_cache(maxsize=64)
def _input_form(format: str) -> str:
    info = _native.format_info(native_id(by_name(format)))
    return str(info["input_form"]) if isinstance(info, dict) else "f32"


@lru_cache(maxsize=1024)
def _reads(parts: tuple[ProductPart, ...], tile_bytes: int, together: bool) -> int:
    return sum(map(len, cut(parts, tile_bytes, together=together)))


def _tokenizer(model: Model, file: ModelFile) -> TokenizerOutline:
    """From the metadata, or from a tokenizer.json that is here. For one that is not, twice as many
    merges as tokens are assumed, as the largest tokenizers have them."""
    if file.kind == "gguf" and "tokenizer.ggml.tokens" in file.metadata:
        tokens = len(file.metadata["tokenizer.ggml.tokens"])
        merges = len(file.metadata.get("tokenizer.ggml.merges", ()))
        return TokenizerOutline("bpe" if merges else "sentencepiece", tokens, merges)
    tokens = model.vocab_size
    if file.kind == "gguf":
        return TokenizerOutline("bpe", tokens, 2 * tokens)
    merges_here, pairs = count_merges(file.path) or (2 * tokens, True)
    return TokenizerOutline("json pairs" if pairs else "json", tokens, merges_here)
