"""Text: tokenizers, streaming detokenisation, chat templates."""

from __future__ import annotations

from strata.text.chat import ChatTemplate
from strata.text.errors import ChatTemplateError, TokenizerError
from strata.text.gguf import tokenizer_from_gguf
from strata.text.stream import StreamDecoder
from strata.text.tokenizer import Tokenizer

__all__ = [
    "ChatTemplate",
    "ChatTemplateError",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "tokenizer_from_gguf",
]
