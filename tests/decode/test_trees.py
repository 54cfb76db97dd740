"""Trees of guesses leave the distribution of sampled answers as it is: and each answer, too."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import product

import numpy as np
import pytest

from strata.decode import Draft, Sampler, SamplingParams
from strata.decode.sampling import log_softmax

VOCABULARY = 5
LENGTH = 2
TRIALS = 1500

Path = tuple[int, ...]


@cache
def logits_after(path: Path) -> np.ndarray:
    """What a model says that looks at all tokens before."""
    seed = sum((token + 1) * 7**place for place, token in enumerate(path))
    return np.random.default_rng(seed).normal(0, 1.5, VOCABULARY).astype(np.float32)


def random_tree(random: np.random.Generator) -> Draft:
    """Up to nine tokens behind each other, no two of the same after one."""
    tokens, parents = list[int](), list[int]()
    for _ in range(int(random.integers(0, 10))):
        parent, token = int(random.integers(-1, len(tokens))), int(random.integers(VOCABULARY))
        if (parent, token) not in zip(parents, tokens, strict=True):
            tokens.append(token)
            parents.append(parent)
    return Draft(tuple(tokens), tuple(parents))


def path_to(draft: Draft, number: int) -> Path:
    return () if number < 0 else (*path_to(draft, draft.parent(number)), draft.tokens[number])


def sampled(params: SamplingParams, random: np.random.Generator | None) -> tuple[Path, int]:
    """The first tokens of an answer, and in how many steps: with trees, or one by one."""
    sampler, said, steps = Sampler(params, [0], VOCABULARY), tuple[int, ...](), 0
    while len(said) < LENGTH:
        draft = Draft() if random is None else random_tree(random)
        before = said
        rows = (logits_after((*before, *path_to(draft, n))) for n in range(-1, len(draft.tokens)))
        for sample in sampler.verify(rows, draft):
            sampler.accept(sample.token)
            said = (*said, sample.token)
        steps += 1
    return said[:LENGTH], steps


@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_sampled_trees_have_the_distribution_of_the_model(temperature: float) -> None:
    random = np.random.default_rng(2)
    counts, saved = Counter[Path](), 0
    for seed in range(TRIALS):
        params = SamplingParams(temperature=temperature, seed=seed)
        said, steps = sampled(params, random)
        counts[said] += 1
        saved += LENGTH - min(steps, LENGTH)
        if seed % 10 == 0:
            assert said == sampled(params, None)[0]
    assert saved > TRIALS / 10
    squares, cells, rest, others = 0.0, 0, 0.0, 0
    for path in product(range(VOCABULARY), repeat=LENGTH):
        chance = np.prod(
            [
                np.exp(log_softmax(logits_after(path[:n]) / np.float32(temperature)))[token]
                for n, token in enumerate(path)
            ]
        )
        if chance * TRIALS < 5:
            # Too seldom for a cell of its own.
            rest, others = rest + chance * TRIALS, others + counts[path]
            continue
        squares += (counts[path] - chance * TRIALS) ** 2 / (chance * TRIALS)
        cells += 1
    squares += (others - rest) ** 2 / rest
    # Chi-square of so many degrees of freedom: its mean, and five times its deviation.
    assert squares < cells + 5 * np.sqrt(2 * cells)
