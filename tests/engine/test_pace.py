"""The pace of prompts beside answers, on a machine whose steps take what a formula says."""

from __future__ import annotations

import numpy as np
import pytest

from strata.engine.pace import FIRST_SHARE, Pace


class FakeMachine:
    """A step costs ``base``, and every answer and every token of a prompt something more."""

    def __init__(self, base: float, answer: float, token: float, noise: float = 0.0) -> None:
        self.base, self.answer, self.token, self.noise = base, answer, token, noise
        self.random = np.random.default_rng(0)

    def seconds(self, answers: int, tokens: int) -> float:
        exact = self.base + answers * self.answer + tokens * self.token
        return exact * float(1 + self.noise * self.random.random())


def during(machine: FakeMachine, pace: Pace, answers: int, prompt: int) -> list[float]:
    """Steps with ``answers`` while a prompt is computed, after some quiet ones."""
    for _ in range(20):
        pace.observe(answers, 0, machine.seconds(answers, 0))
    out = []
    while prompt > 0:
        tokens = min(prompt, pace.share(answers, 1))
        out.append(machine.seconds(answers, tokens))
        pace.observe(answers, tokens, out[-1])
        prompt -= tokens
    return out


@pytest.mark.parametrize("noise", [0.0, 0.2])
@pytest.mark.parametrize("answers", [1, 4, 16])
def test_others_hardly_notice(answers: int, noise: float) -> None:
    machine = FakeMachine(4e-3, 0.5e-3, 0.3e-3, noise)
    steps = during(machine, Pace(1.35), answers, 4000)
    quiet = machine.base + answers * machine.answer
    assert np.percentile(steps, 95) <= 1.5 * quiet * (1 + noise)
    # And the prompt gets what it may.
    assert np.median(steps) >= 1.2 * quiet


def test_where_a_sweep_takes_long_many_tokens_fit_beside_it() -> None:
    pace = Pace(1.35)
    steps = during(FakeMachine(1.0, 1e-3, 1e-3), pace, 1, 4000)
    assert len(steps) <= 16
    pace.observe(1, 0, 1.001)
    assert pace.share(1, 1) >= 300


def test_many_prompts_are_hurried() -> None:
    pace = Pace(1.5)
    during(FakeMachine(4e-3, 0.5e-3, 0.1e-3), pace, 2, 4000)
    one, eight = (pace.share(2, prompts) for prompts in (1, 8))
    assert abs(eight - 8 * one) <= 8


def test_answers_that_become_slower_meanwhile_do_not_stop_a_prompt() -> None:
    machine, pace = FakeMachine(4e-3, 0.5e-3, 0.1e-3), Pace(1.4)
    during(machine, pace, 4, 400)
    machine.base *= 10
    for _ in range(200):
        tokens = pace.share(4, 1)
        pace.observe(4, tokens, machine.seconds(4, tokens))
    machine.noise = 0
    assert 0.7 * 168 <= max(pace.share(4, 1), tokens) <= 1.1 * 168


def test_before_anything_is_known() -> None:
    pace = Pace(1.35)
    assert pace.share(1, 1) == 0  # a quiet step first
    pace.observe(0, 512, 0.2)  # nobody was slowed down: nothing to learn
    assert pace.share(1, 1) == 0
    pace.observe(4, 0, 5e-3)
    assert pace.share(1, 1) == FIRST_SHARE
    pace.observe(4, 16, 7e-3)
    assert pace.share(1, 1) > 0


def test_a_broken_clock_does_not_stop_prompts() -> None:
    pace = Pace(1.35)
    for seconds in (0.0, 1e9, 0.0):
        pace.observe(1, 0, 1e-3)
        pace.observe(1, 8, seconds)
        assert pace.share(1, 1) >= 1
