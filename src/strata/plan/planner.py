"""From a model, a machine, limits and a workload to the Plan: a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from math import ceil

from strata.backends.kv_types import KV_BLOCK
from strata.backends.profile import SweepSize, UnitProfile
from strata.backends.settings import EXPERT_DECAY
from strata.errors import UsageError
from strata.machine import constants
from strata.machine.machine import DiskRate, Machine
from strata.machine.rates import Rates, best_read, kept_up
from strata.plan.beside import Beside, added_beside, steps
from strata.plan.cost_model import CostModel, Streaming
from strata.plan.drafts import NO_DRAFTS, Drafts, drafts, for_all, row_counts
from strata.plan.expert_policies import AHEAD, SURE_OF
from strata.plan.memory_model import (
    Sizes,
    added_bytes,
    fixed_shares,
    memory_shares,
    peak_bytes,
    peak_while_opening,
    resident_bytes,
    room_for_weights,
    server_bytes,
    sources,
)
from strata.plan.outline import Outline
from strata.plan.plan import Limits, Plan, Prediction, Workload
from strata.plan.prefill import prefill_budget
from strata.plan.reasons import explain
from strata.plan.routes import curve_for
from strata.plan.state_room import StateRoom
from strata.records import dataclass
from strata.sizes import format_budget, format_seconds, format_size, format_speed

_SPARE_BLOCKS = 2
"""Of KV in memory, beside those that a step writes: for drafts."""

_MOST_SWEEPS = 64
"""Of a long prompt's sweeps that are looked at one by one."""

_FEW_BLOCKS = 2
"""Times as many blocks as a step may write are too few to be put on disk."""


class BudgetTooSmall(UsageError):
    """A budget in which the model cannot run; ``smallest`` is one in which it can."""

    def __init__(self, message: str, smallest: int) -> None:
        super().__init__(message)
        self.smallest = smallest


@dataclass(frozen=True)
class Candidate:
    """A way to run, before it is written down: sizes, how the disk is read, what stays, and bytes
    reserved for it."""

    sizes: Sizes
    tile_bytes: int
    read: DiskRate
    resident: frozenset[str]
    reserved: int
    prediction: Prediction


def plan(model: Outline, machine: Machine, limits: Limits, workload: Workload) -> Plan:
    """The fastest way to do ``workload`` within ``limits`` that the cost model knows.

    Pure: the same arguments give the same Plan. Raises BudgetTooSmall, or UsageError for a
    workload that the model cannot serve.
    """
    return Planner(model, machine, limits, workload).plan(limits.budget)


