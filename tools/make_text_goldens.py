"""Writes tests/text/goldens/smollm2.json: ids that llama.cpp gives the built-in model's texts.

Needs llama-cpp-python. Usage: python tools/make_text_goldens.py SmolLM2.gguf
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

_TESTS = Path(__file__).resolve().parent.parent / "tests" / "text"


def main(model: str) -> None:
    """Tokenize every hard text twice: as plain text, and with special tokens parsed."""
    import llama_cpp

    sys.path.insert(0, str(_TESTS))
    from hard_texts import TEXTS, noise

    llama = llama_cpp.Llama(model, vocab_only=True, verbose=False)
    entries = []
    for text in [*TEXTS, *noise(seed=1, count=40)]:
        plain, special = (
            llama.tokenize(text.encode(), add_bos=False, special=parse) for parse in (False, True)
        )
        entries.append(
            {"text": text, "ids": plain} | ({"special": special} if special != plain else {})
        )
    lines = ",\n".join(json.dumps(entry) for entry in entries)
    target = _TESTS / "goldens" / "smollm2.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(f"{target}: {len(entries)} texts")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
