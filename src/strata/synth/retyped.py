"""The header that a GGUF file would have under another quantisation's name."""

from __future__ import annotations

import re

from strata.formats import ModelFile
from strata.formats.header_only import HeaderOnly, with_types
from strata.models.keys import Keys
from strata.synth.recipes import Place, tensor_type

_LAYER = re.compile(r"blk\.(\d+)\.")


def retyped(file: ModelFile, architecture: str, recipe: str) -> HeaderOnly:
    """``file``, a GGUF file, its tensors in the formats that ``recipe`` gives them."""
    keys = Keys(file, architecture)
    layers = keys.integer("layers")
    heads = max(keys.integers("heads", layers, 1))
    kv_heads = max(keys.integers("kv_heads", layers, heads))
    types = {}
    for info in file.tensors.values():
        layer = _LAYER.match(info.name)
        place = Place(
            info.name,
            int(layer[1]) if layer else 0,
            layers,
            heads // max(kv_heads, 1),
            "output.weight" not in file.tensors,
            layers == 80 and architecture in ("llama", "qwen2"),
            keys.integer("experts", 0, low=0),
        )
        types[info.name] = tensor_type(recipe, place, info.shape)
    return with_types(file, types)
