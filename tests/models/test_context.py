"""A Model for fewer positions is the one that would have been built for them."""

from __future__ import annotations

from typing import Any

import pytest

import make_tiny_models
from strata.models import build_model, trained_context, with_context
from support.headers import gguf, huggingface

FACTORS = ("phi3_long", "phi3_short")
HEADERS = {
    f"{name}-{kind.__name__}": (kind, name)
    for kind in (gguf, huggingface)
    for name in make_tiny_models.names()
    if kind is huggingface or make_tiny_models.golden(name).architecture is not None
}


@pytest.mark.parametrize("header", HEADERS)
def test_a_shorter_model_is_the_one_built_so(header: str) -> None:
    kind, name = HEADERS[header]
    file: Any = kind(name)
    most = trained_context(file)
    built = build_model(file)
    assert built.context_length == most
    for context in (most - 1, 17, 16, 1):
        short = with_context(file, built, context)
        assert short == build_model(file, context)
        # Nothing is made again, but where the context decides about factors.
        assert (short.segments is built.segments) == (name not in FACTORS)
