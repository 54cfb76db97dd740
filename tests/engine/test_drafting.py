"""How much is guessed: what raises the expected speed, and less or nothing where that was wrong.

Time is made up here: steps cost what a table says, and nothing is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

import pytest

import make_tiny_models
import strata._native as _native
import strata.engine.drafting
from strata import LLM
from strata.decode import Draft, Sampler, SamplingParams
from strata.decode.suffix import SuffixProposer, TokenHistory
from strata.engine.draft_choice import parse_draft
from strata.engine.draft_model import GRADES
from strata.engine.drafting import Drafting
from strata.engine.scheduler import Advance
from strata.engine.step_costs import StepCosts
from strata.errors import UsageError
from support.fake_model import fake_engine

Cost = Callable[[int], float]


def streamed(rows: int) -> float:
    """The disk decides."""
    return 1.0 + 0.002 * rows


def resident(rows: int) -> float:
    """From three rows on, arithmetic decides."""
    return max(0.02, 0.008 * rows)


class Fixed:
    """Says what it is told, and with what chance it is right."""

    def __init__(self, chance: float, count: int = 31) -> None:
        self.chance, self.count = chance, count
        self.ended: list[int] = []

    def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
        count = min(most, self.count)
        return Draft((7,) * count, None, (self.chance,) * count, (3,) * count)

    def end(self, id: int, tokens: Sequence[int]) -> None:
        self.ended.append(id)


def advance(id: int, draft: Draft) -> Advance:
    return Advance(id, 0, (1,), 1 + len(draft.tokens), (), draft=draft)


def begin(drafting: Drafting, *ids: int) -> None:
    for id in ids:
        drafting.begin(id, Sampler(SamplingParams(), [1], 10))


def simulate(
    drafting: Drafting, cost: Cost, right: float, *, requests: int = 1, tokens: int = 2000
) -> tuple[float, float]:
    """Seconds of so many tokens for each request with guesses that are right so often, and without
    any."""
    random = Random(1)
    begin(drafting, *range(requests))
    everybody = [advance(id, Draft()) for id in range(requests)]
    drafting.learn(everybody, {id: [1] for id in range(requests)}, cost(requests))
    given = dict.fromkeys(range(requests), 0)
    seconds = 0.0
    while min(given.values()) < tokens:
        running = [id for id, done in given.items() if done < tokens]
        limits = {id: tokens - given[id] for id in running}
        drafts = drafting.propose({id: [1] for id in running}, len(running), 64, limits)
        drafting._proposing_s = 0.0
        advances = [advance(id, drafts.get(id, Draft())) for id in running]
        chosen: dict[int, list[int]] = {}
        for a in advances:
            kept = 0
            while kept < len(a.draft.tokens) and random.random() < right:
                kept += 1
            chosen[a.id] = [7] * kept + [1]
            given[a.id] += kept + 1
        step = cost(sum(a.rows for a in advances))
        seconds += step
        drafting.learn(advances, chosen, step)
    return seconds, tokens * cost(requests)


@pytest.mark.parametrize("requests", [1, 4, 16])
@pytest.mark.parametrize("cost", [streamed, resident])
@pytest.mark.parametrize("thought", [0.3, 0.99])
def test_never_slower_whatever_the_proposer_thinks(
    cost: Cost, thought: float, requests: int
) -> None:
    """Nothing that it says is right."""
    drafting = Drafting(Fixed(thought), costs=StepCosts())
    with_guesses, without = simulate(drafting, cost, 0.0, requests=requests, tokens=1000)
    assert with_guesses <= without / 0.97


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("right", [0.0, 0.4, 0.8])
def test_a_prediction_that_is_far_off_is_corrected_before_it_costs_much(
    right: float, requests: int
) -> None:
    """Rows are said to cost nothing, and cost what the first one does."""
    said = {1 << power: 1.0 + 0.001 * power for power in range(7)}
    drafting = Drafting(Fixed(0.7), costs=StepCosts(said))

    def steep(rows: int) -> float:
        return 0.01 * rows

    with_guesses, without = simulate(drafting, steep, right, requests=requests, tokens=500)
    assert with_guesses <= without / 0.97


def test_never_slower_when_a_text_stops_repeating_itself() -> None:
    drafting = Drafting(Fixed(0.8), costs=StepCosts())
    first, plain = simulate(drafting, resident, 0.95)
    second, _ = simulate(drafting, resident, 0.0)
    assert first < 0.7 * plain
    # It takes some guesses to notice.
    assert first + second < 2 * plain
    assert second < 1.03 * plain


def test_faster_where_guesses_are_right() -> None:
    drafting = Drafting(Fixed(0.5), costs=StepCosts())
    with_guesses, without = simulate(drafting, streamed, 0.9)
    assert without / with_guesses > 4
    # Arithmetic bounds what may be gained.
    drafting = Drafting(Fixed(0.5), costs=StepCosts())
    with_guesses, without = simulate(drafting, resident, 0.9)
    assert without / with_guesses > 1.5


def test_a_predicted_curve_is_used_before_steps_were_measured() -> None:
    curve = {1: 10.0, 2: 10.1, 4: 10.3, 8: 10.7, 16: 11.5, 32: 13.0}
    costs = StepCosts(curve)
    assert not costs.knows(1)
    costs.measured(1, 1.0)
    assert costs.knows(1)
    for rows, seconds in curve.items():
        assert costs.seconds(rows) == pytest.approx(seconds / 10)
    assert costs.seconds(3) == pytest.approx(1.02)


def test_costs_rise_and_learn() -> None:
    costs = StepCosts()
    random = Random(0)
    for _ in range(3000):
        rows = random.choice([1, 1, 1, 2, 3, 5, 8, 16, 40])
        # Now and then somebody else has the machine.
        costs.measured(rows, resident(rows) * random.choice([0.9, 1.0, 1.1, 1.0, 3.0]))
    for rows in (1, 2, 5, 8, 16):
        assert costs.seconds(rows) == pytest.approx(resident(rows), rel=0.25)
    times = [costs.seconds(rows) for rows in range(1, 200)]
    assert times == sorted(times)


def test_likelier_guesses_come_first_over_all_requests() -> None:
    class Two:
        def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
            chances = (0.9, 0.9, 0.9) if id else (0.5, 0.5, 0.5)
            return Draft((1, 2, 3), None, chances, (id,) * 3)

        def end(self, id: int, tokens: Sequence[int]) -> None:
            pass

    drafting = Drafting(Two())
    both = {0: [1], 1: [1]}
    taken = drafting.propose(both, 2, 4, {0: 9, 1: 9})
    assert {id: draft.tokens for id, draft in taken.items()} == {0: (1,), 1: (1, 2, 3)}
    assert drafting.propose(both, 2, 4, {0: 0, 1: 2})[1].tokens == (1, 2)


def test_what_was_right_is_counted_by_kind_and_request() -> None:
    drafting = Drafting(Fixed(0.5))
    draft = Draft((7, 7, 8), (-1, 0, -1), (0.5, 0.5, 0.5), (3, 3, 4))
    begin(drafting, 1)
    for _ in range(60):
        drafting.learn([advance(1, draft)], {1: [7, 9]}, 1.0)
    assert drafting.totals.drafted == 180
    assert drafting.totals.kept == 60
    # One of two, and none.
    assert drafting._all.rate(3, 0.5) == pytest.approx(0.5, abs=0.05)
    assert drafting._all.rate(4, 0.5) < 0.1
    assert drafting._each[1].rate(4, 0.5) < 0.1
    drafting.end(1, [])
    assert 1 not in drafting._each


def test_of_an_answer_that_is_over_nothing_is_kept() -> None:
    """The engine ends it before the step is learnt of that gave its last token."""
    engine = fake_engine(context=128, drafting=Drafting(Fixed(0.5, 3)))
    for number in range(3):
        engine.submit([number + 1], SamplingParams(max_tokens=9, ignore_eos=True))
    while engine.busy:
        engine.step()
    assert engine.drafting is not None
    assert engine.drafting.totals.drafted > 0
    assert not engine.drafting._each
    assert not engine.drafting._answered


def test_what_guessing_took_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the next step is one of prompts, for which nobody is asked."""
    clock = iter((0.0, 1.0))
    drafting = Drafting(Fixed(0.5, 0), costs=StepCosts())
    begin(drafting, 1)
    drafting.learn([advance(1, Draft())], {1: [1]}, 9.0)
    monkeypatch.setattr(strata.engine.drafting, "perf_counter", lambda: next(clock))
    assert drafting.propose({1: [1]}, 1, 8, {1: 8}) == {}
    for _ in range(2):
        drafting.learn([advance(1, Draft())], {1: [1]}, 9.0)
    assert drafting.totals.saved_s == -1.0


