"""A Hugging Face directory as the GGUF file that it would be: names, order of rows, and metadata.

The Model that the directory gives says which weights there are, under GGUF's names already; what
GGUF calls a family and its hyperparameters is tried, and the Model of that header has to be the
same, Op by Op. Where files of the two kinds pair rotated dimensions differently, rows of q and k
are put in the other order, as llama.cpp's converter does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from strata.backends.weights import WeightSource
from strata.errors import UsageError
from strata.formats import ModelFile, TensorInfo
from strata.formats.header_only import Blank, HeaderOnly
from strata.models import ModelError, build_model, wanted_tensors
from strata.models.keys import Keys, architecture, mapped_keys
from strata.models.rope import gguf_factors, gguf_scaling
from strata.program import Model, Segment, Weight
from strata.program.ops import Op
from strata.quant import BlockType, by_name, dequantize
from strata.quantizer.mixes import is_quantised
from strata.quantizer.presented import Presented, Raw
from strata.quantizer.vocabularies import plain, vocabulary_keys
from strata.records import dataclass

# `architectures` of config.json -> GGUF's architecture, where the same layers have both.
ARCHITECTURES: Mapping[str, str] = {
    **dict.fromkeys(
        ("LlamaForCausalLM", "LLaMAForCausalLM", "YiForCausalLM", "AquilaForCausalLM"), "llama"
    ),
    "MistralForCausalLM": "llama",
    "MixtralForCausalLM": "llama",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen2MoeForCausalLM": "qwen2moe",
    "Qwen3ForCausalLM": "qwen3",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
    "Gemma3ForConditionalGeneration": "gemma3",
    "Phi3ForCausalLM": "phi3",
    "Olmo2ForCausalLM": "olmo2",
    "Olmo3ForCausalLM": "olmo2",
    "OlmoeForCausalLM": "olmoe",
    "GraniteForCausalLM": "granite",
    "GPT2LMHeadModel": "gpt2",
    "ArceeForCausalLM": "arcee",
    "CohereForCausalLM": "command-r",
    "Cohere2ForCausalLM": "cohere2",
    "Ernie4_5ForCausalLM": "ernie4_5",
    "ExaoneForCausalLM": "exaone",
    "Exaone4ForCausalLM": "exaone4",
    "Glm4ForCausalLM": "glm4",
    "NemotronForCausalLM": "nemotron",
    "OlmoForCausalLM": "olmo",
    "PhiForCausalLM": "phi2",
    "SmolLM3ForCausalLM": "smollm3",
    "StableLmForCausalLM": "stablelm",
    "Starcoder2ForCausalLM": "starcoder2",
    "MambaForCausalLM": "mamba",
    "Mamba2ForCausalLM": "mamba2",
    "JambaForCausalLM": "jamba",
    "Lfm2ForCausalLM": "lfm2",
}
# Frequencies that differ by less are the same: GGUF has the factors in float32.
_CLOSE = 1e-5
_PLAIN = by_name("F32")


class Unconvertible(UsageError):
    """A directory of which no GGUF file can be made here."""


@dataclass(frozen=True)
class _Origin:
    """Where a tensor comes from: weights of the directory, one below the other, or numbers.
    ``pairs`` are rotated dimensions of ``head`` rows each that come to lie side by side."""

    parts: tuple[Weight, ...] = ()
    head: int = 0
    pairs: int = 0
    numbers: NDArray[np.float32] | None = None


class Converted(Presented):
    """A directory, read as a GGUF file would be."""

    def __init__(
        self,
        file: ModelFile,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        origins: Mapping[str, _Origin],
    ) -> None:
        super().__init__(file, plain(metadata), metadata, tensors)
        self._weights = WeightSource(file)
        self._origins = origins
        self._last: tuple[str, Raw] | None = None

    def matrix_rows(self, name: str, first: int, last: int) -> Raw:
        """Bytes of these rows of the matrix that all axes but the last make."""
        info, origin = self._info(name), self._origins[name]
        if origin.numbers is not None:
            return origin.numbers.view(np.uint8)
        if len(info.shape) == 1:
            return self._vector(origin, info)
        made: list[Raw] = []
        stacked = len(info.shape) == 3
        each = info.shape[-2] if stacked else prod(info.shape[:-1])
        while first < last:
            expert = first // each if stacked else 0
            end = min(last, (expert + 1) * each)
            made += self._parts(origin, info, expert, first - expert * each, end - expert * each)
            first = end
        return made[0] if len(made) == 1 else np.concatenate(made)

    def _vector(self, origin: _Origin, info: TensorInfo) -> Raw:
        values = np.concatenate([self._weights.floats(part) for part in origin.parts])
        if origin.pairs:
            values = values[_paired(len(values), origin.head, origin.pairs)]
        out: Raw = np.ascontiguousarray(values.reshape(info.shape), np.float32).view(np.uint8)
        return out.reshape(-1)

    def _parts(
        self, origin: _Origin, info: TensorInfo, expert: int, first: int, last: int
    ) -> Iterator[Raw]:
        """Rows of one matrix, from the parts that it is made of."""
        begin = 0
        for part in origin.parts:
            rows = part.shape[-2]
            a, b = max(first - begin, 0), min(last - begin, rows)
            begin += rows
            if a >= b:
                continue
            if origin.pairs:
                # Whole heads are read, and put in their order.
                low, high = a // origin.head * origin.head, -(-b // origin.head) * origin.head
                order = _paired(high - low, origin.head, origin.pairs)[a - low : b - low]
                heads = self._rows(part, expert, low, high).reshape(high - low, -1)
                raw = np.ascontiguousarray(heads[order]).reshape(-1)
            else:
                raw = self._rows(part, expert, a, b)
            stored = self._weights.type(part)
            if stored is not info.type:
                shape = (b - a, part.shape[-1])
                raw = np.ascontiguousarray(dequantize(stored, raw, shape)).view(np.uint8)
            yield raw.reshape(-1)

    def _rows(self, part: Weight, expert: int, first: int, last: int) -> Raw:
        row = self._weights.type(part).tensor_nbytes((part.shape[-1],))
        if _is_held(part):
            key = f"{part.name} {part.source} {expert}"
            held = self._last
            if held is None or held[0] != key:
                self._last = None
                # Another thread may put another in its place.
                self._last = held = key, self._matrix(part, expert)
            return held[1][first * row : last * row]
        source = part.experts[expert] if part.experts else part.source
        span = part.each if part.experts else part.rows
        start = span[0] if span else 0
        return self._opened.read(source, (start + first, start + last))

    def _matrix(self, part: Weight, expert: int) -> Raw:
        """All rows of a weight that is transformed, or one of several matrices in one tensor."""
        source = self._weights
        return source.expert(part, expert) if len(part.shape) == 3 else source.raw(part)

    def held(self, name: str) -> int:
        """Bytes that stay while rows of a tensor are read: a matrix as it is stored, and as the
        rows are cut of it."""
        return 2 * max(
            (
                self._weights.type(part).tensor_nbytes(self._opened.tensors[part.source].shape[-2:])
                for part in self._origins[name].parts
                if _is_held(part)
            ),
            default=0,
        )


def _is_held(part: Weight) -> bool:
    """Whether rows are cut of a whole matrix, which stays until another is asked for."""
    return part.transform != "none" or (len(part.shape) == 3 and not part.experts)


def as_gguf(file: ModelFile, *, vocabulary: bool = True) -> ModelFile:
    """``file`` itself if it is a GGUF file, else the directory as one, with its ``vocabulary``
    unless nobody will read texts. Raises Unconvertible, UnknownVocabulary, or what building the
    Model raises."""
    if file.kind == "gguf":
        return file
    stated = architecture(file)
    name = ARCHITECTURES.get(stated)
    model = build_model(file)
    if name is None:
        raise Unconvertible(
            f"{file.path}: no GGUF file is made of {stated} here: give one that was converted"
        )
    metadata = {
        **_hyperparameters(file, stated, name, model),
        **(vocabulary_keys(file, model.vocab_size) if vocabulary else {}),
    }
    return _converted(file, name, model, metadata)


def _hyperparameters(file: ModelFile, stated: str, name: str, model: Model) -> dict[str, Any]:
    keys = Keys(file, stated)
    found: dict[str, Any] = {
        "general.architecture": name,
        "general.type": "model",
        "general.name": file.path.resolve().name,
        f"{name}.vocab_size": np.uint32(model.vocab_size),
    }
    for key, value in {**mapped_keys(keys), **_of_model(model), **_rope(keys, model)}.items():
        found[f"{name}.{key}"] = value
    return found


def _of_model(model: Model) -> dict[str, Any]:
    """What config.json may leave to defaults."""
    found: dict[str, Any] = {
        "context_length": np.uint32(model.context_length),
        "embedding_length": np.uint32(model.width),
        "block_count": np.uint32(len(model.segments) - 2),
    }
    widths = {w.shape[-1] for s in model.segments for w in s.weights if "ffn_down.w" in w.name}
    if len(widths) == 1:
        found["feed_forward_length"] = np.uint32(widths.pop())
    inner = {w.shape[-1] for s in model.segments for w in s.weights if "ssm_out.w" in w.name}
    if len(inner) == 1:
        found["ssm.inner_size"] = np.uint32(inner.pop())
    # One key counts ranks in Mamba's files and heads in those of Mamba 2.
    shapes = {w.name: w.shape for s in model.segments for w in s.weights}
    heads = {x[0] for n, x in shapes.items() if n.endswith("ssm_dt.bias")}
    if len(heads) == 1 and not any(n.endswith("ssm_dt.weight") for n in shapes):
        found["ssm.time_step_rank"] = np.uint32(heads.pop())
    attentions = [op for _, op in _ops(model, "attention")]
    if attentions:
        sizes = {"head_count": "heads", "head_count_kv": "kv_heads"}
        sizes |= {"key_length": "k_dim", "value_length": "v_dim"}
        for key, attr in sizes.items():
            values = {int(op.attrs[attr]) for op in attentions}
            if len(values) == 1:
                found[f"attention.{key}"] = np.uint32(values.pop())
        layers = len(model.segments) - 2
        if len(attentions) < layers:
            # Layers without attention say so by having no heads of keys.
            counts = {s.name: int(op.attrs["kv_heads"]) for s, op in _ops(model, "attention")}
            listed = [counts.get(f"layer.{i}", 0) for i in range(layers)]
            found["attention.head_count_kv"] = np.array(listed, np.int32)
        windows = [int(op.attrs.get("window", 0)) for op in attentions]
        if any(windows):
            found["attention.sliding_window"] = np.uint32(max(windows))
            if not all(windows):
                found["attention.sliding_window_pattern"] = np.array([w > 0 for w in windows])
    return found


def _rope(keys: Keys, model: Model) -> dict[str, Any]:
    ropes = [op for _, op in _ops(model, "rope")]
    if not ropes:
        return {}
    turned = max(2 * len(op.attrs["inv_freq"]) for op in ropes)
    return {"rope.dimension_count": np.uint32(turned), **gguf_scaling(keys)}


def _ops(model: Model, kind: str) -> Iterator[tuple[Segment, Op]]:
    for segment in model.segments:
        for op in segment.program.ops:
            if op.kind == kind:
                yield segment, op


def _converted(file: ModelFile, name: str, model: Model, metadata: Mapping[str, Any]) -> Converted:
    """Tensors by GGUF's names, and the proof that they are the same model."""
    weights = {w.name: w for segment in model.segments for w in segment.weights}
    frame = [n for n in ("token_embd.weight", "output.weight") if n in weights]
    shapes: dict[str, TensorInfo] = {
        n: TensorInfo(n, weights[n].shape, _PLAIN, file.path, 0, 0) for n in frame
    }
    frequencies = [op.attrs["inv_freq"] for _, op in _ops(model, "rope")]
    keys = Keys(file, architecture(file))
    numbers = gguf_factors(keys, frequencies[0]) if frequencies else {}
    # Which tensors a family looks for may depend on those that are there.
    hints = {n: TensorInfo(n, w.shape, _PLAIN, file.path, 0, 0) for n, w in weights.items()}
    try:
        wanted = wanted_tensors(Blank("gguf", file.path, plain(metadata), {**hints, **shapes}))
    except ModelError as error:
        raise Unconvertible(f"{file.path}: no GGUF file can be made of it here: {error}") from None
    origins: dict[str, _Origin] = {n: _Origin(numbers=x) for n, x in numbers.items()}
    source = WeightSource(file)
    for canonical, tensor in wanted.tensors.items():
        for i in range(wanted.layers) if "{i}" in canonical else (0,):
            own = canonical.replace("{i}", str(i))
            if own not in weights:
                continue
            weight, part = weights[own], tensor.part
            fused = weight.rows is not None or weight.each is not None
            # Experts stay apart where they may: older readers know nothing else.
            fused = fused and len(weight.shape) < 3
            if part is not None and part.gguf and (fused or not tensor.apart):
                at = part.gguf.replace("{i}", str(i))
                before = origins.get(at, _Origin())
                origins[at] = replace(before, parts=(*before.parts, weight))
            else:
                origins[own] = _Origin((weight,))
    infos: dict[str, TensorInfo] = {}
    offset = 0
    for at, origin in origins.items():
        shape = _shape(origin)
        type = _type(at, shape, origin, source)
        nbytes = type.tensor_nbytes(shape)
        infos[at] = TensorInfo(at, shape, type, file.path, offset, nbytes)
        offset += nbytes
    try:
        twin = build_model(HeaderOnly("gguf", file.path, plain(metadata), infos))
    except ModelError as error:
        raise Unconvertible(f"{file.path}: no GGUF file can be made of it here: {error}") from None
    for at, pairs in _turned(file, model, twin, numbers).items():
        for own in [n for n, o in origins.items() if any(w.name == at for w in o.parts)]:
            if len(origins[own].parts) > 1:
                raise Unconvertible(f"{file.path}: {own} would have to be turned in part")
            origins[own] = replace(origins[own], head=pairs[0], pairs=pairs[1])
    return Converted(file, metadata, infos, origins)


