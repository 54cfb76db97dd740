r"""How byte-level BPE models cut text into words before merging: the families that GGUF names.

The facts are those of llama.cpp's vocabulary loader (`tokenizer.ggml.pre`), since a GGUF file is
defined by the ids that llama.cpp gives. The patterns run on Oniguruma in Ruby syntax, which differs
from that source's engine in a few points that are spelled out here:

- `$` means the end of any line in Ruby syntax; the end of the text is `\z`.
- llama.cpp hides Unicode spaces from patterns without a `\p{..}` class, so that only `\s` finds
  them: character ranges that span such spaces exclude them here (`&&\S`).
- Where it writes "a letter that is not a-z" as a lookahead, an intersection says the same.
- Its digit class is ASCII, Oniguruma's `\d` is not: `[0-9]`.
- Han, there a list of blocks, is that list here too; Oniguruma's `\p{Han}` is a script.

Both know the classes of the same Unicode, except that Oniguruma's tables are newer: characters of
Unicode 15.1 and 16 are letters here and unassigned there.

The patterns of a family are applied one after the other: each cuts every piece left by the one
before it into matches and what lies between them.
"""

from __future__ import annotations

from dataclasses import replace

from strata.formats.errors import shown
from strata.records import dataclass
from strata.text.cutting import Cuts
from strata.text.errors import TokenizerError


@dataclass(frozen=True)
class PreTokenizer:
    """One family: its patterns and the habits that its vocabularies share."""

    patterns: tuple[str, ...]
    ignore_merges: bool = False  # a word that is a token is not merged from its letters
    add_bos: bool = False  # when the file does not say
    byte_level: bool = True  # letters stand for bytes (GPT-2's table); else plain text
    escapes_spaces: bool = False  # U+2581 stands for a space
    merges_optional: bool = False  # a file may have none
    newline_runs: bool = False  # a run of newlines that is a token is taken whole (gemma 4)

    @property
    def cuts(self) -> Cuts:
        """Where a text may be cut, as can be seen of the patterns."""
        *before, last = self.patterns
        if last == _THREES_FROM_END:
            # Nothing cuts between words.
            return Cuts(lines=False)
        lines = self.escapes_spaces
        return Cuts(
            words=not lines and last != _JOINED_WORDS,
            punctuation=not lines and last != _NOT_SPACE,
            anywhere=last in _WHOLE_TEXT and all(p in _DIGITS for p in before),
            few_letters=r"\p{L}" not in "".join(self.patterns) and last != _BLOOM,
            digits=0 if lines else self._digits(),
        )

    def _digits(self) -> int:
        """How many digits of a long number are taken at a time from its beginning on; 0: all, or
        not from there."""
        alternatives = [f"|{pattern}|" for pattern in self.patterns]
        if self.patterns[0] == _DIGITS_FROM_END:
            return 0
        if any(r"|\p{N}|" in pattern for pattern in alternatives):
            return 1
        if any(r"|\p{N}{1,3}|" in p or "|[0-9][0-9][0-9]|" in p for p in alternatives):
            return 3
        return 0


def _ranges(hexadecimal: str) -> str:
    """`41-5A B5` as the inside of a character class."""
    ends = (part.split("-") for part in hexadecimal.split())
    return "".join("-".join(f"\\x{{{end}}}" for end in pair) for pair in ends)


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s+(?!\S)|\s+"
_NEWLINES = r"\s*[\r\n]+"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_THREE_DIGITS = r"\p{N}{1,3}"


def _words(*alternatives: str) -> str:
    return "|".join(alternatives)


_LLAMA3 = _words(_CONTRACTION, _LETTERS, _THREE_DIGITS, _SYMBOLS, _NEWLINES, _SPACES)
_QWEN2 = _words(_CONTRACTION, _LETTERS, r"\p{N}", _SYMBOLS, _NEWLINES, _SPACES)

_WHOLE_TEXT = frozenset((_GPT2, _LLAMA3, _QWEN2))
_DIGITS = frozenset((r"\p{N}", r"\p{N}+", _THREE_DIGITS))

