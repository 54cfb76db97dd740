"""What a model's header tells about it, for people: no tensor is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from strata.formats.errors import FormatError
from strata.formats.model_file import ModelFile
from strata.formats.side_files import read_object
from strata.records import dataclass


@dataclass(frozen=True)
class TypeShare:
    """How much of a model one block type makes up. Sizes in bytes."""

    type: str
    tensors: int
    elements: int
    size: int


@dataclass(frozen=True)
class Summary:
    """A model at a glance; None where the file does not say. Sizes in bytes."""

    kind: str
    name: str | None
    architecture: str | None
    license: str | None
    parameters: int
    tensors: int
    layers: int | None
    embedding_length: int | None
    heads: int | None
    kv_heads: int | None
    context_length: int | None
    vocabulary: int | None
    tokenizer: str | None
    chat_template: bool
    types: tuple[TypeShare, ...]
    files: tuple[tuple[Path, int], ...]


def summarise(model: ModelFile) -> Summary:
    """Gather the summary of an opened model from its metadata and tensor index."""
    gguf = model.kind == "gguf"
    facts = _gguf_facts(model.metadata) if gguf else _huggingface_facts(model)
    return Summary(
        kind=model.kind,
        parameters=sum(math.prod(info.shape) for info in model.tensors.values()),
        tensors=len(model.tensors),
        types=_type_shares(model),
        files=tuple((path, path.stat().st_size) for path in model.paths),
        **facts,
    )


def _type_shares(model: ModelFile) -> tuple[TypeShare, ...]:
    totals: dict[str, tuple[int, int, int]] = {}
    for info in model.tensors.values():
        count, elements, size = totals.get(info.type.name, (0, 0, 0))
        totals[info.type.name] = (
            count + 1,
            elements + math.prod(info.shape),
            size + info.nbytes,
        )
    shares = [TypeShare(name, *total) for name, total in totals.items()]
    return tuple(sorted(shares, key=lambda share: (-share.size, share.type)))


def _gguf_facts(metadata: Mapping[str, Any]) -> dict[str, Any]:
    architecture = _text(metadata.get("general.architecture"))

    def number(key: str) -> int | None:
        return _number(metadata.get(f"{architecture}.{key}"))

    family, variant = (_text(metadata.get(f"tokenizer.ggml.{key}")) for key in ("model", "pre"))
    tokens = metadata.get("tokenizer.ggml.tokens")
    return {
        "name": _text(metadata.get("general.name")),
        "architecture": architecture,
        "license": _text(metadata.get("general.license")),
        "layers": number("block_count"),
        "embedding_length": number("embedding_length"),
        "heads": number("attention.head_count"),
        "kv_heads": number("attention.head_count_kv"),
        "context_length": number("context_length"),
        "vocabulary": len(tokens) if _is_array(tokens) else number("vocab_size"),
        "tokenizer": f"{family} ({variant})" if family and variant else family,
        "chat_template": "tokenizer.chat_template" in metadata,
    }


def _is_array(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _huggingface_facts(model: ModelFile) -> dict[str, Any]:
    config = model.metadata
    # Models that also see or hear keep the numbers of their language part one level down.
    text = config.get("text_config")
    inner = text if isinstance(text, Mapping) else {}

    def number(*keys: str) -> int | None:
        found = (_number(part.get(key)) for part in (config, inner) for key in keys)
        return next((value for value in found if value is not None), None)

    names = ("tokenizer.json", "tokenizer.model", "vocab.json")
    tokenizer_config = _json_object(model.sidecar("tokenizer_config.json"))
    heads = number("num_attention_heads", "n_head")
    return {
        "name": _text(config.get("_name_or_path")) or model.directory.name,
        "architecture": _text(config.get("model_type")),
        "license": _text(config.get("license")),
        "layers": number("num_hidden_layers", "n_layer"),
        "embedding_length": number("hidden_size", "n_embd"),
        "heads": heads,
        "kv_heads": number("num_key_value_heads") or heads,
        "context_length": number("max_position_embeddings", "n_positions", "n_ctx"),
        "vocabulary": number("vocab_size"),
        "tokenizer": next((name for name in names if model.sidecar(name)), None),
        "chat_template": model.sidecar("chat_template.jinja") is not None
        or model.sidecar("chat_template.json") is not None
        or "chat_template" in tokenizer_config,
    }


def _json_object(path: Path | None) -> dict[str, Any]:
    try:
        return {} if path is None else read_object(path)
    except FormatError:
        return {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