def _shape(origin: _Origin) -> tuple[int, ...]:
    if origin.numbers is not None:
        return origin.numbers.shape
    first = origin.parts[0].shape
    if len(first) == 1:
        return (sum(part.shape[0] for part in origin.parts),)
    return (*first[:-2], sum(part.shape[-2] for part in origin.parts), first[-1])


def _type(name: str, shape: tuple[int, ...], origin: _Origin, source: WeightSource) -> BlockType:
    """As it is stored, if GGUF has that and it is a matrix to be quantised; else float32."""
    if origin.numbers is not None or not is_quantised(name, shape):
        return _PLAIN
    types = {source.type(part).name for part in origin.parts}
    type = source.type(origin.parts[0])
    return type if len(types) == 1 and type.gguf_id is not None else _PLAIN


def _turned(
    file: ModelFile, model: Model, twin: Model, numbers: Mapping[str, NDArray[np.float32]]
) -> dict[str, tuple[int, int]]:
    """Weights whose rows come in another order, with the rows of a head and the dimensions that are
    turned. Raises Unconvertible where the two are not the same model."""

    def refuse(what: str) -> Unconvertible:
        return Unconvertible(
            f"{file.path}: a GGUF file of this family would be another model ({what}): give one "
            "that was converted"
        )

    found: dict[str, tuple[int, int]] = {}
    if (len(model.segments), model.state) != (len(twin.segments), twin.state):
        raise refuse("its layers or what they keep")
    for a, b in zip(model.segments, twin.segments, strict=True):
        if [op.kind for op in a.program.ops] != [op.kind for op in b.program.ops]:
            raise refuse(a.name)
        shapes = {w.name: w.shape for w in b.weights if w.name not in numbers}
        if {w.name: w.shape for w in a.weights} != shapes:
            raise refuse(f"the weights of {a.name}")
        for mine, theirs in zip(a.program.ops, b.program.ops, strict=True):
            if mine.kind == "rope":
                if not _same_rope(mine, theirs, numbers):
                    raise refuse(f"positions of {a.name}")
                if mine.attrs["style"] != theirs.attrs["style"]:
                    if mine.attrs["style"] != "neox":
                        raise refuse(f"pairs of positions of {a.name}")
                    pairs = mine.attrs["head_dim"], 2 * len(mine.attrs["inv_freq"])
                    for weight in _producers(a, mine.inputs[0]):
                        found[weight] = pairs
            elif mine.inputs != theirs.inputs or not _same(_attrs(mine), _attrs(theirs)):
                raise refuse(f"{mine.kind} of {a.name}")
    return found


