"""KV managers that are compared under one budget: who chooses what."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np

import kv_lab
import kv_managers
from kv_managers import InfiniGen

ROWS, HEADS, KV_HEADS, DIM = 40, 4, 2, 8


def drawn(*shape: int, seed: int = 0) -> kv_lab.Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def attended(
    budget: int, guess: kv_lab.Floats | None, layer: int = 1
) -> tuple[kv_lab.Floats, float]:
    q, k = drawn(ROWS, HEADS, DIM), drawn(ROWS, KV_HEADS, DIM, seed=1)
    v = drawn(ROWS, KV_HEADS, DIM, seed=2)
    whole = np.broadcast_to(np.eye(DIM, dtype=np.float32), (KV_HEADS, DIM, DIM))
    method = InfiniGen(budget, {layer: whole}, lambda _: guess)
    return method.attend(layer, q, k, v, 1.0), method.bytes / method.whole


def test_infinigen_reads_the_keys_that_a_right_guess_finds_heaviest() -> None:
    q, k = drawn(ROWS, HEADS, DIM), drawn(ROWS, KV_HEADS, DIM, seed=1)
    out, read = attended(5, q)
    s = kv_lab.scores(q, k, 1.0).reshape(KV_HEADS, -1, ROWS, ROWS).max(axis=1)
    at, head = ROWS - 1, 1
    others = set(np.argsort(-s[head, at, :at])[:4])
    keep = np.zeros(ROWS, bool)
    keep[[*others, at]] = True
    w = kv_lab.softmax(kv_lab.scores(q, k, 1.0)[2, at], keep)
    right = w @ drawn(ROWS, KV_HEADS, DIM, seed=2)[:, head]
    np.testing.assert_allclose(out[at, 2], right, rtol=1e-5)
    kept = sum(min(i + 1, 5) for i in range(ROWS))
    assert read == kept / (ROWS * (ROWS + 1) / 2)


def test_infinigen_with_room_for_all_is_exact() -> None:
    exact, _ = attended(ROWS, None)
    for budget, guess in ((ROWS, drawn(ROWS, HEADS, DIM, seed=5)), (3, None)):
        out, read = attended(budget, guess)
        assert (out == exact).all()
        assert read == 1


def test_questions_stand_behind_the_text_with_their_answers() -> None:
    def encode(text: str) -> list[int]:
        return list(text.encode())

    ids, places = kv_managers.asked(encode, [0] * 2000, 1200, 3)
    assert 1150 < len(ids) <= 1200
    assert len(places) == len(kv_managers.NAMES)
    said = bytes(ids).decode()
    for place in places:
        question = said[: place.start].rsplit("\n\n", 1)[1]
        answer = said[place.start : place.stop]
        assert said.count(f"{question}{answer}") == 2
        assert said.index(f"{question}{answer}.") < place.start


def test_the_picture_has_every_manager() -> None:
    row = {"kl": 0.5, "recalled": 0.25, "read": 0.2}
    rows = {"paged, exact": row | {"kl": 0.0}, "a & b": row}
    said = kv_managers.picture({"model": "m", "rows": 9, "budget": 3, "managers": rows})
    texts = [each.text for each in ElementTree.fromstring(said).iter() if each.text]
    assert {"paged, exact", "a & b", "0.500", "25 %"} <= set(texts)
