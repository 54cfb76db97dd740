"""A text's ids by an engine of the library tokenizers, while other threads run."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import tokenizers

# One text at a time: the library would start threads for it, which no Plan has.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def ids_of(engine: tokenizers.Tokenizer, text: str) -> list[int]:
    """The ids, with none added. Of the library's ways only those for several texts release the
    GIL, without which a server's other answers would wait; "fast" leaves out positions."""
    ids: list[int] = engine.encode_batch_fast([text], add_special_tokens=False)[0].ids
    return ids
