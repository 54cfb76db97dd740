"""The tokenizer of an opened model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from strata.text.chat import is_foreign
from strata.text.gguf import tokenizer_from_gguf
from strata.text.huggingface import has_templates, tokenizer_from_directory
from strata.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from strata.formats import ModelFile


def load_tokenizer(model_file: ModelFile) -> Tokenizer:
    """From the metadata of a GGUF file or the files of a Hugging Face directory."""
    if model_file.kind == "gguf":
        return tokenizer_from_gguf(model_file.metadata)
    return tokenizer_from_directory(model_file.path)


def has_foreign_template(model_file: ModelFile) -> bool:
    """Whether it has a chat template that is not known to be harmless; of a directory it is enough
    that there is one."""
    if model_file.kind == "gguf":
        return any(
            isinstance(text, str) and is_foreign(text)
            for name, text in model_file.metadata.items()
            if name.startswith("tokenizer.chat_template")
        )
    return has_templates(model_file.path)
