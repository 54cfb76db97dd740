"""The tokenizer of an opened model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strata.guard.known_templates import is_known
from strata.text.gguf import tokenizer_from_gguf
from strata.text.gguf_keys import TokenizerKeys
from strata.text.huggingface import directory_templates, tokenizer_from_directory
from strata.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from strata.formats import ModelFile


def load_tokenizer(model_file: ModelFile) -> Tokenizer:
    """From the metadata of a GGUF file or the files of a Hugging Face directory."""
    if model_file.kind == "gguf":
        return tokenizer_from_gguf(model_file.metadata)
    return tokenizer_from_directory(model_file.path, model_file.room)


def gguf_sizes(model_file: ModelFile) -> tuple[int, int] | None:
    """Tokens and merges that a GGUF file lists; None for one without a vocabulary, or no GGUF."""
    return TokenizerKeys(model_file.metadata).sizes() if model_file.kind == "gguf" else None


def chat_templates(model_file: ModelFile) -> dict[str, str]:
    """Its chat templates by name, without a tokenizer being made."""
    if model_file.kind == "gguf":
        return TokenizerKeys(model_file.metadata).chat_templates()
    return directory_templates(model_file.path)


def has_foreign_template(model_file: ModelFile) -> bool:
    """Whether it has a chat template that is not known to be harmless."""
    return not all(map(is_known, chat_templates(model_file).values()))
