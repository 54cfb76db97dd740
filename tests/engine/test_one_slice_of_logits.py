"""Logits are made some rows at a time, and the Plan has room for those rows once."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest

from strata.decode import SamplingParams
from strata.engine import Engine
from strata.engine.runner import LOGIT_ROWS
from support.fake_model import VOCABULARY, FakeBackend, fake_engine


class Counting(FakeBackend):
    """Counts the slices of logits that are there while another is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Any]] = []
        self.most = 0

    def run(self, loaded: Any, *args: Any) -> dict[str, Any]:
        out = super().run(loaded, *args)
        if "logits" in out:
            self.most = max(self.most, 1 + sum(ref() is not None for ref in self.made))
            self.made.append(weakref.ref(out["logits"]))
        return out


def _score(engine: Engine) -> None:
    engine.logprobs([number % VOCABULARY for number in range(4 * LOGIT_ROWS)], 0)


def _many_sequences(engine: Engine) -> None:
    for number in range(3 * LOGIT_ROWS):
        engine.submit([number % VOCABULARY], SamplingParams(max_tokens=2))
    while engine.busy:
        engine.step()


@pytest.mark.parametrize("work", [_score, _many_sequences])
def test_one_slice_of_logits_is_there_at_a_time(work: Callable[[Engine], None]) -> None:
    backend = Counting()
    parallel = 3 * LOGIT_ROWS
    work(fake_engine(backend, parallel=parallel, token_budget=parallel, context=5 * LOGIT_ROWS))
    assert len(backend.made) >= 3
    assert backend.most == 1
