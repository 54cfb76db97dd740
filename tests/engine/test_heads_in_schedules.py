"""Heads that guess for a model change no bit of an answer where it is streamed, where sixteen
requests are answered together, and where some of them give way and go on."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from strata.decode import SamplingParams
from strata.formats import open_model
from strata.models import build_model
from support.guessing_runs import CONTEXT, answers, loaded, prompts
from support.head_files import (
    KINDS,
    LAYERS,
    VOCABULARY,
    nearly_the_same,
    opened,
    says_what_the_model_says,
    write_heads,
    write_recurrent_target,
    write_target,
)

GREEDY = SamplingParams(max_tokens=12, logprobs=2, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=0.6, top_p=0.9, presence_penalty=0.1, seed=4)
LENGTHS = (61, 62, 63, 40, 1, 64, 20, 9, 128, 33, 2, 60, 59, 58, 100, 5)


DEFAULT = (("eagle3", True), ("medusa", False))
CASES = [
    pytest.param(*case, marks=() if case in DEFAULT else pytest.mark.slow)
    for case in product(KINDS, (False, True))
]


@pytest.mark.parametrize(("kind", "recurrent"), CASES)
def test_streamed_sixteen_together_and_given_way(
    kind: str, recurrent: bool, tmp_path: Path
) -> None:
    """Guesses of which some are right and some wrong, beside each prompt alone and resident."""
    write = write_recurrent_target if recurrent else write_target
    path = write(tmp_path / "m", nearly_the_same)
    # The last of the three layers that EAGLE-3 sees is the model's last, so that it may be right.
    seen = [0, 1, 3] if recurrent else [0, 4, LAYERS]
    stated = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": seen}}
    heads = write_heads(tmp_path / "h", kind, says_what_the_model_says(kind, path), **stated)
    file = open_model(path)
    model = build_model(file, CONTEXT)
    resident, streamed = loaded(file, model, 16), loaded(file, model, 16, streamed=True)
    asked = prompts(VOCABULARY, *LENGTHS)
    blocks = tuple(20 if group.recurrent else 12 for group in model.groups)
    right = wrong = 0
    for p in (GREEDY, SAMPLED):
        plain = [answers(resident, [prompt], p, None)[0][0] for prompt in asked]
        guesser = opened(path, heads, parallel=16).load(VOCABULARY, None)
        guessed, engine = answers(streamed, asked, p, guesser, blocks=blocks)
        assert guessed == plain
        status = engine.status()
        assert status.preemptions > 0
        right += status.draft_tokens_kept
        wrong += status.draft_tokens - status.draft_tokens_kept
        engine.close()
    assert min(right, wrong) > 10