def test_without_memory_for_texts_nothing_is_guessed_and_nothing_fails() -> None:
    drafting = Drafting(SuffixProposer(TokenHistory(1 << 14)))
    text = [*range(9), *range(4)]
    try:
        # The text that is answered, the one that is remembered, and one that has grown.
        for remembered in (False, True):
            _native.fail_after("allocation", 1)
            assert drafting.propose({0: text}, 1, 8, {0: 3}) == {}
            assert _native.has_failed("allocation")
            _native.fail_after("allocation", 0)
            assert drafting.propose({0: text}, 1, 8, {0: 3})[0].tokens == (4, 5, 6)
            _native.fail_after("allocation", 0 if remembered else 1)
            drafting.end(0, text)
            _native.fail_after("allocation", 0)
            found = drafting.propose({1: [*range(5, 8)]}, 1, 8, {1: 1})
            assert [draft.tokens for draft in found.values()] == [(8,)] * remembered
            drafting.end(1, [0])
    finally:
        _native.fail_after("allocation", 0)


def test_ways_to_guess_are_checked() -> None:
    assert parse_draft("auto").tokens > 0
    assert parse_draft("off").tokens == 0
    with pytest.raises(UsageError, match="'sufix' is no way to guess"):
        parse_draft("sufix")


@pytest.mark.parametrize(("requests", "times"), [(4, 1.9), (16, 1.2)])
def test_a_crowd_is_faster_too_where_guesses_are_right(requests: int, times: float) -> None:
    """A step takes as long as ten rows, and each row its time: sixty rows more that are right take
    4.3 times as long for four, 3.3 times for sixteen."""
    drafting = Drafting(Fixed(0.7), costs=StepCosts())
    with_guesses, without = simulate(
        drafting, lambda rows: 0.01 + 0.001 * rows, 0.95, requests=requests, tokens=400
    )
    assert without / with_guesses > times


