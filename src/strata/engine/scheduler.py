"""Which sequences advance by how many tokens in the next step. Integers only.

There are no phases: a sequence has tokens, of which the first so many are computed, and is advanced
towards all of them. Those that lack one token go first, all of them in every step; what is left of
the step's tokens goes to those that lack more, as many as the pace allows beside the others.

A sequence is let in, first come first served, when there are KV blocks for the tokens it has. Its
answer may outgrow what is free: then the youngest sequence gives its blocks up and waits to be let
in again, ahead of all that have not begun.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from strata.kv import KVSpace, SequenceKV, blocks_for


class Pace(Protocol):
    """How many tokens a step may spend on those that lack several."""

    def share(self, answers: int, prompts: int) -> int:
        """Tokens for so many of them beside ``answers`` that advance by one; 0 only now and then,
        and not at all without answers."""


class NoPace:
    """As many as there is room for."""

    def share(self, answers: int, prompts: int) -> int:
        """No bound."""
        return 1 << 30


@dataclass
class Running:
    """A sequence and its KV; one that waits has none.

    ``cached`` positions were not computed but found when it was let in; ``loadable`` blocks are yet
    to be loaded. ``leader`` has the same prompt and runs already: its KV will do for both.
    """

    id: int
    tokens: list[int]
    kv: SequenceKV = field(default_factory=SequenceKV)
    cached: int = 0
    loadable: int = 0
    leader: int | None = None
    begun: bool = False

    @property
    def missing(self) -> int:
        """Tokens that are not computed."""
        return len(self.tokens) - self.kv.length


@dataclass(frozen=True)
class Advance:
    """Compute ``tokens`` at positions ``past ..`` of a sequence; ``reaches`` its last one or not.

    ``forks`` are sequences with the same tokens that go on from there as well.
    """

    id: int
    past: int
    tokens: tuple[int, ...]
    reaches: bool
    table: tuple[int, ...]
    cached: int = 0
    forks: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        """Positions to compute."""
        return len(self.tokens)


class Scheduler:
    """Sequences that wait and sequences that run, at most ``parallel``.

    No more than ``load_blocks`` blocks are loaded in a step that others wait for. ``token_s`` is
    what computing a token takes, as far as known, and ``preemptions`` counts who had to give way.
    """

    def __init__(
        self,
        space: KVSpace,
        *,
        parallel: int,
        token_budget: int,
        pace: Pace | None = None,
        load_blocks: int = 8,
    ) -> None:
        self._space = space
        self._parallel = parallel
        self._token_budget = token_budget
        self._pace = pace or NoPace()
        self._load_blocks = load_blocks
        self._waiting: list[Running] = []
        self._running: dict[int, Running] = {}
        self._leaders: dict[tuple[int, ...], int] = {}
        self.preemptions = 0
        self.token_s: float | None = None

    @property
    def waiting(self) -> int:
        """Sequences that hold no blocks."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that hold blocks."""
        return len(self._running)

    def computed(self, id: int) -> int:
        """Positions in KV of a sequence; 0 unless it runs."""
        found = self._running.get(id)
        return 0 if found is None else found.kv.length

    def add(self, id: int, tokens: Sequence[int]) -> None:
        """Queue a sequence; ids grow. One with the tokens of another that has not come to its last
        one yet will share its KV."""
        prompt = tuple(tokens)
        leader = self._leaders.setdefault(prompt, id)
        self._waiting.append(Running(id, list(prompt), leader=None if leader == id else leader))

    def extend(self, id: int, token: int) -> None:
        """Append a token to a running sequence."""
        self._running[id].tokens.append(token)

    def plan(self) -> list[Advance]:
        """The advances of the next step; empty when there is nothing to do. A plan that is not
        committed is made again."""
        self._admit()
        self._load()
        planned = []
        for s, rows in self._share_out():
            # The oldest comes first, so that who has to give way was not planned yet.
            if s.id in self._running and self._make_room(s, rows):
                planned.append((s, rows))
        places = self._parallel - len(self._running)
        advances = []
        for s, rows in planned:
            advances.append(self._advance(s, rows, places))
            places -= len(advances[-1].forks)
        return advances

    def commit(self, advances: Iterable[Advance]) -> None:
        """Record that ``advances`` were computed."""
        for advance in advances:
            s = self._running[advance.id]
            self._space.advance(s.kv, s.tokens, advance.rows)
            if advance.reaches and not s.begun:
                s.begun = True
                self._split(s, advance.forks)

    def remove(self, id: int, *, keep: bool = False) -> None:
        """Forget a sequence, waiting or running, and let go of its blocks; ``keep`` saves what is
        full of them first, where there is a place for that. Unknown ones are ignored."""
        s = self._running.pop(id, None)
        if s is None:
            s = next((w for w in self._waiting if w.id == id), None)
            if s is None:
                return
            self._waiting.remove(s)
        if keep:
            self._space.save(s.kv, s.tokens)
        self._space.release(s.kv)
        if not s.begun and s.leader is None:
            self._pass_on(s)

    def check_integrity(self) -> None:
        """Raise PoolError unless the pool's books agree with who holds what."""
        self._space.check_integrity([s.kv.table for s in self._running.values()])

    def _admit(self) -> None:
        for s in list(self._waiting):
            if len(self._running) == self._parallel:
                return
            if s.leader is None:
                if not self._let_in(s):
                    return
                self._waiting.remove(s)
                self._running[s.id] = s

    def _let_in(self, s: Running) -> bool:
        """Give a sequence the KV that is known, if there is room for all of its tokens."""
        kv = self._space.begin(s.tokens)
        # One block more than needed, or the first token of an answer would push somebody out.
        needed = blocks_for(len(s.tokens)) - len(kv.table) + 1
        promised = sum(
            max(0, blocks_for(len(r.tokens)) - len(r.kv.table)) for r in self._running.values()
        )
        if self._running and needed + promised > self._space.available:
            self._space.release(kv)
            return False
        s.kv = kv
        s.cached = kv.length
        s.loadable = self._space.loadable(kv, s.tokens)
        return True

    def _load(self) -> None:
        for s in self._running.values():
            if s.loadable:
                alone = all(r.loadable for r in self._running.values())
                wanted = s.loadable if alone else min(s.loadable, self._load_blocks)
                loaded = self._space.load(s.kv, s.tokens, wanted)
                s.cached = s.kv.length
                s.loadable = s.loadable - loaded if loaded == wanted else 0
                return

    def _share_out(self) -> list[tuple[Running, int]]:
        """Who advances by how many tokens, by age."""
        ready = [s for _, s in sorted(self._running.items()) if s.missing and not s.loadable]
        rows = {s.id: 1 for s in ready if s.missing == 1}
        several = [s for s in ready if s.missing > 1]
        left = self._token_budget - len(rows)
        if rows and several:
            left = min(left, self._pace.share(len(rows), len(several)))
        if several and left:
            # Half to the oldest, so that it gets on; the rest to who is done with the least.
            rows[several[0].id] = min(several[0].missing, -(-left // 2))
            left -= rows[several[0].id]
        for s in sorted(several, key=lambda s: (s.missing - rows.get(s.id, 0), s.id)):
            had = rows.get(s.id, 0)
            if more := min(s.missing - had, left):
                rows[s.id] = had + more
                left -= more
        return [(s, rows[s.id]) for s in ready if rows.get(s.id)]

    def _make_room(self, s: Running, rows: int) -> bool:
        """Blocks for what is planned, if need be those of the youngest; False if that is itself."""
        while not self._space.make_room(s.kv, rows):
            youngest = self._running[max(self._running)]
            self._preempt(youngest)
            if youngest is s:
                return False
        return True

    def _preempt(self, s: Running) -> None:
        self.preemptions += 1
        self._space.give_up(s.kv, s.tokens, self.token_s)
        del self._running[s.id]
        self._waiting.append(s)
        self._waiting.sort(key=lambda w: w.id)

    def _advance(self, s: Running, rows: int, places: int) -> Advance:
        past = s.kv.length
        reaches = rows == s.missing
        forks = self._followers(s, places) if reaches and not s.begun else ()
        tokens = tuple(s.tokens[past : past + rows])
        return Advance(s.id, past, tokens, reaches, tuple(s.kv.table), s.cached, forks)

    def _followers(self, s: Running, places: int) -> tuple[int, ...]:
        """Those that go on from where ``s`` gets to; nobody who came earlier is overtaken."""
        out: list[int] = []
        for w in self._waiting:
            if len(out) == places or w.leader is None:
                break
            if w.leader == s.id:
                out.append(w.id)
        return tuple(out)

    def _split(self, s: Running, forks: tuple[int, ...]) -> None:
        """``forks`` go on with the KV of ``s``."""
        for w in [w for w in self._waiting if w.id in forks]:
            self._waiting.remove(w)
            w.kv = self._space.fork(s.kv)
            w.leader, w.cached, w.begun = None, w.kv.length, True
            self._running[w.id] = w
        self._pass_on(s)

    def _pass_on(self, s: Running) -> None:
        """``s`` leads no longer: the first of those that still follow it takes its place."""
        followers = [w for w in self._waiting if w.leader == s.id]
        del self._leaders[tuple(s.tokens)]
        for w in followers:
            w.leader = None if w is followers[0] else followers[0].id
        if followers:
            self._leaders[tuple(s.tokens)] = followers[0].id
