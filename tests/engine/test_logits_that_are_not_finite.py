"""A request whose logits are no numbers ends alone: its neighbours in the same steps get the tokens
that they would have had without it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from strata.backends.base import Activations, LoadedSegment, StateCache, Step
from strata.decode import SamplingParams
from strata.decode.sampling import LogitsError
from strata.engine import Delta
from support.fake_model import FakeBackend, expected_tokens, fake_engine, history_hash

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
TOKENS = 12


class Broken(FakeBackend):
    """Logits of some histories hold ``value``, in one place or in all."""

    def __init__(self, histories: list[list[int]], value: float, place: int | None) -> None:
        super().__init__()
        self._hashes = {history_hash(history) for history in histories}
        self._value, self._place = value, place

    def run(
        self, loaded: LoadedSegment, step: Step, state: StateCache, inputs: Activations
    ) -> dict[str, Any]:
        out = super().run(loaded, step, state, inputs)
        if "logits" in out:
            for row, index in enumerate(step.logits_indices):
                if int(inputs["x"][index]) in self._hashes:
                    out["logits"][row, slice(None) if self._place is None else self._place] = (
                        self._value
                    )
        return out


@pytest.mark.parametrize(
    ("value", "place"), [(np.nan, 3), (np.inf, 3), (np.nan, None), (-np.inf, None)]
)
@pytest.mark.parametrize("broken", range(3))
@pytest.mark.parametrize("after", [0, 4])
def test_a_request_ends_alone(value: float, place: int | None, broken: int, after: int) -> None:
    expected = [expected_tokens(prompt, TOKENS) for prompt in PROMPTS]
    history = PROMPTS[broken] + expected[broken][:after]
    engine = fake_engine(Broken([history], value, place), parallel=3)
    requests = [engine.submit(prompt, SamplingParams(max_tokens=TOKENS)) for prompt in PROMPTS]
    told: list[Delta] = []
    while engine.busy:
        told += [delta for delta in engine.step() if delta.error is not None]
        engine.check_integrity()
    assert [delta.request for delta in told] == [requests[broken]]
    assert isinstance(told[0].error, LogitsError)
    for number, request in enumerate(requests):
        tokens = [sample.token for sample in request.output]
        assert tokens == (expected[number][:after] if number == broken else expected[number])
    # And the engine goes on for others.
    later = engine.submit(PROMPTS[0][:2], SamplingParams(max_tokens=3))
    while engine.busy:
        engine.step()
    assert [sample.token for sample in later.output] == expected_tokens(PROMPTS[0][:2], 3)
