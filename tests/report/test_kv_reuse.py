"""Pieces of prompts reused at other places, as ``bench/kv_reuse.py`` puts them together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import kv_lab
from kv_lab import Lab, Method
from kv_reuse import Piece, Reused, Way

TEXT = Path(__file__).parents[2] / "ARCHITECTURE.md"


@pytest.fixture(scope="module")
def lab(smollm2_path: Path) -> Lab:
    return Lab(smollm2_path, TEXT.read_text(encoding="utf-8")[2000:4000], 96)


@pytest.mark.parametrize("again", [0, 3, 12])
def test_rows_see_what_was_kept_of_a_piece_and_what_is_computed_again(again: int) -> None:
    draw = np.random.default_rng(0).standard_normal
    q, k, v = (draw((40, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    watched = kv_lab.Watch()
    watched.k, watched.v = ({5: draw((20, 2, 8)).astype(np.float32)} for _ in range(2))
    way = Way(behind=True, turned=False, again=again)
    reused = Reused(None, [Piece(16, 12, watched, 4)], way)  # type: ignore[arg-type]
    k2, v2 = k.copy(), v.copy()
    k2[16 + again : 28], v2[16 + again : 28] = (
        x[5][4 + again : 16] for x in (watched.k, watched.v)
    )
    wanted = Method().attend(5, q, k2, v2, 0.5)
    assert reused.attend(5, q, k, v, 0.5).tobytes() == wanted.tobytes()


@pytest.mark.slow
def test_keys_of_the_first_layer_are_those_of_the_new_place(lab: Lab) -> None:
    """Which know of their token and place alone."""
    whole, alone = kv_lab.Watch(), kv_lab.Watch()
    lab.logits(whole, lab.tokens[:32])
    lab.logits(alone, lab.tokens[20:32])
    turned = kv_lab.turned(lab, alone.k[0], np.full(12, 20, np.float32))
    np.testing.assert_allclose(turned, whole.k[0][20:], atol=2e-4)
    assert np.abs(alone.k[0] - whole.k[0][20:]).max() > 0.1
