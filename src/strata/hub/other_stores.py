"""Models that other programs have on this machine: Ollama's store, LM Studio's folders.

They are read where they lie, and nothing there is ever written or deleted.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

_MODEL = "application/vnd.ollama.image.model"
_DIGEST = re.compile(r"sha256[:-]([0-9a-f]{64})")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MANIFEST_BYTES = 1 << 20
# Publisher, repository, file.
_DEPTH = "*/*/*.gguf"


def ollama_model(name: str) -> Path | None:
    """The GGUF file of ``name`` or ``name:tag`` in Ollama's store; None if it is not there."""
    family, _, tag = name.partition(":")
    if not _PART.fullmatch(family) or not _PART.fullmatch(tag or "latest"):
        return None
    for store in _ollama_stores():
        manifest = store / "manifests/registry.ollama.ai/library" / family / (tag or "latest")
        try:
            if not manifest.is_file() or manifest.stat().st_size > _MANIFEST_BYTES:
                continue
            layers = json.loads(manifest.read_text(encoding="utf-8"))["layers"]
            digests = [layer["digest"] for layer in layers if layer["mediaType"] == _MODEL]
            found = _DIGEST.fullmatch(digests[0])
        except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError):
            continue
        if found and (blob := store / "blobs" / f"sha256-{found[1]}").is_file():
            return blob
    return None


def lm_studio_models() -> Iterator[tuple[str, Path]]:
    """GGUF files in LM Studio's folders, each with the name of its repository."""
    for root in (Path.home() / ".lmstudio/models", Path.home() / ".cache/lm-studio/models"):
        try:
            files = sorted(root.glob(_DEPTH))
        except OSError:
            continue
        for path in files:
            yield path.parent.name, path


def _ollama_stores() -> Iterator[Path]:
    if given := os.environ.get("OLLAMA_MODELS"):
        yield Path(given).expanduser()
        return
    yield Path.home() / ".ollama/models"
    # Where its service for Linux keeps them.
    yield Path("/usr/share/ollama/.ollama/models")
