"""Text: tokenizers, streaming detokenisation, chat templates."""

from __future__ import annotations

from strata.text.chat import ChatTemplate
from strata.text.errors import ChatTemplateBusy, ChatTemplateError, TokenizerError
from strata.text.gguf import tokenizer_from_gguf
from strata.text.huggingface import tokenizer_from_directory
from strata.text.load import load_tokenizer
from strata.text.stream import StreamDecoder
from strata.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "ChatTemplateBusy",
    "ChatTemplateError",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "load_tokenizer",
    "tokenizer_from_directory",
    "tokenizer_from_gguf",
]
