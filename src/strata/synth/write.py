"""Writes synthetic models: a GGUF file, or a Hugging Face directory in bf16."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from strata.errors import UsageError
from strata.formats.gguf_writer import write_gguf
from strata.formats.safetensors_writer import write_safetensors
from strata.formats.writing import TensorSource, Written, check_room
from strata.synth.outline import (
    SynthTensor,
    config_json,
    gguf_metadata,
    gguf_tensors,
    huggingface_tensors,
    known_recipe,
)
from strata.synth.pools import Pools
from strata.synth.routing import Routing, RoutingName
from strata.synth.shape import Shape
from strata.synth.vocabulary import SizedVocabulary

Progress = Callable[[str, int, int | None], None]
"""``progress(label, bytes_done, bytes_total)``."""

# What the hub's own tools cut checkpoints into.
_SHARD_BYTES = 5 * 10**9


def write_model(
    shape: Shape,
    out: Path,
    *,
    recipe: str | None,
    tokenizer: Mapping[str, Any],
    seed: int = 0,
    routing: RoutingName | None = None,
    progress: Progress | None = None,
    keep_partial: bool = False,
) -> int:
    """Write a model of random weights and return the bytes of its tensors.

    ``recipe`` names the quantisation of a GGUF file ``out``; with None ``out`` is a new or empty
    directory that gets the files of a Hugging Face model in bf16. ``tokenizer`` is the GGUF
    metadata of a model with a byte-level BPE tokenizer. ``routing``, for the experts of a GGUF
    file, is described in ``synth.routing``. The same arguments give the same bytes. Nothing
    half-written stays, unless ``keep_partial``. Raises DiskFullError before
    the first byte if the disk has no room, WriteError, or UsageError for a path that is taken.
    """
    if recipe is None and routing is not None:
        raise UsageError("--routing is for GGUF files")
    pools = Pools(seed, None if routing is None else Routing(shape, routing, seed))
    vocabulary = SizedVocabulary(tokenizer, shape.vocab)
    if recipe is None:
        tensors = huggingface_tensors(shape)
    else:
        recipe = known_recipe(recipe)
        tensors = gguf_tensors(shape, recipe)
    total = sum(t.type.tensor_nbytes(t.shape) for t in tensors)
    written = _counter(out.name, total, progress)
    sources = [_source(pools, tensor) for tensor in tensors]
    if recipe is None:
        _write_directory(shape, vocabulary, sources, out, written, keep_partial)
    else:
        metadata = {**gguf_metadata(shape, recipe), **vocabulary.gguf()}
        write_gguf(out, metadata, sources, written=written, keep_partial=keep_partial)
    return total


def _source(pools: Pools, tensor: SynthTensor) -> TensorSource:
    return TensorSource(tensor.name, tensor.shape, tensor.type, partial(pools.chunks, tensor))


def _counter(label: str, total: int, progress: Progress | None) -> Written:
    done = 0

    def written(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(label, done, total)

    return written


def _write_directory(
    shape: Shape,
    vocabulary: SizedVocabulary,
    sources: list[TensorSource],
    out: Path,
    written: Written,
    keep_partial: bool,
) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is there already; give the name of a new directory")
    total = sum(source.nbytes for source in sources)
    check_room(out.parent, total, str(out))
    created = not out.exists()
    out.mkdir(exist_ok=True)
    done: list[Path] = []
    try:
        for name, value in {
            "config.json": config_json(shape),
            "generation_config.json": {"bos_token_id": 1, "eos_token_id": 2},
            "tokenizer.json": vocabulary.tokenizer_json(),
            "tokenizer_config.json": vocabulary.tokenizer_config(),
        }.items():
            done.append(out / name)
            (out / name).write_text(json.dumps(value), encoding="utf-8")
        shards = _shards(sources)
        names = _shard_names(len(shards))
        for name, shard in zip(names, shards, strict=True):
            done.append(out / name)
            write_safetensors(out / name, shard, written=written, keep_partial=keep_partial)
        if len(shards) > 1:
            done.append(out / "model.safetensors.index.json")
            done[-1].write_text(json.dumps(_index(names, shards, total)), encoding="utf-8")
    except BaseException:
        if not keep_partial:
            for path in done:
                path.unlink(missing_ok=True)
            if created:
                with suppress(OSError):
                    out.rmdir()
        raise


def _shards(sources: list[TensorSource]) -> list[list[TensorSource]]:
    shards: list[list[TensorSource]] = [[]]
    size = 0
    for source in sources:
        if shards[-1] and size + source.nbytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(source)
        size += source.nbytes
    return shards


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _index(names: list[str], shards: list[list[TensorSource]], total: int) -> dict[str, Any]:
    return {
        "metadata": {"total_size": total},
        "weight_map": {
            source.name: name for name, shard in zip(names, shards, strict=True) for source in shard
        },
    }
