"""Which sequences advance by how many tokens in the next step. Integers only.

There are no phases: a sequence has tokens, of which the first so many are computed, and is advanced
towards all of them. Those that lack one token go first, all of them in every step; what is left of
the step's tokens goes to those that lack more, as many as their slices may have beside the
others, and then to tokens that a proposer guessed.

A sequence is admitted, first come first served, when there are blocks of every group for the tokens
it has. Its answer may outgrow what is free: then the youngest sequence is preempted and waits to be
admitted again, ahead of all that have not begun. One that begins as another does which is being
computed waits for that, and goes on from its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import field

from strata.decode import NO_DRAFT, Draft
from strata.engine.prompt_slices import PromptSlices
from strata.kv import BlockTable, Branch, KVCacheManager, SequenceState
from strata.machine import constants
from strata.records import dataclass

_COMPARED = 64
"""Tokens compared at once."""

Propose = Callable[[Mapping[int, Sequence[int]], int, int], Mapping[int, Draft]]
"""``propose(tokens, rows, room)``: what may follow the tokens of sequences, by id, beside a step of
``rows`` rows; at most ``room`` tokens for all of them."""

_REDONE = 64
"""Rows that may be computed anew in a step with a draft, after one that went wrong."""


@dataclass
class Scheduled:
    """A sequence, its tokens and its state; one that waits has none.

    ``cached`` positions were not computed but found when it was admitted; blocks up to number
    ``load_end`` are being loaded, where that is not 0. ``branches`` are those of the draft that is
    being verified. ``common`` says how many positions were found to be those of others, by id.
    ``redone`` positions were computed before, and their state is lost.
    """

    id: int
    tokens: list[int]
    kv: SequenceState
    cached: int = 0
    load_end: int = 0
    branches: list[Branch] = field(default_factory=list)
    common: dict[int, int] = field(default_factory=dict)
    redone: int = 0

    @property
    def missing(self) -> int:
        """Tokens that are not computed."""
        return len(self.tokens) - self.kv.length


@dataclass(frozen=True)
class Advance:
    """Compute ``tokens`` at positions ``past ..`` of a sequence, and then those of ``draft``, which
    may follow them. The last ``needs_logits`` of these rows want logits.

    ``tables`` has the block table of each group; each further chain of the draft has tables of its
    own, in the order of its chains. ``redone`` of the tokens were computed before.
    """

    id: int
    past: int
    tokens: tuple[int, ...]
    needs_logits: int
    tables: tuple[BlockTable, ...]
    cached: int = 0
    draft: Draft = NO_DRAFT
    branches: tuple[tuple[BlockTable, ...], ...] = ()
    redone: int = 0

    @property
    def rows(self) -> int:
        """Rows to compute."""
        return len(self.tokens) + len(self.draft.tokens)


class Scheduler:
    """Sequences that wait and sequences that run, at most ``parallel``, in steps of up to
    ``token_budget`` tokens.

    ``slices`` says how many tokens of prompts a step may have beside sequences that lack one token;
    None: as many as there is room for. No more than ``load_blocks`` blocks are loaded in a step
    that others wait for. ``preemptions`` counts who had to give way.
    """

    def __init__(
        self,
        manager: KVCacheManager,
        *,
        parallel: int,
        token_budget: int,
        slices: PromptSlices | None = None,
        load_blocks: int = 8,
    ) -> None:
        self._manager = manager
        self._parallel = parallel
        self._token_budget = token_budget
        self._slices = slices or PromptSlices()
        self._load_blocks = load_blocks
        self._waiting: list[Scheduled] = []
        self._running: dict[int, Scheduled] = {}
        self.preemptions = 0

    @property
    def waiting(self) -> int:
        """Sequences that hold no blocks."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    def computed(self, id: int) -> int:
        """Positions computed of a sequence; 0 unless it runs."""
        found = self._running.get(id)
        return 0 if found is None else found.kv.length

    def add(self, id: int, tokens: Sequence[int]) -> None:
        """Queue a sequence; ids grow."""
        self._waiting.append(Scheduled(id, list(tokens), self._manager.new()))

    def plan(self, propose: Propose | None = None, without: Container[int] = ()) -> list[Advance]:
        """The advances of the next step; empty when there is nothing to do. A plan that is not
        committed is made again. Those ``without`` which it does as well sit it out."""
        for s in self._running.values():
            if s.branches:
                self._drop_branches(s)
        if self._waiting:
            self._admit()
        self._load()
        planned = []
        for s, rows in self._share_out(without):
            # The oldest comes first, so that who is preempted was not planned yet.
            if s.id in self._running and self._reserve(s, rows):
                planned.append((s, rows))
        drafts = {} if propose is None else self._ask(propose, planned)
        return [self._advance(s, rows, drafts.get(s.id)) for s, rows in planned]

    def _ask(
        self, propose: Propose, planned: Sequence[tuple[Scheduled, int]]
    ) -> Mapping[int, Draft]:
        """Drafts for sequences whose next token is wanted, and that have begun their answers."""
        most = 1 + (_REDONE if self._manager.recurrent else 0)
        asked = {s.id: s.tokens for s, n in planned if n == s.missing == 1 + s.redone <= most}
        rows = sum(n for _, n in planned)
        room = self._token_budget - rows
        return propose(asked, rows, room) if asked and room > 0 else {}

    def stop_all(self) -> None:
        """Everybody gives way, and waits to be admitted again."""
        for s in list(self._running.values()):
            self._drop_branches(s)
            self._preempt(s)

    def go_on_with(self, manager: KVCacheManager, token_budget: int, load_blocks: int) -> None:
        """Go on with other sizes; with another manager only after ``stop_all``."""
        self._manager = manager
        self._token_budget = token_budget
        self._load_blocks = load_blocks

    def commit(self, advance: Advance, chosen: Sequence[int]) -> None:
        """Record that an advance was computed, and the tokens chosen at its end: those of its draft
        that are kept, and the one after them."""
        s = self._running[advance.id]
        kept = self._kept(s, advance, chosen) if advance.draft.tokens else 0
        s.tokens += chosen
        rows = len(advance.tokens) + kept
        s.redone = 0
        if rows < advance.rows and self._manager.recurrent:
            # The state behind the last kept row is nowhere: these rows are computed anew.
            s.redone, rows = rows, 0
        self._manager.commit(s.kv, s.tokens, rows)
        if s.branches:
            self._drop_branches(s)

    def _kept(self, s: Scheduled, advance: Advance, chosen: Sequence[int]) -> int:
        """Tokens of a draft that were chosen; the branch on which they lie becomes the
        sequence's."""
        children = {
            (advance.draft.parent(n), token): n for n, token in enumerate(advance.draft.tokens)
        }
        at, kept = -1, 0
        for token in chosen[:-1]:
            at, kept = children[at, token], kept + 1
        for branch, chain in zip(list(s.branches), advance.draft.chains()[1:], strict=True):
            if at in chain:
                s.branches.remove(branch)
                self._manager.adopt(s.kv, branch)
                break
        return kept

    def remove(self, id: int, *, keep: bool = False) -> None:
        """Forget a sequence, waiting or running, and let go of its blocks; ``keep`` saves what is
        full of them first, where there is a place for that. Unknown ones are ignored."""
        s = self._running.pop(id, None)
        if s is None:
            self._waiting = [w for w in self._waiting if w.id != id]
            return
        self._drop_branches(s)
        if keep:
            self._manager.save(s.kv, s.tokens)
        self._manager.release(s.kv)

    def check_integrity(self) -> None:
        """Raise PoolError unless the pools' books agree with who holds what."""
        held = [s.kv.tables for s in self._running.values()]
        branches = [b.tables for s in self._running.values() for b in s.branches]
        self._manager.check_integrity([*held, *branches])

    # Admitting. ---------------------------------------------------------------------------------

    def _admit(self) -> None:
        held_back = 0
        for s in list(self._waiting):
            if len(self._running) == self._parallel or held_back == self._parallel:
                return
            if self._comes_soon(s):
                held_back += 1
                continue
            if not self._has_room(s):
                return
            self._waiting.remove(s)
            self._running[s.id] = s

    def _comes_soon(self, s: Scheduled) -> bool:
        """Whether a running sequence is about to compute a block or more of what this one needs."""
        for r in self._running.values():
            common = self._common(s, r)
            if self._manager.saves(r.kv.length, len(r.tokens), common):
                return True
        return False

    def _common(self, s: Scheduled, r: Scheduled) -> int:
        """Positions that two sequences have in common, without the last token of ``s``."""
        if not self._manager.shares:
            return 0
        most = min(len(s.tokens) - 1, len(r.tokens))
        # Goes on where it was left: asked in every step while ``s`` waits.
        at = r.common.get(s.id, 0)
        while at < most:
            mine = s.tokens[at : min(at + _COMPARED, most)]
            other = r.tokens[at : at + len(mine)]
            if mine != other:
                at += next(n for n, (a, b) in enumerate(zip(mine, other, strict=True)) if a != b)
                break
            at += len(mine)
        r.common[s.id] = at
        return at

    def _has_room(self, s: Scheduled) -> bool:
        """Give a sequence the state that is known, if there is room for all of its tokens."""
        kv = self._known(s)
        admitted = False
        try:
            if self._running and not self._fits(kv, len(s.tokens)):
                return False
            # Looks at a disk, and may be interrupted there.
            end = self._manager.loadable(kv, s.tokens)
            admitted = True
        finally:
            if not admitted:
                self._manager.release(kv)
        s.kv = kv
        s.cached = kv.length
        s.load_end = end if end > kv.length // self._manager.block else 0
        return True

    def _fits(self, kv: SequenceState, length: int) -> bool:
        """Whether there are blocks for ``length`` positions beside what runs."""
        # One block more than needed, or the first token of an answer would push somebody out.
        missing = self._missing_blocks(kv, length + self._manager.block)
        for r in self._running.values():
            more = self._missing_blocks(r.kv, len(r.tokens))
            missing = [a + b for a, b in zip(missing, more, strict=True)]
        return all(a <= b for a, b in zip(missing, self._manager.available(), strict=True))

    def _missing_blocks(self, kv: SequenceState, length: int) -> list[int]:
        """Blocks of each group that a sequence lacks to come to ``length`` positions."""
        needed, held = self._manager.needed(length), self._manager.held(kv)
        return [max(0, n - h) for n, h in zip(needed, held, strict=True)]

    def _known(self, s: Scheduled) -> SequenceState:
        """State from the prefix cache or, where it is further, from a running sequence."""
        kv = self._manager.match_prefix(s.tokens)
        for r in self._running.values():
            length = min(self._common(s, r), r.kv.length)
            if length > kv.length and self._manager.can_share(r.kv, length):
                self._manager.release(kv)
                kv = self._manager.fork(r.kv, length)
        return kv

    def _load(self) -> None:
        for s in self._running.values():
            if s.load_end:
                alone = all(r.load_end for r in self._running.values())
                count = s.load_end if alone else self._load_blocks
                if self._manager.load(s.kv, s.tokens, s.load_end, count):
                    s.cached, s.load_end = s.kv.length, 0
                return

    # Sharing out. -------------------------------------------------------------------------------

    def _share_out(self, without: Container[int]) -> list[tuple[Scheduled, int]]:
        """Who advances by how many tokens, by age."""
        ready = [s for _, s in sorted(self._running.items()) if s.missing and not s.load_end]
        ready = [s for s in ready if s.id not in without] or ready
        rows = {s.id: 1 for s in ready if s.missing == 1}
        several = [s for s in ready if s.missing > 1]
        left = self._token_budget - len(rows)
        if rows and several:
            depth = max(s.kv.length for s in several)
            bound = self._slices.tokens(len(rows), len(several), depth)
            left = left if bound is None else min(left, bound)
        limits = {s.id: self._manager.step_limit(s.kv, len(s.tokens)) for s in several}
        if several and left:
            # Half to the oldest, so that it gets on; the rest to who is done with the least.
            first = several[0]
            rows[first.id] = min(first.missing, -(-left // 2), limits[first.id])
            left -= rows[first.id]
        for s in sorted(several, key=lambda s: (s.missing - rows.get(s.id, 0), s.id)):
            had = rows.get(s.id, 0)
            if more := min(s.missing - had, left, limits[s.id] - had):
                rows[s.id] = had + more
                left -= more
        return [(s, rows[s.id]) for s in ready if rows.get(s.id)]

    def _guess(self, s: Scheduled, rows: int, draft: Draft) -> Draft:
        """A draft for which there is room without anybody giving way; a part of it, or none."""
        draft = draft.in_chains
        if self._manager.recurrent:
            # Not beyond the end of a block, where the state is remembered.
            draft = draft.chain.first(-(s.kv.length + rows) % self._manager.block)
        chains = draft.chains()[: 1 + constants.DRAFT_BRANCHES]
        draft = draft.part([number for chain in chains for number in chain])
        if not chains or not self._manager.reserve(s.kv, rows + len(chains[0])):
            return NO_DRAFT
        for chain in chains[1:]:
            branch = self._manager.branch(s.kv, rows + self._depth(draft, chain[-1]))
            if branch is None:
                self._drop_branches(s)
                return draft.chain
            s.branches.append(branch)
        return draft

    @staticmethod
    def _depth(draft: Draft, number: int) -> int:
        """How many tokens of a draft lead to one of them, itself included."""
        depth = 0
        while number >= 0:
            number, depth = draft.parent(number), depth + 1
        return depth

    def _reserve(self, s: Scheduled, rows: int) -> bool:
        """Blocks for what is planned, if need be those of the youngest; False if that is itself."""
        while not self._manager.reserve(s.kv, rows):
            youngest = self._running[max(self._running)]
            self._preempt(youngest)
            if youngest is s:
                return False
        return True

    def _preempt(self, s: Scheduled) -> None:
        self.preemptions += 1
        s.redone = 0
        self._manager.preempt(s.kv, s.tokens)
        del self._running[s.id]
        self._waiting.append(s)
        self._waiting.sort(key=lambda w: w.id)

    def _advance(self, s: Scheduled, rows: int, wanted: Draft | None) -> Advance:
        draft = NO_DRAFT if wanted is None else self._guess(s, rows, wanted)
        past = s.kv.length
        needs_logits = 1 + len(draft.tokens) if rows == s.missing else 0
        tables = tuple([list(table) for table in s.kv.tables])
        branches = tuple(
            [
                tuple(
                    table[: branch.first] + own
                    for table, own in zip(tables, branch.tables, strict=True)
                )
                for branch in s.branches
            ]
        )
        tokens = tuple(s.tokens[past : past + rows])
        redone = min(s.redone, rows)
        return Advance(s.id, past, tokens, needs_logits, tables, s.cached, draft, branches, redone)

    def _drop_branches(self, s: Scheduled) -> None:
        while s.branches:
            self._manager.drop(s.branches.pop())
