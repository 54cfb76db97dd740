"""The native backend: a Segment is one call that releases the GIL and runs on a thread team."""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

import strata._native as _native
from strata.backends.base import Activations, KVCache, LoadedSegment, Step
from strata.backends.kv_types import BF16, F16, Q8_0, KVType
from strata.backends.native_segment import NativeSegment, Parameters
from strata.backends.weights import WeightError, WeightSource
from strata.errors import UsageError
from strata.program import KVLayer, Segment, Weight
from strata.quant import BlockType, by_name
from strata.quant.grids import grid

MAX_TOKENS = 512
"""Tokens of one step: as many rows as the arena holds."""

MAX_OUT_ROWS = 64
"""Rows of logits of one call of the head."""

# Block formats that no GGUF file has, by their ids in csrc/kernels/kernels.h.
_OWN_FORMATS = {"F8_E4M3_B128": 1000}

_CODEBOOKS = ("IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S")


def native_id(block_type: BlockType) -> int:
    """The id in csrc/kernels/kernels.h; one without kernels gets an id that no kernel knows."""
    own = _OWN_FORMATS.get(block_type.name, block_type.gguf_id)
    return -1 if own is None else own


def available_isas() -> tuple[str, ...]:
    """Instruction sets that have kernels and run here, the best first."""
    return tuple(_native.available_isas())


def choose_isa(name: str | None = None) -> str:
    """The instruction set asked for (argument, else STRATA_ISA), or the best one here."""
    wanted = name or os.environ.get("STRATA_ISA", "").strip().lower()
    if not wanted:
        return available_isas()[0]
    if wanted not in available_isas():
        raise UsageError(
            f"STRATA_ISA: no kernels for '{wanted}' here; available: {', '.join(available_isas())}"
        )
    return wanted


def usable_cores() -> int:
    """Cores this process may use: its affinity, cut by the cgroup's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, _cgroup_cores()))


def _cgroup_cores() -> int:
    unlimited = 1 << 16
    try:
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()[:2]
    except (OSError, ValueError):
        try:
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as f:
                quota = f.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as f:
                period = f.read().strip()
        except OSError:
            return unlimited
    try:
        return max(1, -(-int(quota) // int(period))) if int(quota) > 0 else unlimited
    except (ValueError, ZeroDivisionError):
        return unlimited


@lru_cache(maxsize=1)
def _kernels_digest() -> str:
    """Of the extension module's bytes: other kernels may add in another order."""
    path = _native.__file__
    assert path is not None
    with open(path, "rb") as module:
        return hashlib.blake2b(module.read(), digest_size=16).hexdigest()


class CpuBackend:
    """Runs Segments with the native kernels.

    ``threads`` defaults to the cores this process may use, ``isa`` to STRATA_ISA or the best here.
    The bits of the results depend on ``isa`` and on neither ``threads`` nor the cut into steps.
    """

    name = "cpu"
    kv_types = (F16, BF16, Q8_0)
    max_tokens = MAX_TOKENS
    max_out_rows = MAX_OUT_ROWS

    def __init__(self, threads: int | None = None, isa: str | None = None) -> None:
        if threads is not None and threads < 1:
            raise UsageError(f"threads must be at least 1, got {threads}")
        self.isa = choose_isa(isa)
        self.threads = threads or usable_cores()
        self._team = _native.Team(self.threads)
        self._arena: Any = None
        self._arena_need = (0, 0)
        # A weight used by two Segments (a tied embedding) is held once.
        self._packed: weakref.WeakValueDictionary[object, Any] = weakref.WeakValueDictionary()
        self._ropes: dict[tuple[bytes, float], Any] = {}
        self._step: tuple[Step, Any] | None = None
        for name in _CODEBOOKS:
            _native.set_grid(native_id(by_name(name)), grid(name).view(np.uint8).reshape(-1))

    def load(self, segment: Segment, weights: WeightSource) -> NativeSegment:
        """Pack a Segment's weights and lower its Program."""
        packed: dict[str, Any] = {}
        floats: dict[str, NDArray[np.float32]] = {}
        for weight in segment.weights:
            if len(weight.shape) == 2:
                packed[weight.name] = self._pack(weight, weights)
            else:
                floats[weight.name] = np.ascontiguousarray(weights.floats(weight)).reshape(-1)
        native = NativeSegment(
            segment, Parameters(packed, floats, self._rope), MAX_TOKENS, MAX_OUT_ROWS
        )
        self._arena_need = (
            max(self._arena_need[0], native.arena_bytes),
            max(self._arena_need[1], native.scratch_floats),
        )
        self._arena = None
        return native

    def _pack(self, weight: Weight, weights: WeightSource) -> Any:
        key = (id(weights), weight.source, weight.rows, weight.transform)
        found = self._packed.get(key)
        if found is not None:
            return found
        block_type = weights.type(weight)
        n, k = weight.shape
        try:
            packed = _native.PackedWeight(native_id(block_type), n, k)
        except ValueError as error:
            raise WeightError(f"tensor '{weight.source}' ({block_type.name}): {error}") from None
        packed.pack(np.ascontiguousarray(weights.raw(weight)).reshape(-1), self._team)
        self._packed[key] = packed
        return packed

    def _rope(self, inv_freq: NDArray[np.float32], mscale: float) -> Any:
        key = (inv_freq.tobytes(), mscale)
        if key not in self._ropes:
            self._ropes[key] = _native.RopeTable(inv_freq.tolist(), mscale)
        return self._ropes[key]

    @property
    def numerics(self) -> str:
        """The instruction set and the kernels themselves."""
        return f"{self.name} {self.isa} {_kernels_digest()}"

    def kv_cache(
        self, layers: Sequence[KVLayer], blocks: int, kv_type: KVType | None = None
    ) -> KVCache:
        """KV for ``blocks`` blocks of KV_BLOCK positions in every layer."""
        native_type = self.kv_types.index(kv_type or self.kv_types[0])
        return _native.KvStore(native_type, [(k.kv_heads, k.head_dim) for k in layers], blocks)

    def run(
        self, loaded: LoadedSegment, step: Step, kv: KVCache, inputs: Activations
    ) -> Mapping[str, Any]:
        """Run one Segment over a step of at most MAX_TOKENS tokens.

        Activations between Segments stay in the arena: they are those of the last Segment run,
        and the step must be the same one. ``logits`` come back as a new float32 array.
        """
        assert isinstance(loaded, NativeSegment)
        assert isinstance(kv, _native.KvStore)
        if self._arena is None:
            self._arena = _native.Arena(self._arena_need[0], self.threads, self._arena_need[1])
        return loaded.run(self._team, self.isa, self._arena, self._native_step(step), kv, step)

    def _native_step(self, step: Step) -> Any:
        if self._step is None or self._step[0] is not step:
            spans = [(s.row, s.rows, s.past, s.table) for s in step.spans]
            native = _native.Step(step.tokens, step.positions, step.out_rows, spans)
            self._step = (step, native)
        return self._step[1]

    @property
    def nbytes(self) -> int:
        """Bytes of activations and scratch."""
        return 0 if self._arena is None else int(self._arena.nbytes)
