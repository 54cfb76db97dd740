"""A mixture of each kind of router and of what stands beside it: streaming, steps and threads
change no bit of the logits. (That the company of other sequences does not is asked of every row in
test_variants.)"""

from __future__ import annotations

from pathlib import Path

import pytest

import make_tiny_variants as tiny
from strata.backends.cpu.backend import CpuBackend
from strata.formats import open_model
from support.forward import Forward
from support.streaming import faults, forward, least_ring, logits, settings, units

TOKENS = tiny.tokens()
ROUTERS = [
    "arctic",  # experts read the layer's input, beside a plain feed-forward
    "cohere2moe",  # sigmoid, averaged with shared experts
    "dots1",  # sigmoid with a bias on what is chosen, scaled
    "gpt-oss",  # a softmax of the chosen, biases
    "grok",  # a mean with a plain feed-forward
    "grovemoe",  # what experts give goes on through shared ones
    "olmoe",  # softmax, not renormalised
    "qwen2moe",  # a gate on what is shared
    "smallthinker",  # the router reads the layer's input
]


@pytest.mark.parametrize("name", ROUTERS)
def test_streamed_is_resident_in_any_steps(name: str, tmp_path: Path) -> None:
    keys = {"expert_feed_forward_length": 32}  # whole panels: others are kept in memory
    if name == "dots1":
        keys |= {"expert_group_count": 3, "expert_group_used_count": 2}
    with open_model(tiny.write(tmp_path / "m.gguf", name, **keys)) as file:
        names = units(file)
        assert any(n.endswith("experts") for n in names)
        want = Forward(file, backend=CpuBackend(threads=1)).logits(TOKENS)
        for threads in (2, 3, 4):
            run = Forward(file, backend=CpuBackend(threads=threads))
            assert run.logits(TOKENS, [13, 1, 10]).tobytes() == want.tobytes()
        for tile in (1, 1 << 20):
            how = settings(names, tile=tile, ring=max(least_ring(file, tile), 3 * tile))
            streamed = forward(file, how)
            with faults(delay_us=300, seed=tile):
                assert streamed.logits(TOKENS).tobytes() == want.tobytes()
                assert streamed.logits(TOKENS, [1, 7, 16]).tobytes() == want.tobytes()
        some = settings([n for n in names if n.endswith("experts")])
        assert logits(file, some, TOKENS).tobytes() == want.tobytes()