class Planner:
    """Plans one model, machine and workload for several budgets; costs are worked out once."""

    def __init__(
        self, model: Outline, machine: Machine, limits: Limits, workload: Workload
    ) -> None:
        self.model, self.machine, self.workload = model, machine, workload
        self.threads = limits.threads or machine.cores
        self._kv_type = limits.kv_type
        self._slowdown, self.limits = limits.slowdown, limits
        self._room = StateRoom(model, limits.kv_type, workload.concurrency, limits.kv_bytes)
        self._process = limits.process_bytes or constants.PROCESS
        self._costs = CostModel(model, Rates(machine, self.threads), limits.kv_type)
        # Where all is resident, and what is read has to wait beside what stays.
        self._loading = best_read(machine, constants.LOADING_REQUEST)
        self._all = frozenset(unit.name for unit in model.units)
        self._fill_orders = fill_orders(model)
        self._besides = steps(model, workload)
        self._head = model.segments[-1]
        _check(model, workload)
        self._room.check(self._least_context(), self._fewest_tokens)

    def plan(self, memory: int | None) -> Plan:
        """The Plan for a budget; None is what the machine leaves."""
        budget = self.default_budget() if memory is None else memory
        made = self._planned(budget, given=memory is not None)
        if made is None:
            raise self._too_small(budget)
        return made

    def _planned(self, budget: int, *, given: bool = True) -> Plan | None:
        beside = self._beside(budget)
        left = budget - self._added[beside]
        drafts = self._drafts(self._surely_for_drafts(left))
        best = self._first(left - drafts.added_bytes)
        if best is None:
            return None
        if not drafts.tokens:
            drafts, best = self._squeezed_in(best, left)
        rows = best.sizes.logit_rows + drafts.rows
        head_stays = best.resident.issuperset(unit.name for unit in self._head.units)
        guessed = for_all(drafts, self.workload, head_stays=head_stays)
        sizes = replace(best.sizes, beside=beside, logit_rows=rows, drafts=guessed)
        sizes = self._with_sure(sizes, best.read, best.resident)
        sizes = self._with_rows(sizes, best.resident, budget)
        best = self._candidate(sizes, best.tile_bytes, best.read, best.resident)
        return self._write(best, budget, given=given)

    def _first(self, budget: int) -> Candidate | None:
        """The best of the first context that has room."""
        found = (self._best(budget, c, on_disk=on_disk) for c, on_disk in self._contexts(budget))
        return next((candidate for candidate in found if candidate is not None), None)

    def default_budget(self) -> int:
        """The budget where none is given: free memory but for a share that others may need."""
        if not self.machine.memory_available:
            raise UsageError("the free memory of this machine is not known: give --memory")
        return int(self.machine.memory_available * (1 - constants.KEEP_BACK))

    def _beside(self, budget: int) -> Beside:
        """What is set aside beside tokens: the most whose share of the budget is modest, or beside
        which all weights stay."""
        spare = constants.BESIDE_SHARE * (budget - self._floor)
        everything = self._everything(self._default_context())
        fits = [
            beside
            for beside, added in self._added.items()
            if added <= max(spare, budget - everything)
        ]
        return fits[-1] if fits else self._besides[0]

    def _drafts(self, spare: int) -> Drafts:
        """What so many bytes set aside for guessing tokens are."""
        sizes = self._resident_sizes(self._default_context(), self._fewest_tokens)
        return drafts(self.model, self.workload, sizes, spare)

    def _surely_for_drafts(self, budget: int) -> int:
        """Bytes for guessing tokens whatever they cost: what all weights leave, and with a draft
        model, which would be there for nothing, as much as makes a sweep a little longer."""
        beside_all = budget - self._everything(self._default_context())
        if not self.workload.draft_model_bytes:
            return beside_all
        return max(beside_all, min(self._most_for_drafts, budget - self._floor))

    @property
    def _most_for_drafts(self) -> int:
        return int(constants.DRAFTS_SHARE * self.model.streamed_bytes)

    def _squeezed_in(self, best: Candidate, budget: int) -> tuple[Drafts, Candidate]:
        """Guesses in what ``best`` leaves, and in the place of weights or KV as far as that makes
        answers hardly slower, were no guess right; how it streams stays."""
        spare = min(self._most_for_drafts, int((budget - self._floor) * constants.BESIDE_SHARE))
        least = (1 - constants.DRAFTS_SHARE) * best.prediction.decode_tok_s
        while (made := self._drafts(spare)).tokens:
            left = budget - made.added_bytes
            on_disk = best.sizes.kv_slots > 0
            alike = self._candidates(left, best.sizes.context, on_disk=on_disk, like=best)
            found = _fastest(alike)
            if found is not None and found.prediction.decode_tok_s >= least:
                return made, found
            spare = made.added_bytes // 2
        return NO_DRAFTS, best

    def _room_for_a_grammar(self) -> int:
        """The smallest budget in which there may be a grammar, in whole megabytes; 0 where there
        never is."""
        added = [added for beside, added in self._added.items() if beside.grammars]
        if not added:
            return 0
        everything = self._everything(self._default_context())
        least = min(self._floor + ceil(added[0] / constants.BESIDE_SHARE), everything + added[0])
        return -(-least // constants.MB) * constants.MB

    @cached_property
    def _added(self) -> dict[Beside, int]:
        """Bytes of each of these beyond the least."""
        least = self._besides[0]
        more = {b: added_beside(b, least, self.model.vocabulary) for b in self._besides[1:]}
        return {least: 0, **more}

    def floor(self) -> int:
        """The smallest budget in which the model runs, in whole megabytes."""
        return self._smallest

    @cached_property
    def _smallest(self) -> int:
        # Weights so small that none needs to stream are loaded through buffers for which the least
        # that streams has no room.
        smallest = self._floor
        while self._planned(smallest) is None:
            smallest += constants.MB
        return smallest

    @cached_property
    def _floor(self) -> int:
        context = self._least_context()
        ways = [sizes for sizes, _, _ in self._sizes(context)]
        ways += [sizes for sizes, _, _ in self._sizes(context, on_disk=True)]
        totals = [fixed_shares(self.model, sizes).total for sizes in ways]
        opening = peak_while_opening(self.model, self._resident_sizes(context, self._fewest_tokens))
        least = max(min(totals), opening)
        # Rounded up, and by one more for the rounding of the margin's share.
        return (least // constants.MB + 2) * constants.MB

    def everything(self) -> int:
        """A budget in which all weights are resident, in whole megabytes."""
        most = self._everything(self._default_context()) + self._added[self._besides[-1]]
        return (most // constants.MB + 2) * constants.MB

    def _everything(self, context: int) -> int:
        sizes = self._resident_sizes(context, self._token_choices(context, resident=True)[-1])
        return memory_shares(self.model, sizes, self._all).total

    def _too_small(self, budget: int) -> BudgetTooSmall:
        floor = self.floor()
        if self.limits.process_bytes is not None:
            floor += constants.PROCESS_VARIES
        least = self._planned(floor)
        assert least is not None, "that much does"
        p = least.predicted
        context = self.workload.context
        what = "" if context is None else f" with a context of {context}"
        if self.workload.draft_model_bytes:
            what += f" beside {format_size(self.workload.draft_model_bytes)} for its draft model"
        return BudgetTooSmall(
            f"{format_size(budget)} is too little for {self.model.name}{what}: it needs "
            f"{format_budget(floor)}, and would then give {format_speed(p.decode_tok_s)} and the "
            f"first token of a prompt of {p.prompt_tokens} after {format_seconds(p.ttft_s)}; more "
            f"memory makes it faster",
            floor,
        )

    def _best(self, budget: int, context: int, *, on_disk: bool) -> Candidate | None:
        if (
            peak_while_opening(self.model, self._resident_sizes(context, self._fewest_tokens))
            > budget
        ):
            return None
        found = _fastest(self._candidates(budget, context, on_disk=on_disk))
        # Where KV leaves little to weights it may be better where it is slower to read.
        crowded = found is not None and found.prediction.sweep_bytes > 0
        crowded = crowded and self._kv_bytes(context) > constants.DEFAULT_KV_SHARE * budget
        if on_disk or not (self.limits.kv_disk or crowded):
            return found
        others = self._candidates(budget, context, on_disk=True)
        return _fastest(others if found is None else chain([found], others))

    def _candidates(
        self, budget: int, context: int, *, on_disk: bool, like: Candidate | None = None
    ) -> Iterator[Candidate]:
        """Every way to run that fits; those that stream alone as ``like`` does, if it is given."""
        for tokens in self._token_choices(context, resident=True):
            sizes = self._resident_sizes(context, tokens)
            if on_disk and (sizes := self._with_disk(sizes)).kv_slots == 0:
                continue
            if memory_shares(self.model, sizes, self._all).total <= budget:
                yield self._with_kv_slots(sizes, 0, self._loading, self._all, budget)
        for sizes, tile, read in self._sizes(context, on_disk=on_disk):
            ways = (tile, sizes.max_tokens)
            if like is not None and ways != (like.tile_bytes, like.sizes.max_tokens):
                continue
            fixed = fixed_shares(self.model, sizes)
            if fixed.total > budget:
                continue
            room = room_for_weights(fixed, budget)
            if self.model.profile.experts:
                filled = (
                    self._with_slots(sizes, room, order, budget) for order in self._fill_orders
                )
                for with_slots, resident in dict.fromkeys(filled):
                    yield self._with_kv_slots(with_slots, tile, read, resident, budget)
                continue
            for resident in dict.fromkeys(fill(order, room) for order in self._fill_orders):
                # Where nothing streams the ring buffer would be for nothing.
                if resident != self._all:
                    yield self._with_kv_slots(sizes, tile, read, resident, budget)

    def _with_disk(self, sizes: Sizes) -> Sizes:
        """The same with as many blocks of KV in memory as a step writes, the others on disk; with
        all in memory where there are few, or the model has none that could be on disk."""
        least = sizes.max_tokens // KV_BLOCK + 2 * sizes.parallel + _SPARE_BLOCKS
        able = self.limits.kv_disk is not False and not self.model.whole
        if not able or not self.model.profile.kv_ring_bytes(sizes.kv_type):
            return sizes
        if sizes.kv_blocks[0] < _FEW_BLOCKS * least:
            return sizes
        request = min(self._loading.request_bytes, constants.READERS_REQUEST)
        return replace(sizes, kv_slots=least, io_threads=constants.READERS, request_bytes=request)

    def _with_kv_slots(
        self, sizes: Sizes, tile: int, read: DiskRate, resident: frozenset[str], budget: int
    ) -> Candidate:
        """Where KV is on disk, with as much of it in memory as the rest leaves: a byte of weights
        saves a read in every sweep, and one of KV in those that come so far."""
        if sizes.kv_slots:
            left = budget - memory_shares(self.model, sizes, resident).total
            each = self.model.profile.block_nbytes(sizes.kv_type)[0]
            more = int(max(0, left - constants.MB) / (1 + constants.MARGIN_SHARE)) // each
            slots = min(sizes.kv_blocks[0], sizes.kv_slots + more)
            sizes = replace(sizes, kv_slots=slots)
        return self._candidate(sizes, tile, read, resident)

    def _with_slots(
        self, sizes: Sizes, room: int, order: Sequence[UnitProfile], budget: int
    ) -> tuple[Sizes, frozenset[str]]:
        """What stays of what every sweep reads; then as many slots for experts as there is room
        for, and tables in what they leave."""
        dense = [unit for unit in order if unit.reads == "all"]
        resident = fill(dense, room)
        if len(resident) == len(dense):
            sizes = replace(sizes, ring_bytes=0)
            room = room_for_weights(fixed_shares(self.model, sizes), budget)
        room -= resident_bytes(self.model, resident)
        experts, each = self.model.profile.experts, self.model.profile.slot_bytes
        more = min(experts - sizes.expert_slots, room // each)
        sizes = replace(sizes, expert_slots=sizes.expert_slots + more)
        kept = [unit for unit in order if unit.name in resident or unit.reads == "rows"]
        room += resident_bytes(self.model, resident) - more * each
        return sizes, fill(kept, room)

    def _sizes(
        self, context: int, *, on_disk: bool = False
    ) -> Iterator[tuple[Sizes, int, DiskRate]]:
        """Every way to stream: (sizes, bytes of a tile, how the disk is read)."""
        least_tile = max((s.least_tile for s in self.model.segments), default=0)
        smallest = min((d.request_bytes for d in self.machine.disk), default=0)
        for wanted in constants.TILES:
            tile = max(wanted, least_tile)
            read = best_read(self.machine, max(wanted, smallest), large=True)
            for tokens in self._token_choices(context):
                sizes = replace(
                    self._resident_sizes(context, tokens),
                    ring_bytes=constants.RING_TILES * tile,
                    # Many threads load as fast with smaller requests, and their buffers are few.
                    request_bytes=min(self._loading.request_bytes, constants.READERS_REQUEST),
                    io_threads=constants.READERS,
                    expert_slots=min(constants.LEAST_SLOTS, self.model.profile.experts),
                )
                if on_disk and (sizes := self._with_disk(sizes)).kv_slots == 0:
                    continue
                yield sizes, tile, read

    def _io_threads(self, read: DiskRate) -> int:
        """Threads that keep about ``read.depth`` reads under way although each also packs."""
        names = [m.format for s in self.model.segments for m in s.matrices if not m.lookup]
        rates = [self._costs.rates.kernel(name).pack_bytes_s for name in set(names)]
        alone = min(rates, default=read.bytes_s) / self.machine.cores
        return read.depth + min(self.machine.cores, ceil(read.bytes_s / alone))

    def _resident_sizes(self, context: int, tokens: int) -> Sizes:
        w = self.workload
        blocks = self._room.blocks(context, tokens)
        assert blocks is not None, "only contexts that have room are tried"
        return Sizes(
            threads=self.threads,
            max_tokens=tokens,
            logit_rows=min(w.concurrency * w.logit_rows, constants.LOGIT_ROWS),
            kv_blocks=blocks,
            context=context,
            parallel=w.concurrency,
            kv_type=self._kv_type,
            server_bytes=server_bytes(w),
            beside=self._besides[0],
            process_bytes=max(self._process, constants.PROCESS + constants.PROCESS_SLACK),
            request_bytes=self._loading.request_bytes,
            io_threads=self._io_threads(self._loading),
            draft_model_bytes=w.draft_model_bytes,
        )

    @property
    def _fewest_tokens(self) -> int:
        """Tokens of the smallest sweep."""
        return max(self.workload.concurrency, 16)

    def _token_choices(self, context: int, *, resident: bool = False) -> list[int]:
        """Tokens of a sweep: doubling, from one for each sequence to all prompts at once, as far
        as windows of keys have room for so many more. Weights that are ``resident`` are used well
        by fewer."""
        w = self.workload
        if self.model.whole:
            return [max(context, w.concurrency)]
        most = constants.RESIDENT_TOKENS if resident else constants.MAX_TOKENS
        most = max(w.concurrency, min(w.prompt_tokens * w.concurrency, most))
        choices = [self._fewest_tokens]
        while choices[-1] < most:
            choices.append(min(2 * choices[-1], max(most, 16)))
        return [tokens for tokens in choices if self._room.blocks(context, tokens) is not None]

    def _candidate(
        self, sizes: Sizes, tile: int, read: DiskRate, resident: frozenset[str]
    ) -> Candidate:
        shares = memory_shares(self.model, sizes, resident)
        prediction = self.predict(sizes, read, resident)
        peak = peak_bytes(self.model, sizes, resident, self.workload, self._process)
        prediction = replace(prediction, memory=shares, peak_bytes=peak)
        return Candidate(sizes, tile, read, resident, shares.total, prediction)

    def predict(self, sizes: Sizes, read: DiskRate, resident: frozenset[str]) -> Prediction:
        """What a run of these sizes will do; of memory only what does not depend on weights."""
        w = self.workload
        streaming = self._streaming(sizes, read, resident)
        ttft = self._ttft_s(sizes, streaming)
        rows = row_counts(w.concurrency + sizes.drafts.tokens) if sizes.drafts.tokens else ()
        # One token for each sequence, with the answers half written.
        past = w.prompt_tokens + w.answer_tokens // 2
        size = SweepSize(w.concurrency, 1, past, w.concurrency)
        decode = self._costs.sweep(size, streaming)
        rate = w.concurrency / decode.total_s
        return Prediction(
            memory=fixed_shares(self.model, sizes),
            peak_bytes=0,
            load_s=self._load_s(resident, read),
            prompt_tokens=w.prompt_tokens,
            ttft_s=ttft,
            concurrency=w.concurrency,
            decode_tok_s=rate,
            sweep_bytes=streaming.nbytes + round(streaming.expert_bytes(w.concurrency)),
            sweep_read_s=decode.read_s,
            sweep_compute_s=decode.compute_s,
            bound=decode.bound,
            expert_hit_rate=streaming.hit_rate,
            kv_read_bytes=self._costs.kv_read_bytes(size, streaming),
            rows_s=tuple(self._costs.sweep_s(SweepSize(1, n, past, n), streaming) for n in rows),
        )

    def _ttft_s(self, sizes: Sizes, streaming: Streaming) -> float:
        """Seconds of all prompts. The first sweep finds no experts, and others as many as if all
        were chosen alike: of many tokens' nearly all are needed, whatever one of them finds. The
        memory of slots is handed out by the system as they are filled."""
        first, *others = _prefill(self.workload, sizes.max_tokens)
        slots = sizes.expert_slots - self._ahead(sizes.expert_slots)

        def reading(load: SweepSize) -> Streaming:
            known = streaming.experts, slots, load.tokens, self._sure(sizes)
            return replace(streaming, hit_rate=self._costs.hit_rate(*known, alike=True))

        sweeps = [(first, 1, replace(streaming, hit_rate=0.0))]
        sweeps += [(load, count, reading(load)) for load, count in _some(others)]
        read = sum(count * how.expert_bytes(load.tokens) for load, count, how in sweeps)
        fresh = min(slots * self.model.profile.slot_bytes, read) / constants.FRESH_BYTES
        return fresh + sum(count * self._costs.sweep_s(load, how) for load, count, how in sweeps)

    def _streaming(self, sizes: Sizes, read: DiskRate, resident: frozenset[str]) -> Streaming:
        rates = [read.bytes_s]
        if sizes.ring_bytes:
            # Of a usual read, as if everything streamed.
            reads = self.model.reads(sizes.tile_bytes)
            each = self.model.streamed_bytes / reads if reads else 0.0
            rates.append(kept_up(self.machine, read, sizes.ring_bytes, each))
        if sizes.expert_slots:
            slot = self.model.profile.slot_bytes
            # As much is on its way as of a ring buffer of this size.
            room = int(min(AHEAD, sizes.expert_slots) * slot / constants.RING_SHARE)
            rates.append(kept_up(self.machine, read, room, min(sizes.request_bytes, slot / 3)))
        return self._costs.streaming(
            resident,
            min(rates),
            sizes.ring_bytes,
            sizes.expert_slots - self._ahead(sizes.expert_slots),
            sizes.kv_slots,
            self.workload.concurrency,
            self._sure(sizes),
        )

    def _with_sure(self, sizes: Sizes, read: DiskRate, resident: frozenset[str]) -> Sizes:
        """With as many slots for what the next layer is sure to need as make the whole workload the
        fastest: what is read into them is not found again. Where nothing of it is so large that it
        would be sure, as many as there may be, for other prompts."""

        def seconds(ways: Sizes) -> float:
            p = self.predict(ways, read, resident)
            tokens = self.workload.answer_tokens * self.workload.concurrency
            return p.ttft_s + tokens / p.decode_tok_s

        if not (most := sizes.expert_slots // SURE_OF):
            return sizes
        counts = [most, *(most >> bit for bit in range(1, most.bit_length() + 1))]
        return min((replace(sizes, expert_sure=count) for count in counts), key=seconds)

    def _with_rows(self, sizes: Sizes, resident: frozenset[str], budget: int) -> Sizes:
        """With rows of tables on the disk kept in what nothing else has use for."""
        tables = [u for u in self.model.units if u.reads == "rows" and u.name not in resident]
        left = budget - memory_shares(self.model, sizes, resident).total
        # One byte less for the rounding of the margin's share.
        room = max(0, int(left / (1 + constants.MARGIN_SHARE)) - 1)
        most = min(sum(u.file_bytes for u in tables), constants.ROW_CACHE)
        return replace(sizes, row_cache_bytes=min(room, most))

    def _sure(self, sizes: Sizes) -> int:
        most = sizes.expert_slots // SURE_OF
        return most if sizes.expert_sure is None else sizes.expert_sure

    def _ahead(self, slots: int) -> int:
        """Of so many slots those for what is read ahead: as many as are wanted, and few."""
        return min(self.limits.experts_ahead, slots // constants.AHEAD_OF)

    def _decay(self, slots: int) -> float:
        """With which uses lose worth: the one that found most in so many slots where routes were
        recorded, else the usual one."""
        slots -= self._ahead(slots)
        curve = curve_for(self.model.hits, self.workload.concurrency, slots)
        return EXPERT_DECAY if curve is None else curve.decay

    def _load_s(self, resident: frozenset[str], read: DiskRate) -> float:
        nbytes, packing = 0, 0.0
        for unit in self.model.units:
            if unit.name in resident:
                nbytes += 0 if unit.reads == "rows" else unit.file_bytes
                packing += self._costs.pack_s[unit.name]
        tokenizer = self.model.tokenizer
        opening = (tokenizer.tokens + tokenizer.merges) * constants.OPEN_TOKEN
        reading = nbytes / (read.bytes_s * constants.DISK_SHARE)
        fresh = nbytes / constants.FRESH_BYTES
        return constants.OPEN + opening + max(reading, packing) + fresh

    def _contexts(self, budget: int) -> Iterator[tuple[int, bool]]:
        """Contexts to try: the one asked for, else the usual one, halved until its KV leaves most
        of the budget to weights that have no room beside it, and further if need be; at last the
        least one, with KV on disk."""
        context, least = self._default_context(), self._least_context()
        most_kv = constants.DEFAULT_KV_SHARE * budget
        while context > least and self._kv_bytes(context) > most_kv:
            if self._everything(context) <= budget:
                break
            context = max(least, context // 2)
        yield context, False
        while context > least:
            context = max(least, context // 2)
            yield context, False
        yield least, True

    def _default_context(self) -> int:
        w = self.workload
        if w.context is not None:
            return w.context
        default = min(constants.DEFAULT_CONTEXT, self.model.context)
        default = self._room.longest(default, self._fewest_tokens)
        return max(default, self._least_context())

    def _least_context(self) -> int:
        """Positions that the workload cannot do without."""
        w = self.workload
        if w.context is not None:
            return w.context
        return min(self.model.context, w.prompt_tokens + w.answer_tokens)

    def _kv_bytes(self, context: int) -> int:
        blocks = self._resident_sizes(context, self._fewest_tokens).kv_blocks
        return self.model.kv_bytes(blocks, self._kv_type)

    def _prefill_budget(self, best: Candidate) -> tuple[int, ...]:
        """Tokens of prompts beside answers; none where that is not bounded, or where a sweep costs
        the same with many tokens as with few because it streams."""
        if self._slowdown is None or best.prediction.sweep_bytes:
            return ()
        w = self.workload
        return prefill_budget(
            self._costs,
            self._costs.streaming(best.resident, best.read.bytes_s, 0, best.sizes.expert_slots),
            slowdown=self._slowdown,
            parallel=w.concurrency,
            answer_past=w.prompt_tokens + w.answer_tokens // 2,
            prompt_past=w.prompt_tokens // 2,
            most=best.sizes.max_tokens,
        )

    def _write(self, best: Candidate, budget: int, *, given: bool) -> Plan:
        order = [unit.name for unit in self.model.units]
        sizes = best.sizes
        return Plan(
            model=self.model.name,
            budget=budget,
            resident=tuple(name for name in order if name in best.resident),
            streamed=tuple(name for name in order if name not in best.resident),
            ring_bytes=sizes.ring_bytes,
            tile_bytes=best.tile_bytes if sizes.ring_bytes else 0,
            row_cache_bytes=sizes.row_cache_bytes,
            expert_slots=sizes.expert_slots,
            expert_ahead=self._ahead(sizes.expert_slots),
            expert_decay=self._decay(sizes.expert_slots),
            expert_sure=self._sure(sizes),
            read_mode=best.read.mode,
            request_bytes=sizes.request_bytes,
            io_threads=sizes.io_threads,
            max_tokens=sizes.max_tokens,
            logit_rows=sizes.logit_rows,
            kv_blocks=sizes.kv_blocks,
            kv_slots=sizes.kv_slots,
            prefill_budget=self._prefill_budget(best),
            draft_tokens=min(sizes.drafts.tokens, sizes.max_tokens - sizes.parallel),
            history_tokens=sizes.drafts.history_tokens,
            kv_type=self._kv_type,
            kv_window=self.limits.kv_window,
            kv_read=self.limits.kv_read,
            activations=self.model.profile.activations,
            context=sizes.context,
            parallel=sizes.parallel,
            grammars=sizes.beside.grammars,
            template_bytes=sizes.beside.template_bytes,
            admitted_bytes=sizes.beside.admitted_bytes,
            threads=self.threads,
            isa=self.machine.isa,
            choices=explain(
                self.model,
                self.machine,
                self.workload,
                sizes,
                best.read,
                best.prediction,
                resident=best.resident,
                budget=budget,
                given=given,
                limits=self.limits,
                room_for_a_grammar=self._room_for_a_grammar(),
            ),
            predicted=best.prediction,
        )


def _fastest(candidates: Iterable[Candidate]) -> Candidate | None:
    return min(candidates, key=lambda c: (_slowness(c.prediction), c.reserved), default=None)


def _slowness(p: Prediction) -> float:
    """What is made small: a tenth off the first token is worth a tenth off all others."""
    return p.ttft_s / p.decode_tok_s


def _prefill(w: Workload, max_tokens: int) -> Iterator[SweepSize]:
    """The sweeps that bring all prompts to their first tokens, one prompt after the other as far
    as a sweep has room for several."""
    together = max(1, min(w.concurrency, max_tokens // max(1, w.prompt_tokens)))
    for first in range(0, w.concurrency, together):
        prompts = min(together, w.concurrency - first)
        past = 0
        while past < w.prompt_tokens:
            rows = min(max_tokens // prompts, w.prompt_tokens - past)
            last = past + rows == w.prompt_tokens
            yield SweepSize(prompts, rows, past, prompts if last else 0)
            past += rows


def _some(loads: Sequence[SweepSize]) -> Iterator[tuple[SweepSize, int]]:
    """The sweeps, or where they are many some of them, each for so many like it."""
    each = max(1, -(-len(loads) // _MOST_SWEEPS))
    for first in range(0, len(loads), each):
        alike = loads[first : first + each]
        yield alike[len(alike) // 2], len(alike)


def fill(order: Sequence[UnitProfile], room: int) -> frozenset[str]:
    """The units that stay when so many bytes are there for them.

    The first that fit, in a fixed order: more room never keeps fewer bytes.
    """
    resident: set[str] = set()
    held: set[object] = set()
    for unit in order:
        added = added_bytes(unit, held)
        if added <= room:
            room -= added
            resident.add(unit.name)
            held |= sources(unit)
    return frozenset(resident)


def fill_orders(model: Outline) -> tuple[list[UnitProfile], ...]:
    """The orders, to be compared, in which units become resident.

    Of the layers the heavier kind of unit comes first (the feed-forward), and of a kind each next
    one far from those before: what streams is small and lies evenly between what stays, and is read
    while that is computed. The head comes before them, so that they hide what is read, or after
    them, where there is less of it. Then what a router chooses from, of which a sweep reads a part
    (the room is for slots), and last the tables, of which it reads rows.
    """
    kinds: dict[int, list[UnitProfile]] = {}
    head: list[UnitProfile] = []
    for s in model.segments:
        units = [u for u in s.units if u.reads == "all"]
        if s.selects:
            head += units
            continue
        for i, unit in enumerate(units):
            kinds.setdefault(i, []).append(unit)
    heaviest = sorted(kinds.values(), key=lambda kind: -sum(u.packed_bytes for u in kind))
    layers = [unit for kind in heaviest for unit in _spread(kind)]
    rest = [u for reads in ("routed", "rows") for u in model.units if u.reads == reads]
    return [*layers, *head, *rest], [*head, *layers, *rest]


def _spread(units: Sequence[UnitProfile]) -> list[UnitProfile]:
    """By their places with the bits reversed: each next one far from those before."""
    bits = max(1, (len(units) - 1).bit_length())
    places = sorted(range(1 << bits), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return [units[i] for i in places if i < len(units)]


def _check(model: Outline, w: Workload) -> None:
    if w.prompt_tokens < 1 or w.concurrency < 1 or w.answer_tokens < 0:
        raise UsageError("a workload has at least one prompt of at least one token")
    least = 2 if w.answer_tokens else 1
    if w.context is not None and not least <= w.context <= model.context:
        raise UsageError(
            f"a context of {w.context} was asked for; {model.name} allows {least} to "
            f"{model.context}"
        )
    context = w.context or model.context
    if w.prompt_tokens + min(1, w.answer_tokens) > context:
        raise UsageError(
            f"a prompt of {w.prompt_tokens} tokens leaves no room in a context of {context}; "
            "shorten it or raise the context"
        )
    if w.concurrency > constants.MAX_TOKENS:
        raise UsageError(f"at most {constants.MAX_TOKENS} requests can run together")
