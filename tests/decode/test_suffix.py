"""What is looked up is what followed the longest suffix that occurred before."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

import strata._native as _native
from strata.decode import NO_DRAFT, Draft
from strata.decode.suffix import SuffixProposer, TokenHistory
from strata.errors import UsageError
from strata.machine import constants


def longest(corpus: list[int], text: list[int], *, own: bool) -> tuple[int, list[int]]:
    """The naive way: length of the longest suffix of ``text`` in ``corpus``, and where it ends."""
    best, places = 0, []
    for place in range(1, len(corpus)):
        length = 0
        while (
            length < min(32, place, len(text)) and corpus[place - 1 - length] == text[-1 - length]
        ):
            length += 1
        if length > best:
            best, places = length, []
        if length == best > 0:
            places.append(place)
    return best, places


@pytest.mark.parametrize("vocabulary", [2, 3, 9, 40])
def test_the_likeliest_token_follows_the_longest_suffix(vocabulary: int) -> None:
    random = np.random.default_rng(vocabulary)
    history = TokenHistory(400)
    proposer = SuffixProposer(history)
    before: list[int] = []
    seen = 0
    for id in range(30):
        text = random.integers(0, vocabulary, int(random.integers(1, 120))).tolist()
        own, mine = longest(text, text, own=True)
        theirs, others = longest(before, text, own=False)
        draft = proposer.propose(id, text, 6)
        corpus, places = (before, others) if theirs > own else (text, mine)
        counted = Counter(corpus[place] for place in places[-24:])
        counted.pop(-1, None)
        if draft.tokens:
            seen += 1
            assert counted[draft.tokens[0]] == max(counted.values())
            assert len(draft.tokens) <= 6
        else:
            # Nowhere, or only where an earlier text ended, or one of very many.
            assert not places or not counted or vocabulary > 9
        proposer.end(id, text)
        before = history.tokens.tolist()
    assert seen > 5


@pytest.mark.parametrize("vocabulary", [2, 5, 30])
def test_the_index_finds_what_looking_at_all_places_does(vocabulary: int) -> None:
    """All of the last places, in texts that grow over the borders of what is taken at once."""
    random = np.random.default_rng(vocabulary)
    pieces = [random.integers(0, vocabulary, n).tolist() for n in (3, 7, 40, 90)]
    index, text = _native.SuffixIndex(), list[int]()
    for _ in range(60):
        more = [*pieces[random.integers(4)], *random.integers(0, vocabulary, 3).tolist()]
        more += [1] * int(random.integers(0, 40) * (random.random() < 0.2))
        text += more
        index.append(np.array(more, np.int32))
        index.enter(int(random.integers(1, 200)))
        known = len(text) - index.behind
        suffix = text[-40:]
        length, places = longest(text[:known], suffix, own=True)
        found, at = index.find(np.array(suffix, np.int32), 24)
        assert (found, at) == (length, places[-24:])
    assert index.tokens(0, len(text) + 5) == text


def test_a_text_that_makes_the_index_deep_costs_no_more() -> None:
    """Contexts in falling order are a list and no tree: the oldest are forgotten, and no more."""
    index = _native.SuffixIndex()
    falling = np.repeat(np.arange(20_000, 0, -1, dtype=np.int32), 2)
    index.append(falling)
    index.enter(len(falling))
    assert index.behind == 0
    length, places = index.find(np.array([7, 6, 6, 5], np.int32), 24)
    assert (length, places) == (4, [39_991])
    assert index.find(np.array([-1, 1 << 30], np.int32), 24) == (0, [])


def test_the_plan_counts_what_the_index_takes() -> None:
    assert constants.DRAFT_TEXT_TOKEN == _native.SUFFIX_BYTES_PER_TOKEN


def test_a_history_goes_on_where_it_was() -> None:
    random = np.random.default_rng(1)
    history, texts = TokenHistory(64), [random.integers(0, 9, 20).tolist() for _ in range(9)]
    for text in texts[:7]:
        history.add(text)
    other = TokenHistory(64)
    other.restore(history.tokens)
    assert other.tokens.tolist() == history.tokens.tolist()
    for text in texts[7:]:
        history.add(text)
        other.add(text)
        assert len(other.tokens) <= 64
    assert other.tokens[-21:].tolist() == history.tokens[-21:].tolist() == [*texts[8], -1]
    small = TokenHistory(16)
    small.restore(history.tokens)
    assert small.tokens.tolist() == history.tokens[-16:].tolist()


def test_a_copied_text_is_guessed_as_far_as_it_goes() -> None:
    text = list(range(100, 160))
    draft = SuffixProposer().propose(0, [*text, 7, *text[:9]], 12)
    assert draft.tokens == tuple(text[9:21])
    assert draft.parents is None
    assert draft.chances == tuple(sorted(draft.chances or ()))


def test_nothing_is_proposed_that_is_less_likely_than_it_may_be() -> None:
    whole, some = (
        SuffixProposer().propose(0, [1, 2, 3, 9, 1, 2, 4, 8, 1, 2, 3, 7, 1, 2], 8, least)
        for least in (0.0, 0.1)
    )
    reached = {-1: 1.0}
    for number, chance in enumerate(whole.chances or ()):
        reached[number] = reached[whole.parent(number)] * chance
    likely = [number for number in range(len(whole.tokens)) if reached[number] >= 0.1]
    assert 0 < len(likely) < len(whole.tokens)
    assert some.tokens == whole.part(likely).tokens
    assert some.chances == whole.part(likely).chances
    copied = [*range(100, 130), 7, *range(100, 109)]
    chain = SuffixProposer().propose(0, copied, 12)
    reached_by = np.cumprod(chain.chances or ())
    some = SuffixProposer().propose(0, copied, 12, 0.3)
    assert some == chain.first(int((reached_by >= 0.3).sum())) != chain
    # One token that is the same does not make the next one likely.
    assert SuffixProposer().propose(0, [4, 5, 6, 4], 4, 0.2) == NO_DRAFT


def test_a_loop_is_guessed_beyond_what_is_there() -> None:
    assert SuffixProposer().propose(0, [5, 1, 2, 1, 2, 1], 6).tokens == (2, 1, 2, 1, 2, 1)
    assert SuffixProposer().propose(0, [5] * 4, 4).tokens == (5, 5, 5, 5)


def test_several_continuations_make_a_tree() -> None:
    text = [1, 2, 3, 9, 1, 2, 4, 8, 1, 2, 3, 7, 1, 2]
    draft = SuffixProposer().propose(0, text, 5)
    assert draft.tokens[0] == 3
    assert {n for n, token in enumerate(draft.tokens) if draft.parent(n) == -1} == {
        0,
        draft.tokens.index(4),
    }
    # The likeliest come first, whatever they follow.
    assert draft.chances is not None
    reached = {-1: 1.0}
    for number, chance in enumerate(draft.chances):
        reached[number] = reached[draft.parent(number)] * chance
    whole = [reached[n] for n in range(len(draft.tokens))]
    assert whole == sorted(whole, reverse=True)


def test_tokens_may_come_piece_by_piece() -> None:
    random = np.random.default_rng(0)
    text = random.integers(0, 6, 900).tolist()
    growing = SuffixProposer()
    for end in range(1, 900, 7):
        assert growing.propose(0, text[:end], 8) == SuffixProposer().propose(0, text[:end], 8)


def test_earlier_texts_are_looked_through_and_the_oldest_forgotten() -> None:
    history = TokenHistory(64)
    proposer = SuffixProposer(history)
    proposer.end(0, [1, 2, 3, 4])
    assert proposer.propose(1, [9, 1, 2], 4).tokens == (3, 4)
    assert SuffixProposer().propose(1, [9, 1, 2], 4) == NO_DRAFT
    for start in range(100, 300, 20):
        proposer.end(2, list(range(start, start + 20)))
        assert len(history.tokens) <= history.capacity
    assert proposer.propose(3, [9, 1, 2], 4) == NO_DRAFT
    assert proposer.propose(3, [9, 1, 281, 282], 3).tokens == (283, 284, 285)
    proposer.end(4, list(range(1000)))
    assert proposer.propose(5, [998], 3).tokens == (999,)


def test_the_shortest_suffix_that_counts() -> None:
    proposer = SuffixProposer(least=2)
    assert proposer.propose(0, [4, 5, 6, 1, 5], 3) == NO_DRAFT
    assert proposer.propose(1, [4, 5, 6, 4, 5], 1).tokens == (6,)


def test_nothing_before_nothing_guessed() -> None:
    assert SuffixProposer(TokenHistory(0)).propose(0, [1], 4) == NO_DRAFT
    assert SuffixProposer(TokenHistory(8)).propose(0, [1, 2, 3], 4) == NO_DRAFT


def test_a_part_of_a_draft_keeps_what_belongs_to_its_tokens() -> None:
    draft = Draft((5, 6, 7, 8), (-1, 0, -1, 2), (0.9, 0.8, 0.1, 0.7), (1, 2, 3, 4))
    assert draft.part([0, 2, 3]) == Draft((5, 7, 8), (-1, -1, 1), (0.9, 0.1, 0.7), (1, 3, 4))
    assert draft.chain == Draft((5, 6), (-1, 0), (0.9, 0.8), (1, 2))
    assert draft.first(9) is draft
    assert Draft((5, 6, 7)).first(2) == Draft((5, 6))
    with pytest.raises(UsageError, match="chance"):
        Draft((1, 2), chances=(0.5,))
