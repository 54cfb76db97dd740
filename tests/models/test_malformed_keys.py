"""Every key of every architecture that has a tiny file: what no model has in its place is a named
error of one line, or is not read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_hybrids
import make_tiny_variants
from strata.errors import StrataError
from strata.formats import TensorInfo
from strata.formats.header_only import HeaderOnly
from strata.models import build_model
from strata.models.variants import GGUF
from strata.quant import by_name

HOSTILE: list[Any] = [
    *("x", "", True, -1, 0, 3, 2**40, 2**64 - 1, -0.5, 1e30, float("nan"), float("inf")),
    *([], [1], [0, 0], [-1, 2], ["x", "y"], [float("nan")] * 2, [2**40] * 4, [True] * 9),
]
WRONG: list[Any] = ["x", "", float("inf"), ["x", "y"]]
# A family of each kind in the usual tests, all of them in long ones.
USUAL = {"apertus", "cohere2moe", "deci", "dots1", "grok", "lfm2moe", "qwen35moe"}


def header(name: str) -> tuple[dict[str, Any], Mapping[str, tuple[int, ...]]]:
    """The metadata and the shapes of an architecture's tiny file."""
    if name not in GGUF:
        return make_tiny_hybrids.metadata(name), make_tiny_hybrids.shapes(name)
    keys = make_tiny_variants.metadata(name)
    arrays = make_tiny_variants.arrays(name, keys, make_tiny_variants.unread(name))
    return keys, {key: array.shape for key, array in arrays.items()}


def attacked(name: str) -> list[tuple[str, Any, Callable[[], Any]]]:
    """Each change of one key, and what builds the Model of such a file."""
    keys, shapes = header(name)
    f32, path = by_name("F32"), Path("x")
    tensors = {
        n: TensorInfo(n, tuple(s), f32, path, 0, 4 * int(np.prod(s))) for n, s in shapes.items()
    }
    own = [key for key in keys if not key.startswith(("general.", "tokenizer."))]
    return [
        (key, value, lambda changed=keys | {key: value}: build_model(_file(path, changed, tensors)))
        for key in own
        for value in HOSTILE
    ]


def message(build: Callable[[], Any]) -> str:
    """What a build is refused with, empty where it is not."""
    try:
        build()
    except StrataError as error:
        return str(error)
    return ""


def _file(path: Path, keys: dict[str, Any], tensors: dict[str, TensorInfo]) -> Any:
    return HeaderOnly("gguf", path, keys, tensors)


@pytest.mark.parametrize(
    "name",
    [
        name if name in USUAL else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted({*make_tiny_variants.names(), *make_tiny_hybrids.names()})
    ],
)
def test_what_no_model_has_is_named_or_not_read(name: str) -> None:
    told = [(key, value, message(build)) for key, value, build in attacked(name)]
    refused = [(key, value, text) for key, value, text in told if text]
    assert len(refused) > 50
    for key, value, text in refused:
        assert "\n" not in text, (key, value)
        assert len(text) < 1000, (key, value)
        # Other values are numbers that another key may not fit.
        if value in WRONG:
            assert key in text or repr(value) in text, (value, text)
