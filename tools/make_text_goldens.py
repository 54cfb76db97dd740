"""Writes tests/text/goldens/*.json: ids that llama.cpp gives texts.

`smollm2.json` are those of the built-in model's vocabulary, `families.json` those of every
pre-tokenizer and kind of vocabulary, with vocabularies of `tests/support/small_vocabularies.py`.
Needs llama-cpp-python. Usage: python tools/make_text_goldens.py SmolLM2.gguf
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from strata.formats.gguf_writer import write_gguf
from strata.text.pretokenizers import known_pre_tokenizers

_TESTS = Path(__file__).resolve().parent.parent / "tests"
_MERGES = 500


def main(model: str) -> None:
    """Write both."""
    sys.path.insert(0, str(_TESTS))
    _write("smollm2", _smollm2(model))
    _write("families", families())


def _smollm2(model: str) -> list[str]:
    """Every hard text twice: as plain text, and with special tokens parsed."""
    from support.hard_texts import TEXTS, noise

    llama = _opened(model)
    entries = []
    for text in [*TEXTS, *noise(seed=1, count=40)]:
        plain, special = (
            llama.tokenize(text.encode(), add_bos=False, special=parse) for parse in (False, True)
        )
        entries.append(
            {"text": text, "ids": plain} | ({"special": special} if special != plain else {})
        )
    return ["[", ",\n".join(json.dumps(entry) for entry in entries), "]"]


def families() -> list[str]:
    """The merges, the texts, and of each text the names that give it the same ids."""
    from support.small_vocabularies import joining, vocabularies
    from support.telling_texts import TELLING

    merges = _learnt()
    lines = [f'{{"merges": {json.dumps(merges, ensure_ascii=False)},', '"texts": [']
    # That of the kind `whitespace` is for it alone: llama.cpp ends on spaces in a word.
    names = [pre for pre in known_pre_tokenizers() if pre != "whitespace"]
    made = {f"pre {pre}": joining(merges, pre=pre) for pre in names}
    made |= vocabularies(merges)
    ids = {name: _ids(data, TELLING) for name, data in made.items()}
    entries = []
    for number, text in enumerate(TELLING):
        groups: dict[tuple[int, ...], list[str]] = {}
        for name, found in ids.items():
            groups.setdefault(tuple(found[number]), []).append(name)
        same = [{"names": names, "ids": list(found)} for found, names in groups.items()]
        entries.append(json.dumps({"text": text, "ids": same}))
    return [*lines, ",\n".join(entries), "]}"]


def _learnt() -> list[str]:
    """Merges of the texts as a whole, without words."""
    import tokenizers

    from support.hard_texts import TEXTS
    from support.telling_texts import TELLING

    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=False
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=256 + _MERGES,
        show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=6,
    )
    engine.train_from_iterator([*TEXTS, *TELLING * 3], trainer)
    return [" ".join(pair) for pair in json.loads(engine.to_str())["model"]["merges"]]


def _ids(metadata: Mapping[str, Any], texts: list[str]) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocabulary.gguf"
        write_gguf(path, {"general.architecture": "llama", **metadata}, [])
        llama = _opened(str(path))
        found = [llama.tokenize(text.encode(), add_bos=True, special=True) for text in texts]
        llama.close()
    return found


def _opened(path: str) -> Any:
    import llama_cpp

    return llama_cpp.Llama(path, vocab_only=True, verbose=False)


def _write(name: str, lines: list[str]) -> None:
    target = _TESTS / "text" / "goldens" / f"{name}.json"
    target.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print(target)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