def test_a_proposer_is_told_below_which_chance_no_guess_pays() -> None:
    """A step of four rows gives four tokens, and a row more takes an eighth of its time."""
    told = list[float]()

    class Told(Fixed):
        def propose(self, id: int, tokens: Sequence[int], most: int, least: float = 0.0) -> Draft:
            told.append(least)
            return super().propose(id, tokens, most, least)

    texts = {id: [5] * 9 for id in range(4)}

    def guessed(chance: float) -> int:
        costs = StepCosts({1: 0.7, 2: 0.8, 4: 1.0, 8: 1.5})
        drafting = Drafting(Told(chance), costs=costs)
        drafting.learn([advance(id, Draft()) for id in texts], {id: [1] for id in texts}, 1.0)
        drafts = drafting.propose(texts, 4, 32, dict.fromkeys(texts, 8))
        return sum(len(draft.tokens) for draft in drafts.values())

    assert guessed(0.9) == 2
    assert guessed(0.45) == 0
    # It may be off by a factor of two.
    assert told == [pytest.approx(0.5 / 2)] * 8


class Reading:
    """A draft model whose time is made up: ``step_s`` for each token that it guesses, ``row_s`` for
    each one of a text that it reads, of which it reads so many ``at_once``."""

    sees: tuple[int, ...] = ()

    def __init__(self, step_s: float, row_s: float, at_once: int = 512) -> None:
        self.step_s: float | None = step_s
        self.at_once = at_once
        self.row_s, self.behind_s, self.took_s = row_s, 0.0, 0.0
        self.length: dict[int, int] = {}

    def begin(self, id: int, sampler: Sampler) -> None:
        pass

    def end(self, id: int) -> None:
        pass

    def behind(self, id: int, text: Sequence[int]) -> int:
        return max(0, len(text) - self.length.get(id, 0) - 8)

    def propose(
        self, texts: Mapping[int, Sequence[int]], most: Mapping[int, int], others: float = 1.0
    ) -> dict[int, Draft]:
        self.behind_s = 0.0
        ready: dict[int, int] = {}
        for id, text in texts.items():
            missing = self.behind(id, text)
            self.behind_s += self.row_s * min(missing, self.at_once)
            if missing <= self.at_once:
                self.length[id], ready[id] = len(text), most[id]
            else:
                self.length[id] = self.length.get(id, 0) + self.at_once
        assert self.step_s is not None
        self.took_s += self.behind_s + self.step_s * max(ready.values(), default=0)
        return {
            id: Draft((7,) * count, None, (0.6,) * count, (GRADES + 4,) * count)
            for id, count in ready.items()
        }

    def observe_step(
        self, advances: Sequence[Advance], chosen: Mapping[int, Sequence[int]], rows: object
    ) -> None:
        pass

    def check_integrity(self) -> None:
        pass

    def close(self) -> None:
        pass


