"""Long texts are encoded in parts, with the ids that the whole has, in memory that has a bound."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

from strata.text import cutting
from strata.text.bpe import BYTE_LETTERS
from strata.text.gguf import tokenizer_from_gguf
from strata.text.huggingface import HuggingFaceEncoder
from strata.text.pipeline import LIBRARY_BYTE
from strata.text.pretokenizers import known_pre_tokenizers, pre_tokenizer
from strata.text.tokenizer import Encoder
from support.hard_texts import EMOJI, SCRIPTS, SPACES
from support.sampling import every
from support.small_vocabularies import NORMAL, UNKNOWN, USER_DEFINED, metadata, sentencepiece

ALPHABET = (
    "aabzAZ \n\n\r\t'’!1290sé\u3000ß中文字，。、カなア한글 абвЯ ένα \u0301שלום مرحبا नमस्ते ไทย"
    "٠१²½_-/+<>🙂👍🏿\u200d\u00a0\x85ǅʰ"
)


def texts(seed: object, count: int) -> list[str]:
    """Noise in all scripts, short runs of one kind, and sentences, one after the other."""
    source = random.Random(str(seed))
    found = []
    for _ in range(count):
        kind = source.randrange(4)
        if kind == 0:
            text = "".join(source.choices(ALPHABET, k=source.randint(1, 60)))
        elif kind == 1:
            runs = ["0123456789", "ABCDE", " ", "\n", "🙂", "中文", "abc", "...", "٠١٢", "²"]
            text = "".join(
                "".join(source.choices(source.choice(runs), k=source.randint(1, 12)))
                for _ in range(source.randint(1, 12))
            )
        else:
            text = "".join(source.choices([*SCRIPTS, *EMOJI, *SPACES], k=source.randint(1, 4)))
        found.append(text)
    return found


def ids_in_parts(encoder: Encoder, text: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    with monkeypatch.context() as patch:
        patch.setattr(cutting, "PART", 1)
        patch.setattr(cutting, "LONG_NUMBER", 3)
        return [id for part in encoder.encode_parts(text, False) for id in part]


@pytest.mark.parametrize("name", every(3, known_pre_tokenizers()))
def test_parts_have_the_ids_of_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever the patterns leave together is merged, across anything.
    family = pre_tokenizer(name)
    if family.byte_level:
        letters = [BYTE_LETTERS[byte] for byte in sorted(set(ALPHABET.encode()))]
        tokens = [*BYTE_LETTERS]
    else:
        letters = [letter.replace(" ", "▁") for letter in dict.fromkeys(ALPHABET)]
        tokens = [f"<0x{byte:02X}>" for byte in range(256)] + letters
    source = random.Random(0)
    pairs = [(a, b) for a in letters for b in letters]
    source.shuffle(pairs)
    pairs = pairs[:6000]
    vocabulary = dict.fromkeys([*tokens, *(a + b for a, b in pairs)], (NORMAL, 0.0))
    merges = [f"{a} {b}" for a, b in pairs]
    data = metadata("gpt2", vocabulary, merges=merges, pre=name)
    encoder: Any = tokenizer_from_gguf(data)._encoder
    cuts = 0
    for text in texts(name, 150):
        whole = [id for part in encoder.encode_parts(text, False) for id in part]
        assert ids_in_parts(encoder, text, monkeypatch) == whole, text
        with monkeypatch.context() as patch:
            patch.setattr(cutting, "PART", 1)
            cuts += len(list(family.cuts.parts(text))) - 1
    # Some cut at lines only, one nowhere.
    least = 10 if not family.byte_level else 0 if name == "superbpe" else 50
    assert cuts >= least


PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def gpt2_like(engine: Engine) -> None:
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)


def smollm_like(engine: Engine) -> None:
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )


def split_like(digits: str) -> Callable[[Engine], None]:
    def prepare(engine: Engine) -> None:
        split = pre_tokenizers.Split(Regex(PATTERN.replace("DIGITS", digits)), "isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        engine.normalizer = normalizers.NFC()
        engine.pre_tokenizer = pre_tokenizers.Sequence([split, letters])

    return prepare


def llama2_like(engine: Engine) -> None:
    engine.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )


def gemma_like(engine: Engine) -> None:
    engine.normalizer = normalizers.Replace(" ", "▁")
    engine.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")


def metaspace_like(scheme: str, split: bool) -> Callable[[Engine], None]:
    def prepare(engine: Engine) -> None:
        engine.pre_tokenizer = pre_tokenizers.Metaspace("▁", scheme, split)

    return prepare


SPACES_ARE_LETTERS = {
    "llama2": llama2_like,
    "gemma": gemma_like,
    "mistral": metaspace_like("first", False),
    "always": metaspace_like("always", True),
    "never": metaspace_like("never", True),
}
PIPELINES = {
    "gpt2": gpt2_like,
    "smollm": smollm_like,
    "llama3": split_like(r"\p{N}{1,3}"),
    "qwen2": split_like(r"\p{N}"),
    **SPACES_ARE_LETTERS,
}


@pytest.mark.parametrize("name", PIPELINES)
def test_tokenizer_json_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(0)
    spaces_are_letters = name in SPACES_ARE_LETTERS
    if spaces_are_letters:
        letters = [c.replace(" ", "▁") for c in dict.fromkeys(ALPHABET)]
        # Sentencepiece's vocabularies have a space at the beginning of a token, or in a run.
        pairs = [(a, b) for a in letters for b in letters if b != "▁" or a == "▁"]
        words = [f"<0x{byte:02X}>" for byte in range(256)] + letters
    else:
        letters = [BYTE_LETTERS[byte] for byte in sorted(set(ALPHABET.encode()))]
        pairs = [(a, b) for a in letters for b in letters]
        words = [*BYTE_LETTERS]
    source.shuffle(pairs)
    pairs = pairs[:6000]
    words = list(dict.fromkeys([*words, *(a + b for a, b in pairs)]))
    vocab = {word: id for id, word in enumerate(words)}
    engine = Engine(models.BPE(vocab=vocab, merges=pairs, byte_fallback=spaces_are_letters))
    PIPELINES[name](engine)
    engine.add_special_tokens(["<|im_end|>", "<|reserved_100|>"])
    encoder = HuggingFaceEncoder(engine)
    assert encoder._cuts is not None
    cuts = 0
    for text in texts("json", 300):
        whole = engine.encode(text, add_special_tokens=False).ids
        assert ids_in_parts(encoder, text, monkeypatch) == whole, text
        with monkeypatch.context() as patch:
            patch.setattr(cutting, "PART", 1)
            cuts += len(list(encoder._cuts.parts(text))) - 1
    assert cuts > 100


def test_unigram_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(1)
    letters = [c for c in dict.fromkeys(ALPHABET) if c not in " \u0301é"]
    words = {a + b: -source.random() for a in letters[:20] for b in ["▁", *letters[:20]]}
    words |= {letter: -source.random() for letter in letters[:40]} | {"▁": -1.0, "▁a": -0.1}
    tokens = {"<unk>": (UNKNOWN, 0.0), **{w: (NORMAL, s) for w, s in words.items()}}
    tokens |= {"user": (USER_DEFINED, 0.0)}
    encoder: Any = tokenizer_from_gguf(metadata("t5", tokens, unknown_token_id=0))._encoder
    parts = 0
    for text in texts("unigram", 300):
        whole = [id for part in encoder.encode_parts(text, False) for id in part]
        with monkeypatch.context() as patch:
            patch.setattr("strata.text.unigram._TOGETHER", 1)
            found = list(encoder.encode_parts(text, False))
        parts += len(found) - 1
        assert [id for part in found for id in part] == whole, text
    assert parts > 100


KINDS = {
    "English": "The quick brown fox doesn't jump over the lazy dog; it can't be bothered. ",
    "Chinese": "今天天气很好，我们去公园散步吧。价格是１２３４元！",
    "Russian": "Съешь ещё этих мягких французских булок, да выпей чаю. ",
    "Arabic": "اللغة العربية جميلة، وتُكتب من اليمين إلى اليسار. ",
    "Hindi": "हिन्दी में क्या हो रहा है? यह एक परीक्षण है। ",
    "Korean": "한국어 문장입니다. 띄어쓰기가 있고요. ",
    "capitals": "THE QUICK BROWN FOX. ",
    "digits": "0123456789",
    "base64": "TWFuIGlzIGRpc3Rpbmd1aXNoZWQ+sbm90IG9ubHk/",
    "lines": "for x in y:\n    print(x)\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_usual_texts_have_short_parts(smollm2_path: Path, kind: str) -> None:
    """The families of the commonest models, and megabytes of text."""
    text = KINDS[kind] * (1_000_000 // len(KINDS[kind].encode()))
    for family in ("smollm", "llama-bpe", "qwen2"):
        cuts = pre_tokenizer(family).cuts
        parts = list(cuts.parts(text))
        assert "".join(parts) == text
        longest = max(len(part.encode()) for part in parts)
        assert cuts.longest(text) == longest
        assert longest < 6 * cutting.PART


def test_what_cannot_be_cut_is_known(smollm2_path: Path) -> None:
    from strata.formats import open_model
    from strata.text import load_tokenizer

    with open_model(smollm2_path) as file:
        tokenizer = load_tokenizer(file)
    assert tokenizer.working_bytes("word " * 100_000) < 2 * LIBRARY_BYTE * cutting.PART
    assert tokenizer.working_bytes("A" * 500_000) == LIBRARY_BYTE * 500_000
    assert tokenizer.working_bytes("1" * 500_000) <= LIBRARY_BYTE * cutting.PART
    ids = tokenizer.encode("1" * 20_000 + " end")
    assert len(ids) == 20_001


def test_sentencepiece_words_are_cut_one_at_a_time() -> None:
    tokenizer = tokenizer_from_gguf(sentencepiece({"▁a": -1.0, "b": -2.0, "ab": -1.5}))
    assert tokenizer.working_bytes("ab " * 100_000) < 10_000
    assert tokenizer.working_bytes("ab" * 100_000) > 100_000
