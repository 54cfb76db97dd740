"""State of sequences: blocks of every group that grow with them, are shared, copied before they
would differ, and given back when nothing sees them any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, groupby
from typing import Protocol

from strata.backends.base import KV_BLOCK, NO_BLOCK
from strata.kv.offload import BlockRun, NoOffload, Offload
from strata.kv.pool import BlockPool
from strata.kv.prefix import ROOT, PrefixIndex
from strata.kv.sequence import BlockTable, Branch, SequenceState, blocks_for, seen_blocks
from strata.program import StateGroup

NO_LIMIT = 1 << 30


class BlockCopier(Protocol):
    """What holds the blocks; ``strata.backends.base.StateCache`` in a real run."""

    def copy(self, group: int, source: int, target: int) -> None:
        """Copy the content of one block of a group to another."""


def window_blocks(group: StateGroup, step_rows: int) -> int:
    """Blocks of a windowed group that one sequence holds at most, in steps of ``step_rows``."""
    return blocks_for(group.window + step_rows + KV_BLOCK) + 1 + blocks_for(group.beginning)


class KVCacheManager:
    """Hands out the blocks of each group's pool.

    Steps have at most ``step_rows`` rows of a sequence. Where there is recurrent state, steps of a
    prompt end every ``snapshot_rows`` positions and at its last full block, so that the state there
    can be found again: that is all a snapshot is, since a step leaves the slot it reads as it was.
    """

    def __init__(
        self,
        groups: Sequence[StateGroup],
        pools: Sequence[BlockPool],
        index: PrefixIndex,
        state: BlockCopier,
        offload: Offload | None = None,
        *,
        step_rows: int,
        snapshot_rows: int = 512,
    ) -> None:
        self.groups, self.pools = tuple(groups), tuple(pools)
        self._index = index
        self._state = state
        self._offload = offload or NoOffload()
        self._step_rows = step_rows
        self._snapshot_rows = snapshot_rows
        self._recurrent = next((n for n, g in enumerate(self.groups) if g.recurrent), None)

    block = KV_BLOCK
    """Positions in a block of a paged group."""

    @property
    def recurrent(self) -> bool:
        """Whether sequences have recurrent state: then they cannot branch."""
        return self._recurrent is not None

    @property
    def shares(self) -> bool:
        """Whether sequences find what others computed."""
        return self._index.finds

    def saves(self, length: int, total: int, common: int) -> bool:
        """Whether a sequence that has ``length`` positions and goes on to ``total`` will leave a
        block or more of the first ``common`` to be found that are not there yet."""
        if self.recurrent:
            # Only where a step ends is there a state to go on from.
            last = (total - 1) // KV_BLOCK * KV_BLOCK
            common = last if last <= common else common // self._snapshot_rows * self._snapshot_rows
        return common - length >= KV_BLOCK

    # What there is. -----------------------------------------------------------------------------

    def available(self) -> list[int]:
        """Blocks of each group that can be had: free, or held only to be found again."""
        self._offload.collect()
        return [pool.free + self._index.evictable(group) for group, pool in enumerate(self.pools)]

    def unused(self) -> list[int]:
        """Blocks of each group that no sequence holds: free, held to be found again, or being kept
        elsewhere."""
        out = []
        for group, pool in enumerate(self.pools):
            held = Counter(self._offload.blocks(group))
            kept = sum(pool.references(block) == times for block, times in held.items())
            out.append(pool.free + self._index.evictable(group, held) + kept)
        return out

    def held(self, kv: SequenceState) -> list[int]:
        """Blocks of each group that a sequence holds."""
        return [len(table) - table.count(NO_BLOCK) for table in kv.tables]

    def needed(self, length: int) -> list[int]:
        """Blocks of each group that a sequence holds at most until it has ``length`` positions."""
        return [self._needed(group, length) for group in self.groups]

    def _needed(self, group: StateGroup, length: int) -> int:
        if group.recurrent:
            return 2
        every = blocks_for(length)
        return min(every, window_blocks(group, self._step_rows)) if group.window else every

    def step_limit(self, kv: SequenceState, total: int) -> int:
        """Rows that the next step may have of a sequence that goes on to ``total`` positions."""
        if not self.recurrent or not self._index.finds:
            return NO_LIMIT
        ends = [(kv.length // self._snapshot_rows + 1) * self._snapshot_rows]
        if (last := (total - 1) // KV_BLOCK * KV_BLOCK) > kv.length:
            ends.append(last)
        return min(ends) - kv.length

    # Beginning. ---------------------------------------------------------------------------------

    def new(self) -> SequenceState:
        """A sequence of which nothing is computed."""
        return SequenceState([[NO_BLOCK, NO_BLOCK] if g.recurrent else [] for g in self.groups])

    def match_prefix(self, tokens: Sequence[int]) -> SequenceState:
        """A new sequence with what is known of ``tokens``; the last token never is."""
        kv = self.new()
        match = self._index.match(tokens, (len(tokens) - 1) // KV_BLOCK)
        if match.nodes:
            kv.length, kv.nodes = len(match.nodes) * KV_BLOCK, match.nodes
            kv.tables = [
                [*table, NO_BLOCK] if group.recurrent else table
                for group, table in zip(self.groups, match.tables, strict=True)
            ]
            self._index.pin(kv.nodes[-1])
        return kv

    def known(self, tokens: Sequence[int]) -> tuple[int, int]:
        """How many of ``tokens``, from the first, are known in memory, and with what is kept
        elsewhere; the last one never is."""
        if not tokens:
            return 0, 0
        kv = self.match_prefix(tokens)
        try:
            return kv.length, max(kv.length, self._kept(kv, tokens) * KV_BLOCK)
        finally:
            self.release(kv)

    def can_share(self, kv: SequenceState, length: int) -> bool:
        """Whether another sequence may begin with the first ``length`` positions of this one."""
        return self.shares and self._shareable(kv, length)

    def _shareable(self, kv: SequenceState, length: int) -> bool:
        if not 0 <= length <= kv.length:
            return False
        for number, group in enumerate(self.groups):
            if group.recurrent:
                if self._slot_at(kv, number, length) is None:
                    return False
            elif any(kv.tables[number][i] == NO_BLOCK for i in chain(*seen_blocks(group, length))):
                return False
        return True

    def _slot_at(self, kv: SequenceState, group: int, length: int) -> int | None:
        """The slot with the state after ``length`` positions, NO_BLOCK at the start; None if it is
        not known any more."""
        if length == 0:
            return NO_BLOCK
        if length == kv.length:
            return kv.tables[group][0]
        if length % KV_BLOCK or length // KV_BLOCK > len(kv.nodes):
            return None
        slot = self._index.slot(kv.nodes[length // KV_BLOCK - 1], group)
        return None if slot == NO_BLOCK else slot

    def fork(self, kv: SequenceState, length: int | None = None) -> SequenceState:
        """Another sequence with the first ``length`` positions (None: all), in the same blocks;
        with fewer where state of these is gone."""
        wanted = kv.length if length is None else min(length, kv.length)
        ends = (wanted, *range((wanted - 1) // KV_BLOCK * KV_BLOCK, 0, -KV_BLOCK))
        end = next((end for end in ends if end > 0 and self._shareable(kv, end)), 0)
        other = self.new()
        if end == 0:
            return other
        other.length, other.nodes = end, kv.nodes[: end // KV_BLOCK]
        for number, group in enumerate(self.groups):
            if group.recurrent:
                slot = self._slot_at(kv, number, end)
                assert slot is not None
                other.tables[number] = [slot, NO_BLOCK]
            else:
                seen = set(chain(*seen_blocks(group, end)))
                other.tables[number] = [
                    block if i in seen else NO_BLOCK
                    for i, block in enumerate(kv.tables[number][: blocks_for(end)])
                ]
            self._share(number, other.tables[number])
        self._index.pin(other.nodes[-1] if other.nodes else ROOT)
        return other

    # Growing. -----------------------------------------------------------------------------------

    def reserve(self, kv: SequenceState, rows: int) -> bool:
        """Blocks of its own for ``rows`` positions more; False, and nothing done, if there are too
        few."""
        wanted, copied = [], []
        at = kv.length // KV_BLOCK
        end = blocks_for(kv.length + rows)
        for number, table in enumerate(kv.tables):
            if number == self._recurrent:
                wanted.append(int(table[1] == NO_BLOCK))
                copied.append(False)
                continue
            shared = at < len(table) and self.pools[number].references(table[at]) > 1
            wanted.append(max(0, end - len(table)) + shared)
            copied.append(shared)
        if not any(wanted):
            # Nearly every token of an answer.
            return True
        taken = self._take_all(wanted)
        if taken is None:
            return False
        try:
            for number, blocks in enumerate(taken):
                if copied[number]:
                    self._state.copy(number, kv.tables[number][at], blocks[0])
        except BaseException:
            self._release_all(taken)
            raise
        for number, blocks in enumerate(taken):
            table = kv.tables[number]
            if copied[number]:
                self.pools[number].release([table[at]])
                table[at] = blocks.pop(0)
            if number == self._recurrent:
                table[1:] = blocks or table[1:]
            else:
                table += blocks
        return True

    def commit(
        self, kv: SequenceState, tokens: Sequence[int], rows: int, *, known: bool = True
    ) -> None:
        """``rows`` positions of ``tokens`` more were computed. Full blocks can now be found, unless
        not ``known``, and what has left the windows is given back."""
        if rows == 0:
            return
        kv.length += rows
        if self._recurrent is not None:
            self._turn(kv.tables[self._recurrent], self._recurrent)
        if known and len(kv.nodes) < kv.length // KV_BLOCK:
            self._remember(kv, tokens)
        for number, group in enumerate(self.groups):
            if group.window:
                # As far back as going on from the last full block needs, or the last token anew.
                least = min(kv.length - 1, kv.length // KV_BLOCK * KV_BLOCK)
                self.drop_before(kv, number, group.first_seen(least))

    def _turn(self, table: BlockTable, group: int) -> None:
        """The slot that was written is the state now; the other one is written next, unless others
        hold it."""
        before, now = table
        if before != NO_BLOCK and self.pools[group].references(before) > 1:
            self.pools[group].release([before])
            before = NO_BLOCK
        table[:] = now, before

    def _remember(self, kv: SequenceState, tokens: Sequence[int]) -> None:
        before = kv.nodes[-1] if kv.nodes else ROOT
        node = before
        for number in range(len(kv.nodes), kv.length // KV_BLOCK):
            part = tokens[number * KV_BLOCK : (number + 1) * KV_BLOCK]
            blocks = [
                NO_BLOCK if group.recurrent else table[number]
                for group, table in zip(self.groups, kv.tables, strict=True)
            ]
            node, blocks = self._index.add(node, part, blocks)
            for group, table, block in zip(self.groups, kv.tables, blocks, strict=True):
                if not group.recurrent:
                    table[number] = block
            kv.nodes.append(node)
        if node != before:
            self._index.pin(node)
            self._index.unpin(before)
        if self._recurrent is not None and node != ROOT and kv.length % KV_BLOCK == 0:
            self._index.attach(node, self._recurrent, kv.tables[self._recurrent][0])

    def drop_before(self, kv: SequenceState, group: int, position: int) -> None:
        """Give back the blocks of a group that hold only positions before ``position``, but for
        those of its beginning."""
        table = kv.tables[group]
        end = min(position // KV_BLOCK, len(table))
        kept = blocks_for(self.groups[group].beginning)
        first = end
        while first > kept and table[first - 1] != NO_BLOCK:
            first -= 1
        self.pools[group].release(table[first:end])
        table[first:end] = [NO_BLOCK] * (end - first)

    def truncate(self, kv: SequenceState, length: int) -> int:
        """Go back to ``length`` positions, or to fewer where state of these is gone (the beginning
        of a window, recurrent state in the middle of a step); how many are left."""
        other = self.fork(kv, length)
        self.release(kv)
        kv.length, kv.tables, kv.nodes = other.length, other.tables, other.nodes
        return kv.length

    # Branches of a draft. -----------------------------------------------------------------------

    def branch(self, kv: SequenceState, rows: int) -> Branch | None:
        """Blocks for a second way to go on, by up to ``rows`` positions, beside the sequence's own;
        None, and nothing done, if there are too few. Only where there is no recurrent state."""
        first = kv.length // KV_BLOCK
        taken = self._take_all([blocks_for(kv.length + rows) - first] * len(self.groups))
        if taken is None:
            return None
        try:
            for number, blocks in enumerate(taken):
                if kv.length % KV_BLOCK:
                    self._state.copy(number, kv.tables[number][first], blocks[0])
        except BaseException:
            self._release_all(taken)
            raise
        return Branch(first, tuple(taken))

    def adopt(self, kv: SequenceState, branch: Branch) -> None:
        """The branch is how the sequence goes on; the blocks it had there are given back."""
        for pool, table, blocks in zip(self.pools, kv.tables, branch.tables, strict=True):
            pool.release(table[branch.first :])
            table[branch.first :] = blocks

    def drop(self, branch: Branch) -> None:
        """Give back a branch's blocks."""
        self._release_all(branch.tables)

    # Ending. ------------------------------------------------------------------------------------

    def release(self, kv: SequenceState) -> None:
        """Let go of everything. Full blocks can be found until their place is needed."""
        self._index.touch(kv.nodes)
        for number, table in enumerate(kv.tables):
            self.pools[number].release([block for block in table if block != NO_BLOCK])
        if kv.nodes:
            self._index.unpin(kv.nodes[-1])
        empty = self.new()
        kv.length, kv.tables, kv.nodes, kv.loaded = 0, empty.tables, [], 0

    def save(self, kv: SequenceState, tokens: Sequence[int]) -> None:
        """Keep the full blocks beyond this process, where there is a place for that."""
        self._offload.save(tokens[: self._full(kv) * KV_BLOCK], list(self._runs(kv)))

    def preempt(self, kv: SequenceState, tokens: Sequence[int]) -> None:
        """Let go of everything for somebody else's sake. Full blocks are kept first where that, and
        bringing them back, is faster than computing them anew."""
        full = self._full(kv)
        if full and self._offload.pays(full):
            self._offload.save_now(tokens[: full * KV_BLOCK], list(self._runs(kv)))
        self.release(kv)

    def _full(self, kv: SequenceState) -> int:
        return kv.length // KV_BLOCK

    def _runs(self, kv: SequenceState) -> Iterator[BlockRun]:
        """The full blocks that a sequence holds, and the last state of it that lies between two."""
        full = self._full(kv)
        for number, group in enumerate(self.groups):
            if group.recurrent:
                for end in range(min(full, len(kv.nodes)), 0, -1):
                    slot = self._slot_at(kv, number, end * KV_BLOCK)
                    if slot is not None:
                        yield BlockRun(number, end - 1, (slot,))
                        break
            else:
                first = 0
                for there, run in groupby(kv.tables[number][:full], lambda b: b != NO_BLOCK):
                    blocks = tuple(run)
                    if there:
                        yield BlockRun(number, first, blocks)
                    first += len(blocks)

    # Bringing back what was kept elsewhere. -----------------------------------------------------

    def loadable(self, kv: SequenceState, tokens: Sequence[int]) -> int:
        """Up to which block ``load`` is to bring a sequence; the number it has if nowhere. Asked
        once for each."""
        end = self._kept(kv, tokens)
        return end if end > self._full(kv) and self._offload.is_tried() else self._full(kv)

    def _kept(self, kv: SequenceState, tokens: Sequence[int]) -> int:
        """Up to which block ``load`` can bring a sequence; the number it has if nowhere."""
        if kv.length % KV_BLOCK:
            return self._full(kv)
        return self._offload.find(tokens, self._full(kv), (len(tokens) - 1) // KV_BLOCK)

    def load(self, kv: SequenceState, tokens: Sequence[int], end: int, count: int) -> bool:
        """Bring up to ``count`` blocks of those up to number ``end``; whether that was all.

        ``length`` grows at the end, by what is right in every group.
        """
        first = self._full(kv) + kv.loaded
        wanted = min(count, end - first)
        for number, group in enumerate(self.groups):
            if group.window or group.recurrent:
                continue
            # The only group of its kind: it says how far the others can go.
            loaded = self._load(kv, tokens, BlockRun(number, first, ()), wanted)
            if loaded < wanted:
                end, wanted = first + loaded, loaded
        kv.loaded += wanted
        if first + wanted < end:
            return False
        self._finish_loading(kv, tokens, end)
        return True

    def _load(self, kv: SequenceState, tokens: Sequence[int], run: BlockRun, count: int) -> int:
        """Append up to ``count`` blocks of a group to a sequence's table; how many that was."""
        blocks = self.take(run.group, count)
        if blocks is None:
            return 0
        loaded = 0
        try:
            loaded = self._offload.load(tokens, BlockRun(run.group, run.first, tuple(blocks)))
        finally:
            self.pools[run.group].release(blocks[loaded:])
        kv.tables[run.group] += blocks[:loaded]
        return loaded

    def _finish_loading(self, kv: SequenceState, tokens: Sequence[int], end: int) -> None:
        complete = False
        try:
            if end > self._full(kv):
                complete = self._load_others(kv, tokens, end)
        finally:
            kv.loaded = 0
            if not complete:
                self._give_back_ahead(kv)
        if complete:
            self.commit(kv, tokens, end * KV_BLOCK - kv.length)

    def _load_others(self, kv: SequenceState, tokens: Sequence[int], end: int) -> bool:
        """Load what going on behind block ``end`` needs of windows and recurrent state; whether
        all of it came."""
        for number, group in enumerate(self.groups):
            table = kv.tables[number]
            if group.recurrent:
                if table[1] == NO_BLOCK:
                    spare = self.take(number, 1)
                    if spare is None:
                        return False
                    table[1] = spare[0]
                if self._offload.load(tokens, BlockRun(number, end - 1, (table[1],))) < 1:
                    return False
            elif group.window:
                for part in seen_blocks(group, end * KV_BLOCK):
                    first = max(len(table), part.start)
                    if first >= part.stop:
                        continue
                    table += [NO_BLOCK] * (first - len(table))
                    run, count = BlockRun(number, first, ()), part.stop - first
                    if self._load(kv, tokens, run, count) < count:
                        return False
        return True

    def _give_back_ahead(self, kv: SequenceState) -> None:
        """Let go of the blocks beyond ``length``, which ends with a block."""
        before = self._full(kv)
        for number, group in enumerate(self.groups):
            if not group.recurrent:
                table = kv.tables[number]
                self.pools[number].release([b for b in table[before:] if b != NO_BLOCK])
                del table[before:]

    # Blocks. ------------------------------------------------------------------------------------

    def take(self, group: int, count: int) -> list[int] | None:
        """``count`` blocks of a group, held once, for which cached ones may be forgotten; None if
        there are too few."""
        pool = self.pools[group]
        if count > pool.free:
            # What was kept elsewhere meanwhile can be forgotten, too: of the few slots of recurrent
            # state the newest would go otherwise, since the older ones look as if they were held.
            self._offload.collect()
            self._index.evict(group, count - pool.free)
        if count > pool.free and self._offload.give_back():
            self._index.evict(group, count - pool.free)
        return pool.allocate(count) if count <= pool.free else None

    def _take_all(self, counts: Sequence[int]) -> list[list[int]] | None:
        """So many blocks of each group, or none of any."""
        taken: list[list[int]] = []
        complete = False
        try:
            for group, count in enumerate(counts):
                # May wait for a disk, and be interrupted there.
                blocks = self.take(group, count)
                if blocks is None:
                    return None
                taken.append(blocks)
            complete = True
            return taken
        finally:
            if not complete:
                self._release_all(taken)

    def _release_all(self, blocks: Sequence[Sequence[int]]) -> None:
        for pool, released in zip(self.pools, blocks, strict=False):
            pool.release(released)

    def _share(self, group: int, table: BlockTable) -> None:
        self.pools[group].share([block for block in table if block != NO_BLOCK])

    def forget(self) -> None:
        """Forget all cached blocks."""
        # Those that were kept elsewhere since are held until then.
        self._offload.collect()
        for group, pool in enumerate(self.pools):
            self._index.evict(group, pool.blocks)

    def check_integrity(self, tables: Sequence[Sequence[BlockTable]]) -> None:
        """Raise PoolError unless sequences and branches with ``tables``, and what is cached or
        being kept, explain every hold on a block of every group."""
        self._offload.collect()
        for group, pool in enumerate(self.pools):
            held = [[b for b in by_group[group] if b != NO_BLOCK] for by_group in tables]
            pool.check_integrity([*held, self._index.blocks(group), self._offload.blocks(group)])
