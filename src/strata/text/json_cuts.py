"""Where a tokenizer.json's own pipeline lets long texts be cut; see ``cutting``.

Three kinds are known. Byte-level BPE cuts at words by a pattern of the commonest families. BPE that
makes letters of spaces merges across anything but a word's beginning. Any model whose first
pre-tokenizer takes words apart at spaces (WordPiece's, WordLevel's, Unigram's) sees each of them
alone; then all that its normalizer does must be local, and leave a space between letters a space.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from strata.text.cutting import LETTER, Cuts
from strata.text.pipeline import ANY_LIBRARY_BYTE, LIBRARY_BYTE
from strata.text.sentencepiece import SPACE

if TYPE_CHECKING:
    import tokenizers

# The patterns of the GPT-2, Llama 3 and Qwen 2 families, as their files write them.
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_KNOWN = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": taken
    for digits, taken in ((r"\p{N}{1,3}", 3), (r"\p{N}", 1))
}
_AT_SPACES = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_ESCAPE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}

# Pre-tokenizers that take spaces and lines away between words.
_TAKE_SPACES = ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
# Those of them that take full stops for words of their own.
_KNOW_PUNCTUATION = ("BertPreTokenizer", "Whitespace")
# Normalizers for which a character's neighbours do not matter beyond a space.
_LOCAL = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "Precompiled")
_LETTERS_TOGETHER = 512


class Known(NamedTuple):
    """Where texts may be cut, None if that is not known; whether a space is put before each; and
    bytes that encoding a byte at a time takes."""

    cuts: Cuts | None = None
    adds_space: bool = False
    byte: int = ANY_LIBRARY_BYTE


def known_cuts(engine: tokenizers.Tokenizer) -> Known:
    """What is known of a pipeline."""
    normal, before = _steps(engine.normalizer), _steps(engine.pre_tokenizer)
    choices = _at_words(engine, normal, before)
    adds_space, byte = False, ANY_LIBRARY_BYTE
    if not choices and type(engine.model).__name__ == "BPE":
        normal = [step for step in normal if step != {"type": "NFC"}]
        if _spaces_are_letters(normal, before):
            joined = re.compile(f"[{LETTER}]{SPACE}")
            if any(map(joined.search, engine.get_vocab(with_added_tokens=False))):
                return Known()
            # A Metaspace puts none before a part that begins with one.
            adds_space, choices = bool(normal[1:]), [Cuts(False, words=True, few_letters=True)]
        elif not normal and (digits := _digits_of_words(before)) is not None:
            words = Cuts(words=True, punctuation=True, digits=digits)
            choices = [replace(words, anywhere=True), words]
        byte = LIBRARY_BYTE
    added = list(engine.get_added_tokens_decoder().values())
    for cuts in choices:
        if not any(_would_be_cut(token, cuts, engine) for token in added):
            return Known(cuts, adds_space, byte)
    return Known()


def _would_be_cut(token: tokenizers.AddedToken, cuts: Cuts, engine: tokenizers.Tokenizer) -> bool:
    """Whether a cut may keep a token from being found, or let it be found."""
    text = token.content.replace(SPACE, " ")
    if cuts.inside(text) or token.single_word or (token.rstrip and text[-1:].isalnum()):
        return True
    if not token.normalized or engine.normalizer is None:
        return False
    # It is looked for in what the normalizer makes of a text.
    normal = engine.normalizer.normalize_str(token.content).replace(SPACE, " ").lstrip()
    return any(map(str.isspace, normal))


def _at_words(
    engine: tokenizers.Tokenizer, normal: list[dict[str, Any]], before: list[dict[str, Any]]
) -> list[Cuts]:
    """The cuts of a pipeline whose model sees one word at a time; none if it is not known so."""
    first = before[0] if before else {}
    takes_spaces = first.get("type") in _TAKE_SPACES
    marks_spaces = (first.get("type"), first.get("replacement")) == ("Metaspace", SPACE) and bool(
        first.get("split", True)
    )
    if not (takes_spaces or marks_spaces):
        return []
    if not all(_is_local(step, takes_spaces=takes_spaces) for step in normal):
        return []
    normalized = _normalized(engine)
    if takes_spaces:
        if normalized(" ") != " ":
            return []
        ends = normalized("\uff0c\u3002")
        apart = first["type"] in _KNOW_PUNCTUATION and ends in ("\uff0c\u3002", ",\u3002")
        return [Cuts(lines=normalized("\n") in ("\n", " "), words=True, punctuation=apart)]
    if normalized(" ") not in (" ", SPACE) or not _letters_stay(normal, normalized):
        return []
    return [Cuts(lines=False, words=True, few_letters=True)]


def _normalized(engine: tokenizers.Tokenizer) -> Callable[[str], str]:
    """What a text between two letters becomes."""
    normalizer = engine.normalizer

    def normalized(text: str) -> str:
        if normalizer is None:
            return text
        made: str = normalizer.normalize_str(f"x{text}x")
        return made[1:-1] if made[:1] == made[-1:] == "x" else ""

    return normalized


def _letters_stay(normal: list[dict[str, Any]], normalized: Callable[[str], str]) -> bool:
    """Whether each letter becomes something, and no space. Only a file's own table could do that,
    which is per character: all are looked at."""
    if not any(step["type"] == "Precompiled" for step in normal):
        return True
    letters = [c for c in map(chr, range(0x41, 0xD7A4)) if re.match(f"[{LETTER}]", c)]
    for start in range(0, len(letters), _LETTERS_TOGETHER):
        some = letters[start : start + _LETTERS_TOGETHER]
        made = normalized(" ".join(some))
        words = made.replace(SPACE, " ").split(" ")
        if len(words) != len(some) or not all(words):
            return False
    return True


def _is_local(step: dict[str, Any], *, takes_spaces: bool) -> bool:
    kind = step["type"]
    if kind == "Replace":
        pattern, content = step["pattern"], step["content"]
        if pattern == {"Regex": " {2,}"}:
            return content == " " or (content == SPACE and not takes_spaces)
        text = pattern.get("String")
        # Of marks alone, so that none reaches from a letter to a space.
        return text is not None and text.isascii() and not re.search(r"[\w\s]", text)
    if kind == "Strip":
        return takes_spaces or not step["strip_left"]
    # Bert's puts spaces around characters of Chinese.
    return kind in _LOCAL or (kind == "BertNormalizer" and takes_spaces)


def _spaces_are_letters(normal: list[dict[str, Any]], before: list[dict[str, Any]]) -> bool:
    """Whether these steps make letters of spaces, and cut at most between words: those of Llama 2
    in its two spellings, and of Gemma."""
    if normal:
        escaped = normal == [_PREPEND, _ESCAPE] or normal == [_ESCAPE]
        return escaped and (not before or before == [_AT_SPACES])
    return [(step["type"], step.get("replacement")) for step in before] == [("Metaspace", SPACE)]


def _digits_of_words(steps: list[dict[str, Any]]) -> int | None:
    """How many digits are taken at a time (0: all), if these steps are known to cut at words."""
    taken = 0
    if steps and steps[0] == {"type": "Digits", "individual_digits": True}:
        taken, steps = 1, steps[1:]
    letters = steps[-1] if steps else {}
    if letters.get("type") != "ByteLevel" or letters.get("add_prefix_space"):
        return None
    if letters.get("use_regex", True):
        return taken if len(steps) == 1 else None
    (split, *rest) = steps[:-1] or [{}]
    pattern = split.get("pattern", {}).get("Regex")
    isolates = split.get("behavior") == "Isolated" and not split.get("invert")
    if rest or split.get("type") != "Split" or not isolates or pattern not in _KNOWN:
        return None
    return taken or _KNOWN[pattern]


def _steps(part: Any) -> list[dict[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer, by what it says of itself."""
    if part is None:
        return []
    state = json.loads(part.__getstate__())
    inner = state.get("normalizers", state.get("pretokenizers"))
    return [state] if inner is None else list(inner)
