"""Every key and every tensor of every architecture that has a tiny file or directory: what no model
has in its place is a named error of one line, or is not read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import make_tiny_directories
import make_tiny_hybrids
import make_tiny_variants
from strata.errors import StrataError
from strata.formats import TensorInfo
from strata.formats.header_only import HeaderOnly
from strata.models import build_model
from strata.models.variants import GGUF
from strata.quant import by_name
from support import latent_models, special_models

HOSTILE: list[Any] = [
    *("x", "", True, -1, 0, 3, 2**40, 2**64 - 1, -0.5, 1e30, float("nan"), float("inf")),
    *([], [1], [0, 0], [-1, 2], ["x", "y"], [float("nan")] * 2, [2**40] * 4, [True] * 9),
]
WRONG: list[Any] = ["x", "", float("inf"), ["x", "y"]]
# A family of each kind in the usual tests, all of them in long ones.
USUAL = {"apertus", "cohere2moe", "deci", "dots1", "grok", "lfm2moe", "qwen35moe"}


Shapes = Mapping[str, tuple[int, ...]]
FAMILIES = {
    "gguf": sorted({*make_tiny_variants.names(), *make_tiny_hybrids.names()}),
    "special": sorted(special_models.SPECIAL),
    "latent": ["deepseek2"],
    "directory": sorted(make_tiny_directories.CONFIGS),
}


def header(kind: str, name: str) -> tuple[dict[str, Any], Shapes]:
    """The metadata and the shapes of an architecture's tiny file."""
    if kind == "special":
        return special_models.keys(name), special_models.shapes(name)
    if kind == "latent":
        made = latent_models.weights(absorbed=True)
        keys = {f"{name}.{key}": value for key, value in latent_models.KEYS.items()}
        shapes = {f"{key}.weight": array.shape for key, array in made.items()}
        return {"general.architecture": name, **keys}, shapes
    if kind == "directory":
        stated = make_tiny_directories.config(name)
        return stated, make_tiny_directories.shapes(stated)
    if name not in GGUF:
        return make_tiny_hybrids.metadata(name), make_tiny_hybrids.shapes(name)
    keys = make_tiny_variants.metadata(name)
    arrays = make_tiny_variants.arrays(name, keys, make_tiny_variants.unread(name))
    return keys, {key: array.shape for key, array in arrays.items()}


def described(shapes: Shapes) -> dict[str, TensorInfo]:
    f32, path = by_name("F32"), Path("x")
    return {
        n: TensorInfo(n, tuple(s), f32, path, 0, 4 * int(np.prod(s))) for n, s in shapes.items()
    }


def attacked(kind: str, name: str) -> list[tuple[str, Any, Callable[[], Any]]]:
    """Each change of one key, and what builds the Model of such a file."""
    keys, shapes = header(kind, name)
    tensors = described(shapes)
    said = ("general.", "tokenizer.", "architectures", "model_type", "_name", "transformers_")
    own = [key for key in keys if not key.startswith(said)]
    return [
        (key, value, lambda changed=keys | {key: value}: _build(kind, changed, tensors))
        for key in own
        for value in HOSTILE
    ]


def _build(kind: str, keys: dict[str, Any], tensors: Mapping[str, TensorInfo]) -> Any:
    of = "huggingface" if kind == "directory" else "gguf"
    return build_model(HeaderOnly(of, Path("x"), keys, dict(tensors)))


def message(build: Callable[[], Any]) -> str:
    """What a build is refused with, empty where it is not."""
    try:
        build()
    except StrataError as error:
        return str(error)
    return ""


CASES = [
    pytest.param(kind, name, marks=() if name in USUAL and kind == "gguf" else pytest.mark.slow)
    for kind, names in FAMILIES.items()
    for name in names
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_what_no_model_has_is_named_or_not_read(kind: str, name: str) -> None:
    told = [(key, value, message(build)) for key, value, build in attacked(kind, name)]
    refused = [(key, value, text) for key, value, text in told if text]
    assert len(refused) > 50
    for key, value, text in refused:
        assert "\n" not in text, (key, value)
        assert len(text) < 1000, (key, value)
        # Other values are numbers that another key may not fit. What config.json says in other ways
        # (objects, patterns) is told by what follows from it.
        if value in WRONG and kind != "directory":
            assert key in text or repr(value) in text, (value, text)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in FAMILIES.items() for n in names])
def test_tensors_that_no_model_has_are_named(kind: str, name: str) -> None:
    keys, shapes = header(kind, name)
    tensors = described(shapes)
    _build(kind, keys, tensors)
    refused = 0
    for at, info in tensors.items():
        rest = {key: value for key, value in tensors.items() if key != at}
        missing = message(lambda rest=rest: _build(kind, keys, rest))
        assert "\n" not in missing, at
        assert len(missing) < 1000, at
        shape = info.shape
        for wrong in ((shape[0] + 1, *shape[1:]), (1, *shape), shape[:-1], (0, *shape[1:])):
            changed = {**tensors, at: replace(info, shape=wrong)}
            text = message(lambda changed=changed: _build(kind, keys, changed))
            assert "\n" not in text, (at, wrong)
            assert len(text) < 1000, (at, wrong)
            refused += bool(text)
            if text:
                assert at in text or str(list(wrong)) in text or "tensor" in text, (at, text)
        extra = {**tensors, f"{at}.other": info}
        # Beside what is not read nothing else is.
        assert message(lambda extra=extra: _build(kind, keys, extra)) or not missing, at
    assert refused > len(tensors)