def one_after_the_other(
    clock: pytest.MonkeyPatch,
    model: Reading,
    cost: Cost,
    right: float,
    *,
    answers: int,
    tokens: int,
    prompt: int = 300,
) -> list[float]:
    """How many times as fast as without guesses the answers up to each of them are, together."""
    clock.setattr(strata.engine.drafting, "perf_counter", lambda: model.took_s)
    random, drafting, found = Random(2), Drafting(Fixed(0.0, 0), costs=StepCosts()), []
    drafting.model = model
    plain = seconds = 0.0
    for id in range(answers):
        begin(drafting, id)
        drafting.learn([advance(id, Draft())], {id: [1]}, cost(1))
        given, plain, seconds = 1, plain + tokens * cost(1), seconds + cost(1)
        while given < tokens:
            text, before = [1] * (prompt + given), model.took_s
            draft = drafting.propose({id: text}, 1, 64, {id: tokens - given - 1}).get(id, Draft())
            kept = 0
            while kept < len(draft.tokens) and random.random() < right:
                kept += 1
            step = cost(1 + len(draft.tokens))
            drafting.learn([advance(id, draft)], {id: [7] * kept + [1]}, step)
            given, seconds = given + kept + 1, seconds + model.took_s - before + step
        drafting.end(id, [])
        found.append(plain / seconds)
    return found


@pytest.mark.parametrize("right", [0.0, 0.9])
@pytest.mark.parametrize("tokens", [12, 300])
@pytest.mark.parametrize("cost", [streamed, resident])
def test_a_draft_model_slows_no_answers_down(
    cost: Cost, tokens: int, right: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that reads a prompt in the time of thirty tokens: it does not where answers are too short
    for that, and no more where it is wrong."""
    plain = cost(1)
    model = Reading(step_s=0.2 * plain, row_s=0.1 * plain)
    speeds = one_after_the_other(monkeypatch, model, cost, right, answers=8, tokens=tokens)
    # What it takes to find out how often it is right is bounded, too, and taken once.
    assert min(speeds) >= 0.94
    assert speeds[-1] >= 0.97
    if right == 0.9 and tokens == 300:
        assert speeds[-1] > (1.5 if cost is streamed else 1.2)


def test_a_draft_model_as_slow_as_the_model_is_not_asked_to_read_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = Reading(step_s=0.02, row_s=0.004)
    speeds = one_after_the_other(monkeypatch, model, resident, 0.9, answers=3, tokens=96)
    assert speeds == pytest.approx([1.0] * 3)
    assert not model.length


def test_a_long_prompt_that_is_worth_it_is_read_to_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In pieces, of which none is accounted for twice."""
    whole = Reading(step_s=0.1, row_s=0.01, at_once=1 << 20)
    pieces = Reading(step_s=0.1, row_s=0.01, at_once=64)
    found = [
        one_after_the_other(monkeypatch, model, streamed, 0.9, answers=4, tokens=300, prompt=2000)
        for model in (whole, pieces)
    ]
    assert found[0][-1] > 1.5
    assert found[1][-1] > 0.9 * found[0][-1]


def test_a_draft_model_that_costs_little_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Reading(step_s=0.01, row_s=0.0002)
    first, *others = one_after_the_other(monkeypatch, model, streamed, 0.8, answers=3, tokens=96)
    assert first > 2.5
    assert min(others) > first


def test_the_reference_guesses_only_where_it_is_told_to(tmp_path: Path) -> None:
    """Its bits depend on how many rows are computed together, and nothing says that it pays."""
    path = make_tiny_models.write_directory(tmp_path / "m", make_tiny_models.golden("llama"))
    for draft, guesses in (("auto", False), ("ngram", True), ("off", False)):
        with LLM(path, backend="reference", draft=draft) as llm:
            assert (llm.engine.drafting is not None) == guesses
    with LLM(path) as llm:
        assert llm.plan is None
        assert llm.engine.drafting is not None
