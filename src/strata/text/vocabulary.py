"""The vocabulary of a GGUF file: tokens, their kinds, and the special ids, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from enum import IntFlag
from itertools import repeat

from strata.records import dataclass
from strata.text.errors import TokenizerError
from strata.text.gguf_keys import TokenizerKeys
from strata.text.special import SpecialToken, SpecialTokens


class Kind(IntFlag):
    """What a token is. A file gives one; names that look like control tokens add `CONTROL`."""

    UNDEFINED = 0
    UNKNOWN = 1
    UNUSED = 2
    NORMAL = 4
    CONTROL = 8
    USER_DEFINED = 16
    BYTE = 32


_FILE_NORMAL = 1
_FILE_KINDS = {
    _FILE_NORMAL: Kind.NORMAL,
    2: Kind.UNKNOWN,
    3: Kind.CONTROL,
    4: Kind.USER_DEFINED,
    5: Kind.UNUSED,
    6: Kind.BYTE,
}
# Plain integers: flag arithmetic on a quarter of a million members is slow.
_UNKNOWN, _CONTROL, _USER_DEFINED = (
    int(kind) for kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)
)

# Tokens known by their names. Files rarely say which tokens end a turn, so llama.cpp, and with it
# everybody, goes by these.
_END_OF_TURN = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "<end_of_utterance>",
)
_STOPS = (
    *_END_OF_TURN,
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "</s>",
    "<|eom_id|>",
    "[EOS]",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "[e~[",
)
_FILL_IN_THE_MIDDLE = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
_FILL_IN_STOPS = ("fim_pad", "fim_rep", "fim_sep")
# Always shown: the channel markup of gpt-oss.
_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")

_ID_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "eot": "eot_token_id",
    "eom": "eom_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # the spelling of the specification
    "pad": "padding_token_id",
    "mask": "mask_token_id",
    "fim_pre": "fim_pre_token_id",
    "fim_suf": "fim_suf_token_id",
    "fim_mid": "fim_mid_token_id",
    "fim_pad": "fim_pad_token_id",
    "fim_rep": "fim_rep_token_id",
    "fim_sep": "fim_sep_token_id",
}
_OLD_ID_KEYS = {
    "fim_pre": "prefix_token_id",
    "fim_suf": "suffix_token_id",
    "fim_mid": "middle_token_id",
}


@dataclass
class Vocabulary:
    """Tokens by id, what they are, and the ids with a part to play (see `read_vocabulary`)."""

    tokens: Sequence[str]  # as in the file, see `text`
    kinds: bytearray
    scores: Sequence[float]
    ids: dict[str, int]  # by text
    special: dict[str, int]  # bos, eos, eot, eom, unk, sep, pad, mask, fim_*; absent when none
    stops: set[int] = field(default_factory=set)

    def text(self, id: int) -> str:
        """The text of token `id`."""
        return token_text(self.tokens, id)

    def has(self, id: int, kinds: int) -> bool:
        """Whether token `id` is of any of `kinds`."""
        return bool(self.kinds[id] & kinds)


def read_vocabulary(keys: TokenizerKeys, defaults: Mapping[str, int]) -> Vocabulary:
    """Read and check `tokenizer.ggml.*`; `defaults` are the special ids when a file has no key."""
    tokens = keys.strings("tokens")
    if not tokens:
        raise TokenizerError("tokenizer.ggml.tokens is empty")
    count = len(tokens)
    types = keys.numbers("token_type", count, _FILE_NORMAL)
    kinds = bytearray(map(_FILE_KINDS.get, types, repeat(Kind.UNDEFINED)))
    scores = keys.numbers("scores", count, 0.0)
    vocabulary = Vocabulary(
        tokens,
        kinds,
        scores,
        _ids_by_text(tokens),
        _special_ids(keys, kinds, defaults),
    )
    _mark_by_name(vocabulary)
    return vocabulary


def _ids_by_text(tokens: Sequence[str]) -> dict[str, int]:
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    if "" in ids:
        ids = {text or _empty_name(id): id for id, text in enumerate(tokens)}
    return ids


def token_text(tokens: Sequence[str], id: int) -> str:
    """The text of token `id`; one without any has a name of its own."""
    return tokens[id] or _empty_name(id)


def _empty_name(id: int) -> str:
    return f"[EMPTY_{id}]"


def _special_ids(
    keys: TokenizerKeys, kinds: Sequence[int], defaults: Mapping[str, int]
) -> dict[str, int]:
    count = len(kinds)
    # A default that is an ordinary word in this vocabulary would end texts at that word.
    untyped = not keys.has("token_type")
    found = {
        name: id
        for name, id in defaults.items()
        if id < count and (untyped or kinds[id] & (_CONTROL | _UNKNOWN))
    }
    for table in (_ID_KEYS, _OLD_ID_KEYS):
        for name, key in table.items():
            id = keys.id(key)
            # Ids outside the vocabulary stand for "none".
            if id is not None and 0 <= id < count:
                found[name] = id
    return found


def _mark_by_name(vocabulary: Vocabulary) -> None:
    """Find the end-of-turn and fill-in tokens by name; make control tokens of what looks so."""
    ids, kinds, special, stops = (
        vocabulary.ids,
        vocabulary.kinds,
        vocabulary.special,
        vocabulary.stops,
    )

    def adopt(name: str, texts: Sequence[str]) -> None:
        if name not in special:
            found = next((text for text in texts if text in ids), None)
            if found is not None:
                special[name] = ids[found]
                kinds[ids[found]] |= _CONTROL

    adopt("eot", _END_OF_TURN)
    adopt("eom", ("<|eom_id|>",))
    for name, texts in _FILL_IN_THE_MIDDLE.items():
        adopt(name, texts)

    stops.update(special[name] for name in _FILL_IN_STOPS if name in special)
    for text in _STOPS:
        if text in ids:
            stops.add(ids[text])
            kinds[ids[text]] |= _CONTROL
    for text in _SHOWN:
        if text in ids:
            kinds[ids[text]] = _USER_DEFINED
    stops.update(special[name] for name in ("eos", "eot", "eom") if name in special)

    stop_texts = {vocabulary.text(id) for id in stops}
    # With these, <|end|> ends a message inside a turn (gpt-oss, solar-open).
    if {"<|return|>", "<|call|>"} <= stop_texts or (
        "<|flush|>" in stop_texts and stop_texts & {"<|call|>", "<|calls|>"}
    ):
        _unstop(vocabulary, "<|end|>", _USER_DEFINED)
    # With these, </s> is a strike-through tag (gemma 4, plamo).
    if stop_texts & {"<|tool_response>", "<|plamo:eos|>"}:
        _unstop(vocabulary, "</s>", int(Kind.NORMAL))


def _unstop(vocabulary: Vocabulary, text: str, kind: int) -> None:
    id = vocabulary.ids.get(text)
    if id in vocabulary.stops and id is not None:
        vocabulary.stops.remove(id)
        vocabulary.kinds[id] = kind


def special_tokens(vocabulary: Vocabulary, keys: TokenizerKeys) -> SpecialTokens:
    """The tokens recognised in text; what spaces they eat is known by the model's name only."""
    name = keys.general("name").lower()
    pre = keys.text("pre")
    architecture = keys.general("architecture")
    eats_left, eats_right, keeps_right = set[str](), False, set[str]()
    if any(part in pre for part in ("jina-v2-de", "jina-v2-es", "jina-v2-code")) or any(
        part in architecture for part in ("nomic-bert-moe", "jina-bert-v3")
    ):
        eats_left = {"<mask>"}
    elif "phi-3" in name or "phi3" in name:
        eats_right, keeps_right = True, {"<unk>", "<s>", "<|endoftext|>"}
    elif "modern-bert" in name:
        eats_left = {"[MASK]"}
    recognised = _CONTROL | _USER_DEFINED | _UNKNOWN
    return SpecialTokens(
        SpecialToken(
            id,
            vocabulary.text(id),
            only_on_request=bool(kind & (_CONTROL | _UNKNOWN)),
            strip_left=vocabulary.text(id) in eats_left,
            strip_right=eats_right and vocabulary.text(id) not in keeps_right,
        )
        for id, kind in enumerate(vocabulary.kinds)
        if kind & recognised
    )
