"""Tokens of prompts beside answers: as planned, and narrower where steps take longer."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from strata.engine.prompt_slices import PromptSlices

ANSWER_S, ROW_S = 3e-3, 1e-4
DEEP_S = 1e-6
"""A machine: seconds of an answer's step, of a prompt's row, and for each position before it."""

Took = Callable[[int, int, int], float]


def answers_s(answers: int) -> float:
    return ANSWER_S * (1 + 0.1 * (answers - 1))


def by_row(answers: int, rows: int, depth: int) -> float:
    """Each row reads what is kept."""
    return answers_s(answers) + rows * (ROW_S + DEEP_S * depth)


def at_once(answers: int, rows: int, depth: int) -> float:
    """All rows read it together."""
    return answers_s(answers) + rows * ROW_S + (DEEP_S * depth if rows else 0)


def run(slices: PromptSlices, depth: int, took: Took, prompts: int = 1, steps: int = 60) -> int:
    """Slices at one depth beside an answer; the tokens of the last one."""
    rows = 0
    for _ in range(steps):
        for answers in (1, 2, 4):
            slices.measured(answers, 0, 0, took(answers, 0, 0))
        rows = slices.tokens(1, prompts, depth) or 0
        slices.measured(1, rows, depth, took(1, rows, depth))
    return rows


def test_a_slice_is_as_planned_until_one_was_measured() -> None:
    slices = PromptSlices((10, 20, 30), 1.4)
    slices.measured(1, 0, 0, 1e-3)
    assert [slices.tokens(n, 1, 5000) for n in (1, 2, 3, 4, 9)] == [10, 20, 25, 30, 30]
    assert slices.tokens(0, 1, 0) is None


@pytest.mark.parametrize("depth", [0, 500, 2000, 20_000])
@pytest.mark.parametrize("prompts", [1, 2])
def test_rows_that_read_for_themselves_are_as_many_as_the_slowdown_bears(
    depth: int, prompts: int
) -> None:
    rows = run(PromptSlices((30, 30, 30), 1.4), depth, by_row, prompts)
    allowed = 0.4 * answers_s(prompts) * prompts
    most = allowed / (ROW_S + DEEP_S * depth)
    assert rows == 1 if most < 1 else most - 1.2 <= rows <= most


def test_where_the_first_row_is_beyond_the_bound_as_many_come_as_cost_hardly_more() -> None:
    slices = PromptSlices((30,), 1.4)
    rows = run(slices, 4000, at_once, steps=200)
    assert 2 <= rows <= 12
    assert at_once(1, rows, 4000) - at_once(1, 0, 0) <= 1.3 * (ROW_S + DEEP_S * 4000)


def test_no_more_are_taken_than_planned() -> None:
    assert run(PromptSlices((7,), 1.4), 0, lambda answers, rows, depth: answers_s(answers)) == 7


def test_what_was_measured_nearby_bounds_a_depth_that_is_new() -> None:
    slices = PromptSlices((30,), 1.4)
    bounded = run(slices, 3000, by_row)
    assert bounded < run(PromptSlices((30,), 1.4), 100, by_row)
    assert slices.tokens(1, 1, 9000) == slices.tokens(1, 1, 700) == bounded


def test_a_step_that_somebody_else_made_slow_hardly_changes_what_is_known() -> None:
    slices = PromptSlices((30,), 1.4)
    before = run(slices, 300, by_row)
    slices.measured(1, before, 300, 1.0)
    after = slices.tokens(1, 1, 300)
    assert after is not None
    assert 0.8 * before <= after <= before
    slices.measured(1, 0, 0, 1.0)
    assert after <= (slices.tokens(1, 1, 300) or 0) <= before + 1


@pytest.mark.parametrize("slower", [4, 10, 50])
def test_a_slow_first_slice_does_not_narrow_all_that_come(slower: float) -> None:
    first = True

    def took(answers: int, rows: int, depth: int) -> float:
        nonlocal first
        seconds = answers_s(answers) + rows * ROW_S
        if rows and first:
            seconds, first = seconds + (slower - 1) * rows * ROW_S, False
        return seconds

    honest = run(PromptSlices((30,), 1.4), 0, by_row)
    found = PromptSlices((30,), 1.4)
    assert run(found, 0, took, steps=3) < honest
    assert run(found, 0, took, steps=3000) >= 0.8 * honest


def test_without_a_plan_or_a_slowdown_nothing_is_measured() -> None:
    for slices in (PromptSlices((), 1.4), PromptSlices((9,))):
        slices.measured(1, 0, 0, 1e-3)
        slices.measured(1, 9, 0, 1.0)
        assert slices.tokens(1, 1, 9000) == (9 if slices.planned else None)
