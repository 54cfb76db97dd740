"""Heads that were trained to guess for a model (EAGLE's, Medusa's), random ones of the shapes of
the published files: no answer changes by them, and they compute what their papers say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from strata import LLM, SamplingParams
from strata.engine import draft_model, medusa
from strata.engine.draft_files import planned_bytes
from strata.engine.guesser import Guesser
from strata.engine.medusa import MedusaDraft, tree
from strata.engine.mtp import MtpDraft
from strata.errors import UsageError
from strata.formats import open_model
from strata.models import build_model
from support.guessing_runs import CONTEXT, answers, loaded, prompts
from support.head_files import (
    CHOSEN,
    EPS,
    KINDS,
    LAYERS,
    VOCABULARY,
    Arrays,
    always_the_same,
    chosen_tokens,
    opened,
    says_what_the_model_says,
    shapes,
    write_heads,
    write_target,
)

GREEDY = SamplingParams(max_tokens=16, logprobs=2, ignore_eos=True)
SAMPLED = replace(GREEDY, temperature=1.1, top_p=0.95, repetition_penalty=1.2, seed=9)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_change_no_answer(kind: str, tmp_path: Path) -> None:
    """Alone and together, greedy and sampled, where they are nearly always wrong, and prefixes are
    found again."""
    path = write_target(tmp_path / "m")
    file = open_model(path)
    target = loaded(file, build_model(file, CONTEXT), 3)
    heads = write_heads(tmp_path / "h", kind)
    asked = prompts(VOCABULARY, 150, 30, 2)
    for p in (GREEDY, SAMPLED):
        plain, _ = answers(target, asked, p, None)
        guesser = opened(path, heads).load(VOCABULARY, None)
        guessed, engine = answers(target, asked, p, guesser, turns=2, prefix_cache=True)
        assert guessed == plain * 2
        assert engine.status().draft_tokens > 40
        assert engine.status().prefix_hit_tokens > 0
        engine.close()


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_say_what_the_model_says_are_always_right(kind: str, tmp_path: Path) -> None:
    path = write_target(tmp_path / "m", always_the_same)
    file = open_model(path)
    target = loaded(file, build_model(file, CONTEXT), 3)
    heads = write_heads(tmp_path / "h", kind, says_what_the_model_says(kind, path))
    asked = prompts(VOCABULARY, 170, 70, 5)
    # Where logits are always the same penalties would change them, and so what comes next.
    for p in (replace(GREEDY, temperature=0.2, top_k=2, seed=1), GREEDY):
        plain, _ = answers(target, asked, p, None)
        guessed, engine = answers(target, asked, p, opened(path, heads).load(VOCABULARY, None))
        assert guessed == plain
        status = engine.status()
        # Of a tree one way is right; what follows the text's end is guessed by no head.
        assert status.draft_tokens_kept > 25
        assert status.sweeps < 24
        engine.close()


def rms(x: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    scale = np.sqrt(np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32) + np.float32(EPS))
    return np.asarray(x / scale * weight, np.float32)


def silu(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(x / (1 + np.exp(-x)), np.float32)


def turned(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rotary positions 0 .. on heads [rows, heads, 16], halves as Llama's directories have them."""
    angles = np.arange(len(x))[:, None, None] * 10000.0 ** (-np.arange(8) / 8)
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    a, b = x[..., :8], x[..., 8:]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class EagleOracle:
    """EAGLE's layer in float32, all rows at once, as its own code has it."""

    def __init__(self, kind: str, arrays: Arrays, table: NDArray[np.float32]) -> None:
        self.third = kind == "eagle3"
        self.w, self.table = arrays, table
        self.at = "midlayer." if self.third else "layers.0."

    def layer(self, tokens: Sequence[int], given: NDArray[np.float32]) -> NDArray[np.float32]:
        """What it gives for rows ``given``, each with the token behind it."""
        w = {name.removeprefix(self.at): array for name, array in self.w.items()}
        token = self.table[list(tokens)]
        if self.third:
            x = given
            both = rms(token, w["input_layernorm.weight"]), rms(given, w["hidden_norm.weight"])
            into = np.concatenate(both, axis=1)
        else:
            both = np.concatenate([token, given], axis=1)
            x = into = both @ w["fc.weight"].T + w["fc.bias"]
        q, k, v = (
            (into @ w[f"self_attn.{n}_proj.weight"].T).reshape(len(tokens), -1, 16) for n in "qkv"
        )
        k, v = (np.repeat(y, 2, axis=1) for y in (turned(k), v))
        scores = np.einsum("ihd,jhd->hij", turned(q), k) / 4
        scores += np.triu(np.full(scores.shape[1:], -np.inf), 1)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hij,jhd->ihd", weights, v).reshape(len(tokens), -1).astype(np.float32)
        x = x + mixed @ w["self_attn.o_proj.weight"].T
        h = rms(x, w["post_attention_layernorm.weight"])
        gated = silu(h @ w["mlp.gate_proj.weight"].T) * (h @ w["mlp.up_proj.weight"].T)
        return np.asarray(x + gated @ w["mlp.down_proj.weight"].T, np.float32)

    def logits(
        self,
        seen: NDArray[np.float32],
        text: Sequence[int],
        guesses: Sequence[int],
        norm: NDArray[np.float32],
        head: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Behind a text, of whose rows but for the last ``seen`` is what the model gave, and behind
        each of the ``guesses``."""
        given = seen @ self.w["fc.weight"].T if self.third else rms(seen, norm)
        tokens, found = list(text[1:]), []
        for guess in (*guesses, None):
            x = self.layer(tokens, given)[-1:]
            if self.third:
                narrow = rms(x, self.w["norm.weight"]) @ self.w["lm_head.weight"].T
                wide = np.full(VOCABULARY, -np.inf, np.float32)
                wide[chosen_tokens()] = narrow[0]
                found.append(wide)
            else:
                found.append((x @ head.T)[0])
            if guess is not None:
                tokens.append(guess)
                given = np.concatenate([given, x])
        return np.array(found)


def read(path: Path, *names: str) -> list[NDArray[np.float32]]:
    with open_model(path) as file:
        return [file.read(n).view(np.float32).reshape(file.tensors[n].shape).copy() for n in names]


class Watched:
    """Notes the logits that guesses are chosen from, and what the guesser was asked and said."""

    def __init__(self, guesser: Guesser, monkeypatch: pytest.MonkeyPatch) -> None:
        self.logits: list[NDArray[np.float32]] = []
        self.said: list[tuple[list[int], tuple[int, ...], list[NDArray[np.float32]]]] = []
        self.rows: dict[int, NDArray[np.float32]] = {}
        plain = draft_model.widened

        def noted(*given: Any) -> NDArray[np.float32]:
            self.logits.append(plain(*given))
            return self.logits[-1].copy()

        for module in (draft_model, medusa):
            monkeypatch.setattr(module, "widened", noted)
        propose, observe = guesser.propose, guesser.observe_step

        def observed(advances: Any, chosen: Any, rows: NDArray[np.float32]) -> None:
            for a in advances:
                if len(advances) == 1 and not a.draft.tokens:
                    before = self.rows.get(a.id, rows[:0])[: a.past]
                    self.rows[a.id] = np.concatenate([before, rows])
            observe(advances, chosen, rows)

        def proposed(
            texts: Mapping[int, Sequence[int]], most: Mapping[int, int], others: float = 1.0
        ) -> dict[int, Any]:
            self.logits.clear()
            drafts = propose(texts, most, others)
            for id, draft in drafts.items():
                self.said.append((list(texts[id]), draft.tokens, list(self.logits)))
            # Guesses would be computed beside what is looked at here.
            return {}

        monkeypatch.setattr(guesser, "propose", proposed)
        monkeypatch.setattr(guesser, "observe_step", observed)


@pytest.mark.parametrize("kind", KINDS)
def test_they_compute_what_their_papers_say(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, heads = write_target(tmp_path / "m"), write_heads(tmp_path / "h", kind)
    file = open_model(path)
    target = loaded(file, build_model(file, CONTEXT), 1)
    guesser = opened(path, heads, parallel=1).load(VOCABULARY, None)
    watched = Watched(guesser, monkeypatch)
    p = replace(GREEDY, max_tokens=6)
    monkeypatch.setattr(guesser, "_least", 0.0)
    asked = prompts(VOCABULARY, 90)
    out, engine = answers(target, asked, p, guesser)
    text = [*asked[0], *(sample.token for sample in out[0])]
    # What it is shown are the inputs of layers 2, 4 and 5 of 8, to the bit, or the last output.
    given: list[NDArray[np.float32]] = []
    engine.visit_logits(text, 0, lambda _: None, lambda _, x: given.append(x["x"]))
    wanted = (2, LAYERS // 2, LAYERS - 3) if kind == "eagle3" else (LAYERS,)
    each = LAYERS + 1
    shown = np.concatenate([np.concatenate(given[n::each]) for n in wanted], axis=1)
    (rows,) = watched.rows.values()
    assert np.array_equal(rows, shown[: len(rows)])
    norm, head, table = read(
        path, "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"
    )
    arrays: Arrays = dict(
        zip(
            shapes(kind), read(next(heads.glob("*.safetensors")).parent, *shapes(kind)), strict=True
        )
    )
    assert len(watched.said) == 4
    for asked_text, tokens, logits in watched.said:
        count = len(asked_text) - 1
        if "eagle" in kind:
            oracle = EagleOracle(kind, arrays, arrays.get("embed_tokens.weight", table))
            expected = oracle.logits(rows[:count], asked_text, tokens[:-1], norm, head)
        else:
            x = rms(rows[count - 1], norm)
            expected = np.array(
                [medusa_logits(kind, arrays, n, x, head) for n in range(len(logits))]
            )
        # Of EAGLE keys and values are kept in float16, of which half a unit is 2**-12 of what is
        # of size one; what else differs is the order of sums.
        allowed = 2**-9 if "eagle" in kind else 2**-16
        found = np.array(logits)[: len(expected)]
        assert len(found) == len(expected) > 0
        finite = np.isfinite(expected)
        assert np.array_equal(finite, np.isfinite(found))
        assert np.abs(found[finite] - expected[finite]).max() < allowed
    engine.close()


def medusa_logits(
    kind: str, w: Arrays, number: int, x: NDArray[np.float32], head: NDArray[np.float32]
) -> NDArray[np.float32]:
    for layer in range(2):
        block = f"blocks.{number}.layers.{layer}"
        if f"{block}.weight" not in w:
            block = f"{number}.{layer}.linear"
        x = x + silu(w[f"{block}.weight"] @ x + w.get(f"{block}.bias", np.float32(0)))
    own = {"medusa": f"{number}.2.weight", "blocks": f"lm_heads.{number}.weight"}.get(kind)
    return np.asarray((head if own is None else w[own]) @ x, np.float32)


def test_a_tree_has_the_likeliest_ways() -> None:
    """Against all ways through what three heads choose."""
    random = np.random.default_rng(1)
    choices = []
    for depth in range(3):
        chances = np.sort(random.dirichlet([0.5] * 4))[::-1]
        choices.append([(10 * depth + way, float(c)) for way, c in enumerate(chances)])
    others = 0.04
    made = tree(choices, 0.05, others)
    wanted = set()
    for depth in (1, 2, 3):
        for ways in product(range(4), repeat=depth):
            likely = [
                np.prod([choices[d][w][1] for d, w in enumerate(ways[:n])])
                for n in range(1, depth + 1)
            ]
            straight = not any(ways)
            least = 0.05
            if all(
                x >= least if not any(ways[: n + 1]) else x > max(least, others)
                for n, x in enumerate(likely)
            ):
                wanted.add(tuple(10 * d + w for d, w in enumerate(ways)))
            del straight
    found = set()
    for number in range(len(made.tokens)):
        way, at = [], number
        while at >= 0:
            way.append(made.tokens[at])
            at = made.parent(at)
        found.add(tuple(reversed(way)))
    assert found == wanted
    assert len(wanted) > 4


@pytest.mark.parametrize("kind", ["eagle3", "medusa"])
@pytest.mark.parametrize("planned", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_they_are_in_the_ledger_and_in_the_plan(kind: str, planned: bool, tmp_path: Path) -> None:
    path = write_target(tmp_path / "m", always_the_same)
    heads = write_heads(tmp_path / "h", kind, says_what_the_model_says(kind, path))
    prompt, p = prompts(250, 40)[0], replace(GREEDY, max_tokens=12)
    with LLM(path, context=128, draft="off") as llm:
        plain = llm.generate(prompt, p)
    with LLM(path, context=128, draft_model=str(heads), planned=planned) as llm:
        with open_model(heads) as file, open_model(path) as target:
            nbytes = planned_bytes(file, target, 128, llm.engine.parallel, 2)
        assert nbytes > 2**17
        assert llm.ledger.owned["drafts"] >= nbytes
        assert llm.plan is None or llm.plan.predicted.memory.drafts >= nbytes
        drafting = llm.engine.drafting
        assert drafting is not None
        drafting.costs = None
        said = llm.generate(prompt, p)
        assert (said.token_ids, said.logprobs) == (plain.token_ids, plain.logprobs)
        assert llm.engine.status().draft_tokens_kept > 5
        llm.engine.check_integrity()
        llm.runtime.check_integrity()


def without(name: str) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__delitem__(name)


def with_one(name: str, array: NDArray[Any]) -> Callable[[Arrays], None]:
    return lambda arrays: arrays.__setitem__(name, array)


ZEROS = np.zeros
REFUSED: list[tuple[str, Callable[[Arrays], None] | None, dict[str, object], str]] = [
    ("eagle3", without("midlayer.hidden_norm.weight"), {}, "has no tensor 'layers.0.input_layern"),
    (
        "eagle3",
        with_one("norm.weight", ZEROS(63, np.float32)),
        {},
        r"'norm.weight' has shape \[63\]",
    ),
    ("eagle3", None, {"vocab_size": 300}, "it has 300 tokens and not 272"),
    ("eagle3", None, {"hidden_size": 128}, "it is 128 wide and not 64"),
    ("eagle3", None, {"num_hidden_layers": 2}, "it has 2 layers and not one"),
    ("eagle3", with_one("t2d", ZEROS(300, bool)), {}, r"'t2d' is of \[300\] tokens and not of 272"),
    ("eagle3", with_one("d2t", np.full(CHOSEN, 200)), {}, "'d2t' does not name 100 of 272 tokens"),
    ("eagle3", with_one("d2t", ZEROS(CHOSEN, np.int32)), {}, r"'d2t' is no list of 100 whole"),
    ("eagle3", with_one("d2t", ZEROS((2, 3), np.int64)), {}, r"'d2t' has shape \[2, 3\]"),
    ("eagle3", with_one("more", ZEROS(3, np.float32)), {}, "its tensor 'more' is not known"),
    (
        "eagle3",
        None,
        {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 9, 70]}},
        r"inputs of layers \[1, 9, 70\] of 8",
    ),
    ("medusa", without("1.2.weight"), {}, ""),
    ("medusa", with_one("2.2.weight", ZEROS((271, 64), np.float32)), {}, r"'2.2.weight' has shape"),
    (
        "blocks",
        with_one("token_map", ZEROS(9, np.int64)),
        {},
        "its tensor 'token_map' is not known",
    ),
    (
        "blocks",
        with_one("blocks.1.layers.1.weight", ZEROS((64, 64), np.int32)),
        {},
        "whole numbers",
    ),
]


@pytest.mark.parametrize(("kind", "change", "config", "why"), [r for r in REFUSED if r[3]])
def test_what_does_not_fit_is_refused_by_name(
    kind: str,
    change: Callable[[Arrays], None] | None,
    config: dict[str, object],
    why: str,
    tmp_path: Path,
) -> None:
    heads = write_heads(tmp_path / "h", kind, change, **config)
    with pytest.raises(UsageError, match=f"h cannot guess for m: .*{why}|h: {why}"):
        opened(write_target(tmp_path / "m"), heads)


def test_they_are_what_their_files_say(tmp_path: Path) -> None:
    path = write_target(tmp_path / "m")
    for kind in KINDS:
        made = opened(path, write_heads(tmp_path / kind, kind))
        guesser = made.load(VOCABULARY, None)
        assert isinstance(guesser, MtpDraft if "eagle" in kind else MedusaDraft)
        # EAGLE knows as many positions as it was trained for.
        assert made.model.context_length == (200 if "eagle" in kind else CONTEXT)
        guesser.close()
