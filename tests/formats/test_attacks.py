"""Every malformed file gives its one named error, in one line, without taking memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

import support.attacks_on_gguf
import support.attacks_on_huggingface  # noqa: F401
from strata.formats import FormatError, open_model
from support.attack import ATTACKS, Attack

# A header may be held twice while it is looked at; a sparse attack must not be read at all.
MEMORY = 8 << 20


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack_is_named(attack: Attack, tmp_path: Path) -> None:
    path = attack.build(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            open_model(path).close()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert type(caught.value) is attack.error
    message = str(caught.value)
    assert "\n" not in message
    assert message.isprintable()
    assert len(message) < 1000
    assert peak < MEMORY


def test_the_corpus_is_large() -> None:
    assert len(ATTACKS) >= 100
