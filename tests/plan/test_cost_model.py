"""Times and bytes of the models against sums done by hand."""

from __future__ import annotations

from dataclasses import replace
from math import hypot

import pytest

from strata.backends.cpu.profile import READ_ENTRY, CpuModelProfile
from strata.backends.profile import SweepSize
from strata.machine import constants
from strata.machine.machine import AttentionRate, DiskRate
from strata.machine.rates import Rates, best_read, kept_up
from strata.plan.cost_model import CostModel
from strata.plan.memory_model import (
    Sizes,
    fixed_shares,
    memory_shares,
    room_for_weights,
)
from strata.plan.outline import Outline
from support.described import machine, model

GB, MB = 10**9, 10**6
ALL = frozenset(u.name for u in model("llama-3.1-8b").units)


def native(outline: Outline) -> CpuModelProfile:
    """What the native backend says of a model."""
    assert isinstance(outline.profile, CpuModelProfile)
    return outline.profile


def costs(threads: int = 8) -> CostModel:
    return CostModel(model("llama-3.1-8b"), Rates(machine("laptop"), threads), "f16")


def test_products_are_bound_by_memory_for_few_rows_and_by_arithmetic_for_many() -> None:
    rates = Rates(machine("laptop"), 8)
    assert rates.product_s("Q4_K", 48 * GB, 0) == pytest.approx(1.0)
    assert rates.product_s("Q4_K", 0, 900e9) == pytest.approx(1.0)
    assert rates.product_s("Q4_K", 48 * GB, 900e9) == pytest.approx(hypot(1, 1))
    # Half the cores do half the arithmetic, and nearly all of the reading.
    half = Rates(machine("laptop"), 4)
    assert half.product_s("Q4_K", 0, 900e9) == pytest.approx(2.0)
    assert half.product_s("Q4_K", 48 * GB, 0) == pytest.approx(55 / 52)
    assert Rates(machine("laptop"), 1).product_s("Q4_K", 48 * GB, 0) == pytest.approx(55 / 22)


def test_a_resident_sweep_reads_every_weight_once() -> None:
    m = model("llama-3.1-8b")
    weights = sum(w.packed_bytes for s in m.segments for w in s.matrices if not w.lookup)
    streaming = costs().streaming(ALL, 1e9, 0)
    sweep = costs().sweep(SweepSize(1, 1, 0, 1), streaming)
    assert (sweep.read_s, sweep.bound) == (0, "memory")
    overheads = sweep.total_s - weights / 48e9
    # Nodes, Segments, a step and the choice of a token.
    assert 0 < overheads < 0.15 * sweep.total_s


def test_what_is_read_ahead_while_resident_segments_run_is_what_the_ring_has_room_for() -> None:
    model_costs, m = costs(), model("llama-3.1-8b")
    load = SweepSize(1, 64, 0, 1)
    # Every other layer streams.
    streamed = {u.name for s in m.segments[2::2] if not s.selects for u in s.units}
    alone = model_costs.sweep(load, model_costs.streaming(ALL, 1e9, 0))
    for ring in (4 * MB, 16 * MB):
        streaming = model_costs.streaming(ALL - streamed, 1e9, ring)
        sweep = model_costs.sweep(load, streaming)
        assert sweep.read_s == pytest.approx(streaming.nbytes / (1e9 * constants.DISK_SHARE))
        packing = sum(model_costs.pack_s[name] for name in streamed)
        assert sweep.compute_s == pytest.approx(alone.compute_s + packing)
        # Of each layer so much is there already; the rest is waited for.
        ahead = ring * constants.RING_SHARE / (1e9 * constants.DISK_SHARE)
        waited = sweep.read_s - len(m.segments[2:-1:2]) * ahead
        assert sweep.bound == "disk"
        assert waited + alone.compute_s / 2 < sweep.total_s < waited + sweep.compute_s


def test_all_that_streams_is_hidden_behind_the_longer_of_reading_and_work() -> None:
    model_costs = costs()
    for rows in (1, 2048):
        streaming = model_costs.streaming(frozenset(), 1e9, 64 * MB)
        sweep = model_costs.sweep(SweepSize(1, rows, 0, 1), streaming)
        longer = max(sweep.read_s, sweep.compute_s)
        assert longer <= sweep.total_s <= 1.1 * longer
        assert sweep.bound == ("disk" if rows == 1 else "compute")


def test_kv_on_disk_is_read_while_its_layer_attends_but_for_what_is_read_ahead() -> None:
    model_costs, m = costs(), model("llama-3.1-8b")
    positions, slots = 1024 * 64, 24
    size = SweepSize(1, 1, positions - 1, 1)
    streaming = model_costs.streaming(ALL, 8e9, 0, kv_slots=slots)
    rate = 8e9 * constants.DISK_SHARE
    layers, part = len(m.state), 64 * 8 * 128 * 2 * 2
    products = model_costs.sweep_s(SweepSize(1, 1, 0, 1), model_costs.streaming(ALL, 1e9, 0))
    late = ((1024 - slots) * part - constants.KV_AHEAD) / rate
    written = part * layers / 64 / rate
    assert model_costs.sweep_s(size, streaming) == pytest.approx(products + layers * late + written)
    # Where attention takes longer than reading, nothing is waited for.
    fast = model_costs.streaming(ALL, 1e15, 0, kv_slots=slots)
    resident = model_costs.sweep_s(size, model_costs.streaming(ALL, 1e9, 0))
    assert model_costs.sweep_s(size, fast) == pytest.approx(resident, rel=1e-4)


