"""What Ollama's clients are told of a model."""

from __future__ import annotations

import hashlib
from datetime import datetime, timezone
from typing import Any

from strata.formats.summary import Summary
from strata.records import dataclass


@dataclass(frozen=True)
class Facts:
    """Of a model, from its header. The digest is one of names, sizes and times: the whole
    file would take too long."""

    summary: Summary
    details: dict[str, Any]
    size: int
    modified: str
    digest: str


def facts_of(summary: Summary) -> Facts:
    """What there is to tell of a model."""
    newest = max(path.stat().st_mtime for path, _ in summary.files)
    marks = [(path.name, size, path.stat().st_mtime_ns) for path, size in summary.files]
    family = summary.architecture or "unknown"
    return Facts(
        summary=summary,
        details={
            "parent_model": "",
            "format": "gguf" if summary.kind == "gguf" else "safetensors",
            "family": family,
            "families": [family],
            "parameter_size": _count(summary.parameters),
            "quantization_level": summary.types[0].type if summary.types else "unknown",
        },
        size=sum(size for _, size in summary.files),
        modified=datetime.fromtimestamp(newest, timezone.utc).isoformat().replace("+00:00", "Z"),
        digest=hashlib.sha256(repr(marks).encode()).hexdigest(),
    )


def _count(parameters: int) -> str:
    for letter, unit in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= unit:
            return f"{parameters / unit:.2f}{letter}"
    return str(parameters)


def model_info(summary: Summary) -> dict[str, Any]:
    """Of ``/api/show``, by the names of GGUF's metadata."""
    architecture = summary.architecture or "unknown"
    known = {
        "general.architecture": architecture,
        "general.name": summary.name,
        "general.license": summary.license,
        "general.parameter_count": summary.parameters,
        f"{architecture}.block_count": summary.layers,
        f"{architecture}.context_length": summary.context_length,
        f"{architecture}.embedding_length": summary.embedding_length,
        f"{architecture}.attention.head_count": summary.heads,
        f"{architecture}.attention.head_count_kv": summary.kv_heads,
        f"{architecture}.vocab_size": summary.vocabulary,
    }
    return {key: value for key, value in known.items() if value is not None}