# Letters by case as llama.cpp sees them: a letter outside ASCII counts as either.
_UPPERISH = r"[\p{L}&&[^a-z]]"
_LOWERISH = r"[\p{L}&&[^A-Z]]"


def _cased(upper: str, lower: str, ending: str) -> str:
    start = r"[^\r\n\p{L}\p{N}]?"
    return _words(f"{start}{upper}*{lower}+{ending}", f"{start}{upper}+{lower}*{ending}")


_SLASH_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_TEKKEN = _words(_cased(_UPPERISH, _LOWERISH, ""), r"\p{N}", _SLASH_SYMBOLS, _NEWLINES, _SPACES)
_GPT4O = _words(
    _cased(_UPPERISH, _LOWERISH, _CONTRACTION + "?"),
    _THREE_DIGITS,
    _SLASH_SYMBOLS,
    _NEWLINES,
    _SPACES,
)
_GRANITE_MULTILINGUAL = _words(
    _cased(r"[\p{L}\p{M}&&[^a-z]]", r"[\p{L}\p{M}&&[^A-Z]]", _CONTRACTION + "?"),
    _THREE_DIGITS,
    _SLASH_SYMBOLS,
    _NEWLINES,
    _SPACES,
)
# Here every `\p{L.}` is any letter, so upper and lower classes are one.
_ANY_LETTER = r"[\p{L}\p{M}]"
_TINY_AYA = _words(
    _cased(_ANY_LETTER, _ANY_LETTER, _CONTRACTION + "?"),
    _THREE_DIGITS,
    _SLASH_SYMBOLS,
    _NEWLINES,
    _SPACES,
)
_YOUTU = _words(
    _cased(_ANY_LETTER, _ANY_LETTER, _CONTRACTION + "?"),
    r"\p{N}",
    _SLASH_SYMBOLS,
    _NEWLINES,
    _SPACES,
)

_CJK_KANA = f"[{_ranges('4E00-9FA5 3040-309F 30A0-30FF')}]+"
_CJK_WIDE = f"[{_ranges('800-9FA5 AC00-D7FF')}&&\\S]+"
_ASCII_WORD = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"
_MARKED_WORD = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
_DEEPSEEK3 = _words(_ASCII_WORD, _MARKED_WORD, r" ?[\p{P}\p{S}]+[\r\n]*", _NEWLINES, _SPACES)

