"""What a tokenizer.json may ask of the tokenizers library, and the library's failures as errors.

A pipeline whose steps each make a text a little longer makes gigabytes of a line, and what the
library does not expect ends in a panic, which Python's ``except Exception`` lets through.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from strata.errors import StrataError
from strata.text.errors import TokenizerError
from strata.text.panics import is_panic, panics_untold

if TYPE_CHECKING:
    import tokenizers

_MAX_STEPS = 32
_MAX_GROWTH = 64
_MAX_INSERTED = 64
# Time for each is its cube, where the vocabulary is made for that.
_MAX_WORD = 512
# Ids are 32-bit in the library, and tables of that many entries are made of them.
MAX_VOCABULARY = 1 << 24
MAX_TOKEN_CHARACTERS = 1 << 14
LIBRARY_BYTE = 160
"""Bytes that the library takes for each byte that it encodes at a time, as words of some length
and with our own pipelines or those of the commonest families."""
ANY_LIBRARY_BYTE = 720
"""The same where each character may become a piece of its own: 630 were measured."""
_STEP_LISTS = ("normalizers", "pretokenizers", "processors", "decoders")
# How many times as long a step makes a text at most, where it is made longer again by each such
# step: letters for bytes that are not ASCII, a character map's replacements, a mark before words.
_GROWTH = {"ByteLevel": 2, "Precompiled": 8, "Metaspace": 2}


@contextmanager
def failures_named(where: str, *, foreign: bool = False) -> Iterator[None]:
    """Whatever the library raises within the block is a TokenizerError, panics too. ``foreign``:
    the pipeline is a file's, from which panics come, and only this error is to tell of them."""
    try:
        with panics_untold() if foreign else nullcontext():
            yield
    except (StrataError, MemoryError):
        raise
    except Exception as error:  # the library raises nothing more precise
        raise TokenizerError(f"{where}: {_short(error)}") from error
    except BaseException as error:
        if not is_panic(error):
            raise
        raise TokenizerError(f"{where}: the tokenizers library gave up: {_short(error)}") from None


def check_pipeline(engine: tokenizers.Tokenizer, where: str) -> None:
    """TokenizerError for steps that are too many, make a text too long or cannot be run, and for
    ids and tokens that no vocabulary has."""
    growth = 1
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        steps = list(_steps(getattr(engine, part)))
        if len(steps) > _MAX_STEPS:
            raise TokenizerError(
                f"{where}: its {part} has {len(steps)} steps; at most {_MAX_STEPS} are run"
            )
        if part in ("normalizer", "pre_tokenizer"):
            for step in steps:
                growth *= _step_growth(step, f"{where}: {part} {step['type']}")
                if growth > _MAX_GROWTH:
                    raise TokenizerError(
                        f"{where}: its {part} may make a text more than {_MAX_GROWTH} times as long"
                    )
    word = getattr(engine.model, "max_input_chars_per_word", 0)
    if word > _MAX_WORD:
        raise TokenizerError(
            f"{where}: words of {word} characters are looked up; at most {_MAX_WORD} are"
        )
    vocabulary = engine.get_vocab(with_added_tokens=True)
    largest = max(vocabulary.values(), default=0)
    if largest >= MAX_VOCABULARY:
        raise TokenizerError(f"{where}: token id {largest}; at most {MAX_VOCABULARY - 1} is known")
    longest = max(map(len, vocabulary), default=0)
    if longest > MAX_TOKEN_CHARACTERS:
        raise TokenizerError(
            f"{where}: a token of {longest} characters; at most {MAX_TOKEN_CHARACTERS} are taken"
        )


def _steps(part: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a part of the pipeline, however they are nested."""
    state = None if part is None else json.loads(part.__getstate__())
    left = [state] if state else []
    while left:
        step = left.pop()
        inner = next((step[name] for name in _STEP_LISTS if name in step), None)
        if inner is None:
            yield step
        else:
            left += inner


def _step_growth(step: Mapping[str, Any], where: str) -> int:
    kind = step["type"]
    if kind in ("Replace", "Prepend"):
        content = step["content"] if kind == "Replace" else step["prepend"]
        if len(content) > _MAX_INSERTED:
            raise TokenizerError(
                f"{where}: it puts in {len(content)} characters; at most {_MAX_INSERTED} are"
            )
        if kind == "Prepend":
            return 1
        replaced = step["pattern"].get("String")
        if replaced is None:
            return 1 + len(content)  # an expression may match between any two characters
        if not replaced:
            raise TokenizerError(f"{where}: it replaces nothing by {content!r}")
        return -(-len(content) // len(replaced)) or 1
    if kind == "FixedLength" and step["length"] < 1:
        raise TokenizerError(f"{where}: pieces of no length")
    return _GROWTH.get(kind, 1)


def _short(error: BaseException) -> str:
    text = str(error)
    return text if len(text) <= 300 else f"{text[:300]}..."