def test_a_sweep_without_logits_leaves_the_head_out() -> None:
    model_costs = costs()
    head = model("llama-3.1-8b").segments[-1]
    streaming = model_costs.streaming(frozenset(), 1e9, 64 * MB)
    with_head, without = (
        model_costs.sweep(SweepSize(1, 16, 0, rows), streaming).read_s for rows in (1, 0)
    )
    assert with_head - without == pytest.approx(head.streamed_bytes / (1e9 * constants.DISK_SHARE))


def test_attention_grows_with_the_context_and_not_beyond_a_window() -> None:
    def decode(name: str, past: int, kv_type: str = "f16") -> float:
        m = model(name)
        # Arithmetic that hides behind reading whatever the type.
        host = replace(machine("laptop"), attention=AttentionRate(40e9, 1e15))
        model_costs = CostModel(m, Rates(host, 8), kv_type)
        everything = frozenset(u.name for u in m.units)
        streaming = model_costs.streaming(everything, 1e9, 0)
        return model_costs.sweep(SweepSize(1, 1, past, 1), streaming).total_s

    longer = decode("llama-3.1-8b", 8192) - decode("llama-3.1-8b", 4096)
    assert longer == pytest.approx(32 * 2 * 1024 * 2 * 4096 / 40e9)
    halved = decode("llama-3.1-8b", 8192, "q8_0") - decode("llama-3.1-8b", 4096, "q8_0")
    assert halved == pytest.approx(longer * (1 + 2 / 32) / 2)
    # Of gemma 2's layers every other one sees 4096 positions at most.
    far = decode("gemma-2-2b", 8000) - decode("gemma-2-2b", 6000)
    near = decode("gemma-2-2b", 4000) - decode("gemma-2-2b", 2000)
    assert far == pytest.approx(near / 2, rel=0.01)


def test_shares_add_up_and_the_room_is_used_to_the_byte() -> None:
    m = model("llama-3.1-8b")
    sizes = Sizes(8, 64, 1, (16,), 1024, 1, "f16", 64 * MB, 1 << 20, 5, 0)
    fixed = fixed_shares(m, sizes)
    assert fixed.kv == 32 * 2 * 1024 * 2 * 1024
    assert fixed.ring == 64 * MB
    # Loading comes before the ring is filled, and reads go there. Every read has its entry; threads
    # have lines that are turned.
    entries = m.reads(sizes.tile_bytes) * READ_ENTRY
    assert fixed.staging == entries
    turned = fixed_shares(replace(m, profile=replace(native(m), turns=True)), sizes)
    assert turned.staging == entries + 5 * (136 << 10)
    # Each thread packs panels of what streams: two of K 14336 as Q6_K, the largest ones here.
    packed = fixed.activations - fixed_shares(m, replace(sizes, ring_bytes=0)).activations
    assert packed == 8 * 2 * 16 * 14336 // 256 * 210
    # Five requests with what alignment adds come to one huge page more.
    loads = fixed_shares(m, replace(sizes, ring_bytes=0, kv_blocks=(0,), request_bytes=16 << 20))
    others = loads.kv + loads.logits + loads.activations
    assert loads.staging == 5 * (16 << 20) + (2 << 20) - others
    # Two norms a layer, the last one, and each layer's factors of rotary frequencies.
    assert fixed.resident == m.vector_bytes == 4 * (4096 * (2 * 32 + 1) + 64 * 32)
    whole = memory_shares(m, sizes, ALL)
    assert whole.resident == m.vector_bytes + sum(s.packed_bytes for s in m.segments)
    needed = whole.resident - fixed.resident
    assert needed - 2 <= room_for_weights(fixed, whole.total) <= needed
    assert room_for_weights(fixed, whole.total + 2) >= needed


def test_a_request_holds_at_least_a_panel_and_copies_take_twice() -> None:
    m = native(model("llama-3.1-70b"))
    assert m.request_room(4096) == m.largest_panel + 3 * 4096
    assert replace(m, turns=True).request_room(1 << 20) == 2 * (1 << 20) + 3 * 4096


def test_the_smallest_good_read_is_chosen_and_direct_ones_first() -> None:
    def disk(*rates: tuple[str, int, int, float]) -> DiskRate:
        rows = tuple(DiskRate(mode, kb << 10, d, r) for mode, kb, d, r in rates)  # type: ignore[arg-type]
        return best_read(replace(machine("laptop"), disk=rows), 1 << 20)

    assert disk(("direct", 1024, 8, 3.0), ("direct", 256, 4, 2.95)).request_bytes == 256 << 10
    assert disk(("direct", 1024, 8, 3.0), ("direct", 256, 4, 2.0)).depth == 8
    assert disk(("direct", 256, 1, 2.0), ("buffered", 256, 1, 2.5)).mode == "direct"
    assert disk(("direct", 256, 1, 2.0), ("buffered", 256, 1, 3.0)).mode == "buffered"
    assert disk(("buffered", 256, 1, 3.0), ("buffered", 4096, 1, 9.0)).bytes_s == 3.0


def test_a_larger_ring_keeps_the_disk_busier_up_to_what_it_gives() -> None:
    m = machine("server")
    read = best_read(m, 4 << 20, large=True)
    assert read.request_bytes == 4 << 20
    most = max(d.bytes_s for d in m.disk if d.mode == read.mode)
    rates = [kept_up(m, read, ring << 20, 1e9) for ring in (1, 4, 16, 64, 1024)]
    assert rates == sorted(rates)
    assert rates[0] < rates[-1] <= most
    # A disk that rests for a moment each time that what was under way has come.
    under_way = (1 << 20) * constants.RING_SHARE
    assert rates[0] == pytest.approx(under_way / (under_way / most + constants.READ_GAP))
    # Nor do many readers help where each of them reads little.
    small = kept_up(m, read, 1 << 30, 1 << 10)
    under_way = constants.READERS << 10
    assert small == pytest.approx(under_way / (under_way / most + constants.READ_GAP))
