"""How many tokens to guess ahead in each step, so that no answer comes later by it.

A guess that is right saves a share of a step; one row more makes a step longer by what a row costs:
next to nothing where weights are read from a disk, a good part of a step where they are in memory.
How likely a guess is right is counted by its kind, for each request and for all. The guesses that
raise the expected tokens a second most are taken, over all requests of a step. What was gained and
lost is kept as an account: where it shows a loss, nothing is guessed for a while.

The trade-off is that of SpecExec (arXiv 2406.02532) and MagicDec (arXiv 2408.11049), with measured
times in place of a model of the machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from strata.decode import NO_DRAFT, Draft, Proposer, Sampler
from strata.engine.draft_choice import DRAFT_TOKENS
from strata.engine.draft_model import GRADES, LEAST, moved
from strata.engine.guesser import Guesser
from strata.engine.scheduler import Advance
from strata.engine.step_costs import StepCosts
from strata.errors import OutOfMemoryError
from strata.records import dataclass

_GAIN = 1.03
"""By how much more tokens a second are expected where something is guessed at all."""

_ALLOWED = 0.01
"""Of the time of all steps that may be lost by guesses, which pays for trying whether they pay."""

_BANKED = 0.05
"""Of that time, what is gained at most counts against later losses."""

_FIRST = 2
"""Guesses of the first step that has any; each may have twice as many as any before it, so that a
prediction that is far off costs little until it is corrected."""

_LOOK_AGAIN = 100
"""After so many steps with guesses one without shows again what such a step takes."""

_SURPRISE = 1.5
"""A step that takes longer than expected counts as if it took so many times as long at most."""

_MODEL, _MODEL_RIGHT = GRADES - 1, 0.6
"""All guesses of a model, whatever it said of them, and how often they are thought to be right."""

_FORCED, _FORCED_GRADE = 0.95, GRADES - 2
"""How likely what a grammar forces is cut into tokens as expected, and its kind of guesses."""

_ANEW = 32
"""Steps after which a model is asked again that was not worth asking: together for as much time as
may be lost at most."""

_TRIED, _UNPAID = 0.05, 0.02
"""Of all time that a model may take to read texts without having gained as much: before it is known
how often it is right, and then."""

_SURE_FOUND = 0.55
"""A text that was found is gone on with, and no model asked, where its next token is so likely."""

_SURE = 6.0
"""Guesses of a kind after which what was counted weighs as much as what was thought before."""

_MEMORY = 0.97
"""How much of what was counted is left by each new guess of its kind."""

_DOUBT = 2.0
"""By how much a guess may be likelier than its proposer thinks."""


@dataclass
class DraftTotals:
    """Guesses, the tokens of all, those of them that were right, and seconds gained (or lost)."""

    drafts: int = 0
    drafted: int = 0
    kept: int = 0
    saved_s: float = 0.0


@dataclass(frozen=True)
class _Asked:
    """How many tokens a model is to guess for each request; ``on_trial``: though it is not thought
    to pay."""

    depths: Mapping[int, int] = field(default_factory=dict)
    on_trial: bool = False


class _Rates:
    """How often guesses of each kind were right."""

    def __init__(self) -> None:
        self._counts: dict[int, tuple[float, float]] = {}

    def known(self, grade: int) -> bool:
        """Whether there were so many of a kind that what was counted of them decides."""
        return self._counts.get(grade, (0.0, 0.0))[0] >= _SURE

    def rate(self, grade: int, before: float) -> float:
        """Of a kind, when it was thought to be ``before``."""
        tries, hits = self._counts.get(grade, (0.0, 0.0))
        return (hits + _SURE * before) / (tries + _SURE)

    def count(self, grade: int, *, right: bool) -> None:
        """A guess was right or wrong."""
        tries, hits = self._counts.get(grade, (0.0, 0.0))
        self._counts[grade] = (_MEMORY * tries + 1, _MEMORY * hits + right)


class Drafting:
    """Decides what is guessed in a step. ``propose`` is for the scheduler; ``learn`` is told what
    came of it.

    At most ``most`` tokens are guessed for a request and ``together`` for all; with ``costs`` only
    what makes the tokens of a second more, without whatever the proposer says. ``recurrent``: of
    a draft that is not right to its end all is computed anew. ``model`` guesses where the proposer
    is not sure, as far ahead as the time that it takes is worth. ``closing`` is called at
    the end.
    """

    def __init__(
        self,
        proposer: Proposer,
        *,
        most: int = DRAFT_TOKENS,
        together: int | None = None,
        costs: StepCosts | None = None,
        recurrent: bool = False,
        model: Guesser | None = None,
        closing: Callable[[], None] | None = None,
    ) -> None:
        self.proposer = proposer
        self._closing = closing
        self.model = model
        self.totals = DraftTotals()
        self._most, self.together = most, together
        self.costs, self._recurrent = costs, recurrent
        self._all = _Rates()
        self._each: dict[int, _Rates] = {}
        self._balance_s = 0.0
        self._total_s = 0.0
        self._proposing_s = 0.0
        self._in_a_row = 0
        self._reach = _FIRST
        self._not_asked = 0
        # What a model gained, less what it took to read texts.
        self._model_s = 0.0
        self._by_model = False
        self._trials_s = 0.0
        # Tokens of each answer that is not over, so far, and how many earlier ones had.
        self._answered: dict[int, int] = {}
        self._length: float | None = None
        self._obeying: dict[int, Sampler] = {}
        self.enabled = True

    @property
    def sees(self) -> tuple[int, ...]:
        """The numbers of the Segments of which ``learn`` is to be shown what they gave."""
        return () if self.model is None else self.model.sees

    def begin(self, id: int, sampler: Sampler) -> None:
        """A request, whose tokens ``sampler`` chooses."""
        self._answered[id] = 0
        if sampler.params.grammar is not None:
            self._obeying[id] = sampler
        if self.model is not None:
            self.model.begin(id, sampler)

    def propose(
        self, tokens: Mapping[int, Sequence[int]], rows: int, room: int, limits: Mapping[int, int]
    ) -> dict[int, Draft]:
        """Drafts for the sequences of a step of ``rows`` rows, by id; at most ``room`` tokens in
        all, and for each sequence at most what ``limits`` says."""
        self._proposing_s = 0.0
        if self.together is not None:
            room = min(room, self.together)
        if not self.enabled or room < 1 or not self._affordable(rows):
            return {}
        started = perf_counter()
        least = self._least(len(tokens), rows, room)
        found: dict[int, Draft] = {}
        for id, text in tokens.items():
            most = min(room, self._most, limits[id])
            if most > 0:
                draft = self._forced(id, most)
                if draft is None:
                    draft = self._looked_up(id, text, most, least)
                if draft.tokens:
                    found[id] = draft
        read_s = 0.0
        self._by_model = False
        if self.model is not None:
            unsure = {id: text for id, text in tokens.items() if not self._surely(found.get(id))}
            asked = self._asked(unsure, len(tokens), rows, room, limits)
            if asked.depths:
                texts = {id: tokens[id] for id in asked.depths}
                others = self._worth_a_branch(len(texts), len(tokens), least)
                self._by_model = True
                guessed = self.model.propose(texts, asked.depths, others)
                # What a model reads of a prompt because it pays is there for the whole answer.
                read_s = 0.0 if asked.on_trial else self.model.behind_s
                self._model_s -= read_s
                found |= {id: draft for id, draft in guessed.items() if draft.tokens}
        taken = self._choose(found, len(tokens), rows, room)
        self._proposing_s = perf_counter() - started - read_s
        return taken

    def _least(self, wanted: int, rows: int, room: int) -> float:
        """The chance below which no guess is worth its row, whatever else is guessed: a step gives
        ``wanted`` tokens in its time, and a row takes so much of that at least."""
        costs = self.costs
        if costs is None:
            return 0.0
        beside, most = costs.seconds(rows), min(room, self._reach)
        counts = {*(1 << power for power in range(most.bit_length())), most}
        row_s = min((costs.seconds(rows + count) - beside) / count for count in counts)
        return row_s * wanted / costs.seconds(wanted) / _DOUBT

    def _looked_up(self, id: int, text: Sequence[int], most: int, least: float) -> Draft:
        """What texts say, nothing where there is no memory to take them up."""
        try:
            return self.proposer.propose(id, text, most, least).first(most)
        except OutOfMemoryError:
            return NO_DRAFT

    def _forced(self, id: int, most: int) -> Draft | None:
        """What a grammar forces, None where it leaves a choice."""
        sampler = self._obeying.get(id)
        tokens = () if sampler is None else tuple(sampler.forced())[:most]
        if not tokens:
            return None
        return Draft(tokens, None, (_FORCED,) * len(tokens), (_FORCED_GRADE,) * len(tokens))

    def _surely(self, draft: Draft | None) -> bool:
        """Whether what was found in texts is likely enough."""
        return draft is not None and self._all.rate(*self._kind(draft, 0)) >= _SURE_FOUND

    def _asked(
        self,
        unsure: Mapping[int, Sequence[int]],
        wanted: int,
        rows: int,
        room: int,
        limits: Mapping[int, int],
    ) -> _Asked:
        """For which of the texts a model is to guess, and how many tokens for each."""
        costs, model = self.costs, self.model
        assert model is not None
        if not unsure or (most := min(room // len(unsure), self._most)) < 1:
            return _Asked()
        if costs is None:
            return _Asked({id: min(most, limits[id]) for id in unsure})
        depth, saved_s = self._depth(len(unsure), wanted, rows, most)
        behind_s = {id: model.behind(id, text) * model.row_s for id, text in unsure.items()}
        if depth:
            self._not_asked = 0
            token_s = costs.seconds(wanted) / wanted
            depths: dict[int, int] = {}
            read_s = 0.0
            for id, text_s in behind_s.items():
                if self._pays(id, text_s, read_s, limits[id], saved_s, token_s):
                    depths[id] = min(depth, limits[id])
                    read_s += text_s
            return _Asked(depths)
        self._not_asked += 1
        nearest = min(behind_s, key=behind_s.__getitem__)
        trial_s = behind_s[nearest] + (model.step_s or 0.0)
        # Or nobody would find out that it has become better. What others gained is not for that.
        if self._not_asked < _ANEW or self._trials_s + trial_s > _ALLOWED * self._total_s:
            return _Asked()
        self._not_asked = 0
        self._trials_s += trial_s
        return _Asked({nearest: min(1, limits[nearest])}, on_trial=True)

    def _depth(self, asked: int, wanted: int, rows: int, most: int) -> tuple[int, float]:
        """How many tokens a model is to guess for each of ``asked`` requests: as many as make the
        expected tokens a second most, with the time that guessing takes; and the seconds that each
        token takes less by it."""
        costs, model = self.costs, self.model
        assert costs is not None
        assert model is not None
        right = self._all.rate(_MODEL, _MODEL_RIGHT)
        step_s = model.step_s or 0.0
        plain, beside = costs.seconds(wanted), costs.seconds(rows)
        best, depth, tokens, likely = _GAIN * wanted / plain, 0, float(wanted), 1.0
        for count in range(1, min(most, max(1, self._reach // asked)) + 1):
            likely *= right
            tokens += asked * likely
            more = costs.seconds(rows + asked * count) - beside
            if tokens / (plain + more + count * step_s) > best:
                best, depth = tokens / (plain + more + count * step_s), count
        return depth, plain / wanted - 1 / best

    def _pays(
        self, id: int, behind_s: float, others_s: float, limit: int, saved_s: float, token_s: float
    ) -> bool:
        """Whether a model is to read a text, which takes ``behind_s``, perhaps in several steps:
        where it is thought to save that over the rest of the answer, ``saved_s`` of the ``token_s``
        that each token takes, and while it has gained what it read before, with ``others_s`` for
        other texts, but for a small share of all time. An answer is thought to become as long as
        earlier ones, or twice as long as it is."""
        if not behind_s:
            return True
        answered = self._answered[id]
        left = min(limit + 1, max(answered, (self._length or 0.0) - answered))
        share = _UNPAID if self._all.known(_MODEL) else _TRIED
        allowed = share * (self._total_s + left * token_s)
        return behind_s <= min(left * saved_s, allowed + self._model_s - others_s)

    def _worth_a_branch(self, asked: int, wanted: int, least: float) -> float:
        """The chance from which on another way pays for its row, of which ``least`` speaks, and for
        a step of the model, which ``asked`` requests share."""
        if self.costs is None or self.model is None or self._recurrent:
            return 1.0
        step_s = (self.model.step_s or 0.0) / asked
        return max(LEAST, _DOUBT * least + step_s * wanted / self.costs.seconds(wanted))

    def _affordable(self, rows: int) -> bool:
        """Whether steps were measured, and not so much was lost that nothing is tried for now."""
        costs = self.costs
        if costs is None:
            return True
        if not costs.knows(rows) or self._in_a_row >= _LOOK_AGAIN:
            return False
        return self._balance_s > -_ALLOWED * self._total_s

    def _choose(
        self, found: Mapping[int, Draft], wanted: int, rows: int, room: int
    ) -> dict[int, Draft]:
        """Of the guesses, those that make the expected tokens a second most."""
        if not found:
            return {}
        guesses = []
        for id, draft in found.items():
            each = self._each.get(id)
            chances = {-1: 1.0}
            for number in range(len(draft.tokens)):
                chance = self._all.rate(*self._kind(draft, number))
                if each is not None:
                    chance = each.rate(draft.grade(number), chance)
                chances[number] = chances[draft.parent(number)] * min(1.0, chance)
                guesses.append((-chances[number], number, id))
        guesses.sort()
        count = min(room, len(guesses))
        if self.costs is not None:
            count = self._best_count(guesses[: min(count, self._reach)], wanted, rows)
        numbers: dict[int, list[int]] = {}
        for _, number, id in guesses[:count]:
            numbers.setdefault(id, []).append(number)
        return {id: found[id].part(sorted(chosen)) for id, chosen in numbers.items()}

    @staticmethod
    def _kind(draft: Draft, number: int) -> tuple[int, float]:
        return draft.grade(number), 0.5 if draft.chances is None else draft.chances[number]

    def _best_count(self, guesses: Sequence[tuple[float, int, int]], wanted: int, rows: int) -> int:
        """How many of the guesses, which begin with the likeliest, are worth their rows."""
        costs = self.costs
        assert costs is not None
        plain, beside = costs.seconds(wanted), costs.seconds(rows)
        best, count, tokens = _GAIN * wanted / plain, 0, float(wanted)
        for number, (less_likely, _, _) in enumerate(guesses, 1):
            tokens -= less_likely
            seconds = plain + costs.seconds(rows + number) - beside
            if self._recurrent:
                # Not right to its end: as many rows again in the next step.
                again = costs.seconds(wanted + round(tokens - wanted)) - plain
                seconds += (1 + less_likely) * max(0.0, again)
            if tokens / seconds > best:
                best, count = tokens / seconds, number
        return count

    def learn(
        self,
        advances: Sequence[Advance],
        chosen: Mapping[int, Sequence[int]],
        seconds: float,
        seen: NDArray[np.float32] | None = None,
    ) -> None:
        """A step of these advances has run in ``seconds`` and chose these tokens, by id; requests
        that were over with it have ended before. ``seen`` [rows, width] is what the last layer gave
        of its last rows."""
        if seen is not None and self.model is not None:
            self.model.observe_step(advances, chosen, seen)
        drafted = kept = redone = rows = answering = 0
        for a in advances:
            rows += a.rows
            answering += a.needs_logits
            if a.id in self._answered:
                self._answered[a.id] += len(chosen.get(a.id, ()))
            redone += a.redone
            if a.draft.tokens:
                drafted += len(a.draft.tokens)
                self.totals.drafts += 1
                kept += max(0, len(chosen[a.id]) - 1)
                self._count(a.id, a.draft, chosen[a.id])
        self.totals.drafted += drafted
        self.totals.kept += kept
        # What may be lost is a part of what answers take, not of their prompts.
        self._total_s += seconds * answering / rows
        self._in_a_row = self._in_a_row + 1 if drafted else 0
        self._reach = max(self._reach, 2 * drafted)
        costs = self.costs
        if costs is None:
            return
        gained, self._proposing_s = -self._proposing_s, 0.0
        if drafted or redone:
            decoded = sum(1 for a in advances if a.needs_logits)
            if rows - redone > answering:
                # By how much a prompt's time varies is more than what guesses take beside it.
                took = costs.seconds(rows)
            else:
                # A step that somebody else made slow says nothing of guesses.
                took = min(seconds, _SURPRISE * costs.seconds(rows))
            share = costs.seconds(decoded) / max(1, decoded)
            gained += kept * share - (took - costs.seconds(rows - drafted - redone))
        self.totals.saved_s += gained
        self._balance_s = min(self._balance_s + gained, _BANKED * self._total_s)
        if self._by_model:
            self._model_s = min(self._model_s + gained, _BANKED * self._total_s)
        costs.measured(rows, seconds)

    def _count(self, id: int, draft: Draft, chosen: Sequence[int]) -> None:
        """Count guesses that follow what was right."""
        counted = [self._all]
        if id in self._answered:
            counted.append(self._each.setdefault(id, _Rates()))
        # By number, how many tokens lead to what was right, itself included.
        right = {-1: 0}
        for number, token in enumerate(draft.tokens):
            depth = right.get(draft.parent(number), len(chosen))
            if depth < len(chosen):
                grade, _ = self._kind(draft, number)
                for rates in counted:
                    rates.count(grade, right=token == chosen[depth])
                if grade >= GRADES:
                    self._all.count(_MODEL, right=token == chosen[depth])
                if token == chosen[depth]:
                    right[number] = depth + 1

    def end(self, id: int, tokens: Sequence[int]) -> None:
        """A request is over."""
        self._each.pop(id, None)
        if answered := self._answered.pop(id, 0):
            self._length = moved(self._length, answered)
        self._obeying.pop(id, None)
        # A text that there is no memory for is not remembered.
        with suppress(OutOfMemoryError):
            self.proposer.end(id, tokens)
        if self.model is not None:
            self.model.end(id)

    def close(self) -> None:
        """Nothing is guessed any more: keep what is to be kept, and free what a model takes."""
        if self._closing is not None:
            self._closing()
        if self.model is not None:
            self.model.close()