# Cased letters as an old Unicode knew them: without Georgian capitals, Latin beyond A78E and so on.
_DEEPSEEK_LETTERS = _ranges(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376-377 37B-37D 37F 386 "
    "388-38A 38C 38E-3A1 3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA "
    "1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 "
    "1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB "
    "1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D "
    "212F-2134 2139 213C-213F 2145-2149 214E 2183-2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2-2CF3 "
    "A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A "
    "FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_DEEPSEEK_PUNCTUATION = _ranges("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3001-3002")

_HAN = _ranges("4E00-9FFF 3400-4DBF 20000-2A6DF 2A700-2B73F 2B740-2EBEF F900-FAFF 2F800-2FA1F")
_NOT_HAN_LETTERS = f"[\\p{{L}}&&[^{_HAN}]]+"

_ASIAN_SCRIPTS = _ranges(
    "4E00-9FFF 3400-4DBF 8C48-FAFF 3040-309F 30A0-30FF FF65-FF9F 2F00-2FDF E40-E7F E80-EFF "
    "1780-17FF 1000-109F AA60-AA7F A9E0-A9FF AC00-D7AF 1100-11FF"
)
# Groups of three counted from the end of the number; the first group takes what stands before it.
_DIGITS_FROM_END = r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\p{N}{3}"

_THREES_FROM_END = r"(?=(?:[0-9]{3})+(?![0-9]))"

_BLOOM = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+"
_NOT_SPACE = r"\S+"
_LINES = r"[^\n]+|\n+"
_JOINED_WORDS = _words(
    _CONTRACTION,
    r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
    r"\p{N}",
    r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
    r"\s*[\r\n]",
    _SPACES,
)

_gpt2 = PreTokenizer((_GPT2,))
_digits_gpt2 = PreTokenizer((r"\p{N}", _GPT2))
_llama3 = PreTokenizer((_LLAMA3,))
_qwen2 = PreTokenizer((_QWEN2,))
_deepseek3 = PreTokenizer((_THREE_DIGITS, _CJK_KANA, _DEEPSEEK3))
_bloom = PreTokenizer((_BLOOM,))
_gpt4o = PreTokenizer((_GPT4O,))
_tiny_aya = PreTokenizer((_DIGITS_FROM_END, _TINY_AYA))

_FAMILIES: dict[str, PreTokenizer] = {
    "default": PreTokenizer(
        (r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    ),
    "gpt-2": _gpt2,
    "mpt": _gpt2,
    "olmo": _gpt2,
    "jais": _gpt2,
    "trillion": _gpt2,
    "granite-docling": _gpt2,
    "starcoder": _digits_gpt2,
    "refact": _digits_gpt2,
    "command-r": _digits_gpt2,
    "smollm": _digits_gpt2,
    "codeshell": _digits_gpt2,
    "exaone": _digits_gpt2,
    "minerva-7b": _digits_gpt2,
    "mellum2": _digits_gpt2,
    "falcon": PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, "[0-9][0-9][0-9]")),
    "llama-bpe": replace(_llama3, ignore_merges=True, add_bos=True),
    "dbrx": _llama3,
    "smaug-bpe": _llama3,
    "chatglm-bpe": _llama3,
    "glm4": replace(_llama3, ignore_merges=True),
    "minicpm5": PreTokenizer(
        (
            _THREE_DIGITS,
            _words(_CONTRACTION, _LETTERS, r"\p{N}+", _SYMBOLS, _NEWLINES, _SPACES),
        ),
        ignore_merges=True,
    ),
    "jais-2": PreTokenizer(
        (
            _words(
                _CONTRACTION,
                _LETTERS,
                _THREE_DIGITS,
                _SYMBOLS,
                _NEWLINES,
                *(rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)),
                r"\s{1,2}(?!\S)",
                r"\s",
            ),
        )
    ),
    "qwen2": _qwen2,
    "stablelm2": _qwen2,
    "hunyuan": _qwen2,
    "solar-open": _qwen2,
    "grok-2": _qwen2,
    "megrez": _qwen2,
    "qwen35": PreTokenizer(
        (
            _words(
                _CONTRACTION,
                r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
                r"\p{N}",
                r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
                _NEWLINES,
                _SPACES,
            ),
        )
    ),
    "ufakzeka": PreTokenizer((_words(_LETTERS, r"\p{N}", _SYMBOLS, _NEWLINES, _SPACES),)),
    "laguna": PreTokenizer((_LINES, _QWEN2)),
    "bailingmoe": PreTokenizer(
        (
            _words(
                r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
                _LETTERS,
                r"\p{N}",
                _SYMBOLS,
                r"\s*[\r\n]",
                _SPACES,
            ),
        )
    ),
    "seed-coder": PreTokenizer(
        (
            _words(
                _CONTRACTION,
                _LETTERS,
                r"\p{N}",
                r" ?[^\s\p{L}\p{N}\r\n]+",
                _NEWLINES,
                _SPACES,
            ),
        )
    ),
    "exaone-moe": PreTokenizer((_JOINED_WORDS,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o": _gpt4o,
    "minimax-m2": _gpt4o,
    "granite-embed-multi-97m": PreTokenizer((_GRANITE_MULTILINGUAL,), ignore_merges=True),
    "tiny_aya": _tiny_aya,
    "youtu": PreTokenizer(
        (
            _words(
                f"[{_ranges('AC00-D7A3 3131-318E')}]+",
                "["
                + _ranges("FF01 2026 201C 201D 2018 2019 2014 FF1A FF1B FF0C 3001-303F FE30-FE4F")
                + "]+",
                f"[{_ranges('3105-312F')}]+",
                _CJK_KANA,
            ),
            _YOUTU,
        ),
        ignore_merges=True,
    ),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            rf"\s?[{_DEEPSEEK_PUNCTUATION}]+",
            r"\s+\z",
            _CJK_WIDE,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK_WIDE, r"\p{N}")),
    "deepseek-v3": _deepseek3,
    "hunyuan-dense": _deepseek3,
    "joyai-llm": _deepseek3,
    "hy_v4": _deepseek3,
    "spark2_5": PreTokenizer(
        (
            _THREE_DIGITS,
            _CJK_KANA,
            _words(_ASCII_WORD, _MARKED_WORD, r" ?[\p{P}\p{S}]+", r"[\r\n]", _SPACES),
            r"\p{N}",
        )
    ),
    "afmoe": PreTokenizer((_DIGITS_FROM_END, f"[{_ASIAN_SCRIPTS}]+", _DEEPSEEK3)),
    "kimi-k2": PreTokenizer(
        (
            _words(
                f"[{_HAN}]+",
                rf"[^\r\n\p{{L}}\p{{N}}]?{_NOT_HAN_LETTERS}{_CONTRACTION}?",
                _THREE_DIGITS,
                _SYMBOLS,
                _NEWLINES,
                _SPACES,
            ),
        ),
        merges_optional=True,
    ),
    "poro-chat": _bloom,
    "bloom": _bloom,
    "gpt3-finnish": _bloom,
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "superbpe": PreTokenizer((r"\p{N}+", _THREES_FROM_END)),
    "chameleon": PreTokenizer(
        (
            "<sentinel:[0-9]+>",
            "IMGIMG[A-I]{1,4}Z",
            r"[\t\n]|    |  ",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "gemma4": PreTokenizer(
        (_LINES,), add_bos=True, byte_level=False, escapes_spaces=True, newline_runs=True
    ),
    "sarvam-moe": PreTokenizer((_LINES,), byte_level=False, escapes_spaces=True),
    "whitespace": PreTokenizer((_NOT_SPACE,), byte_level=False),
}

_ALIASES = {
    "llama3": "llama-bpe",
    "llama-v3": "llama-bpe",
    "falcon3": "llama-bpe",
    "falcon-h1": "llama-bpe",
    "pixtral": "llama-bpe",
    "midm-2.0": "llama-bpe",
    "lfm2": "llama-bpe",
    "jina-v5-nano": "llama-bpe",
    "phi-2": "gpt-2",
    "jina-es": "gpt-2",
    "jina-de": "gpt-2",
    "gigachat": "gpt-2",
    "jina-v2-es": "gpt-2",
    "jina-v2-de": "gpt-2",
    "a.x-4.0": "gpt-2",
    "mellum": "gpt-2",
    "modern-bert": "gpt-2",
    "jina-v1-en": "gpt-2",
    "jina-v2-code": "gpt-2",
    "roberta-bpe": "gpt-2",
    "exaone4": "gpt-2",
    "granite-embed-multi-311m": "gemma4",
    "deepseek-r1-qwen": "qwen2",
    "kormo": "qwen2",
    "f2llmv2": "qwen2",
    "glm5": "glm4",
    "llama4": "gpt-4o",
    "kanana2": "gpt-4o",
    "talkie": "gpt-4o",
    "cohere2moe": "tiny_aya",
    "bailingmoe2": "bailingmoe",
    "llada-moe": "bailingmoe",
}


def known_pre_tokenizers() -> list[str]:
    """Every name that `pre_tokenizer` accepts."""
    return sorted([*_FAMILIES, *_ALIASES])


def pre_tokenizer(name: str) -> PreTokenizer:
    """The family that a GGUF file calls `name`; no name at all is `default`."""
    name = name or "default"
    family = _FAMILIES.get(_ALIASES.get(name, name))
    if family is None:
        raise TokenizerError(
            f"tokenizer.ggml.pre: unknown pre-tokenizer {shown(name)}; "
            f"known are: {', '.join(known_pre_tokenizers())}"
        )
    return family