def _attrs(op: Op) -> dict[str, Any]:
    """Attributes, but for a bound that keeps sums from being zero: readers have their own."""
    return {name: value for name, value in op.attrs.items() if name != "least_sum"}


def _same_rope(a: Op, b: Op, numbers: Mapping[str, NDArray[np.float32]]) -> bool:
    if a.inputs[0] != b.inputs[0] or a.attrs["head_dim"] != b.attrs["head_dim"]:
        return False
    if not _same(a.attrs.get("mscale"), b.attrs.get("mscale")):
        return False
    x, y = (np.array(op.attrs["inv_freq"], np.float64) for op in (a, b))
    for name in b.inputs[1:]:
        y = y / numbers[name]
    return x.shape == y.shape and bool(np.allclose(x, y, rtol=_CLOSE, atol=0))


def _same(a: Any, b: Any) -> bool:
    """Equal, numbers as close as float32 is."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and isinstance(b, (int, float)):
        return bool(abs(a - b) <= _CLOSE * max(abs(a), abs(b)))
    return bool(a == b)


def _producers(segment: Segment, value: str) -> list[str]:
    """Weights whose rows are columns of a value, as far back as columns keep their places."""
    op = next(op for op in segment.program.ops if op.output == value)
    if op.kind == "matmul":
        return list(op.inputs[1:])
    if op.kind in ("clamp", "scale"):
        return _producers(segment, op.inputs[0])
    raise Unconvertible(f"columns of {value} would have to be turned behind {op.kind}")


def _paired(count: int, head: int, pairs: int) -> NDArray[np.int64]:
    """Where each row comes from: in every head i and i + pairs / 2 become 2i and 2i + 1."""
    order = np.arange(head)
    order[:pairs] = np.arange(pairs).reshape(2, -1).T.reshape(-1)
    return (np.arange(0, count, head)[:, None] + order).reshape(-1)
