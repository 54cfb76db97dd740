"""A Tokenizer from a Hugging Face directory: tokenizer.json and the small files beside it."""

from __future__ import annotations

import base64
import json
import mmap
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from strata.formats.errors import shown
from strata.formats.side_files import check_size, read_object_if_there, read_template
from strata.records import dataclass
from strata.text.bpe import letters_to_bytes
from strata.text.engine_ids import ids_of
from strata.text.errors import TokenizerError
from strata.text.json_cuts import known_cuts
from strata.text.pipeline import check_pipeline, failures_named
from strata.text.sentencepiece import SPACE
from strata.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    import tokenizers

_NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_CHARACTER_MAP = re.compile(rb'"precompiled_charsmap"\s*:\s*"')
_JSON_MARKS = re.compile(rb'\[|\]|"(?:[^"\\]|\\.)*"')
_MAX_TEMPLATES = 64
_TOGETHER = 1 << 16
_TOGETHER_NORMALIZED = 1 << 9
_MAX_REPLACEMENT = 256
"""Bytes that a character map makes of one character, or some, at most."""
_MAX_SURROUNDING = 64
_TEMPLATE_DIRECTORIES = ("additional_chat_templates", "chat_templates")


def tokenizer_from_directory(path: Path, room: int | None = None) -> Tokenizer:
    """Build the tokenizer of a model directory. `room` bounds the bytes that reading one of its
    small files may take.

    Reads tokenizer.json, and where present tokenizer_config.json, special_tokens_map.json,
    generation_config.json, config.json, chat_template.jinja and named templates beside it.
    Raises TokenizerError when tokenizer.json is missing, malformed or decodes in a way not known.
    """
    path = Path(path)
    engine, config, names = directory_engine(path, room)
    with failures_named(str(path / "tokenizer.json"), foreign=True):
        check_pipeline(engine, str(path / "tokenizer.json"))
        return _assemble(path, engine, config, names)


def directory_engine(
    path: Path, room: int | None = None
) -> tuple[tokenizers.Tokenizer, Mapping[str, Any], Mapping[str, str]]:
    """The library's tokenizer of a model directory, with the tokens that only
    tokenizer_config.json declares; that file; and the texts of special tokens by their names."""
    engine = _open_engine(path / "tokenizer.json")
    config = read_object_if_there(path / "tokenizer_config.json", room)
    stated = {**read_object_if_there(path / "special_tokens_map.json", room), **config}
    names = _special_names(stated)
    with failures_named(str(path / "tokenizer.json"), foreign=True):
        _add_missing_tokens(engine, config, names)
    return engine, config, names


def _assemble(
    path: Path,
    engine: tokenizers.Tokenizer,
    config: Mapping[str, Any],
    names: Mapping[str, str],
) -> Tokenizer:

    bos, eos = (engine.token_to_id(names[n]) if n in names else None for n in _NAMED[:2])
    if engine.post_processor is not None:
        prefix, suffix = _surroundings(engine)
    else:
        prefix = [bos] if config.get("add_bos_token") and bos is not None else []
        suffix = [eos] if config.get("add_eos_token") and eos is not None else []
    pieces = HuggingFacePieces(engine)
    return Tokenizer(
        encoder=HuggingFaceEncoder(engine),
        pieces=pieces,
        bos_id=bos,
        eos_id=eos,
        stop_ids=_stop_ids(path, eos, len(pieces)),
        prefix_ids=prefix,
        suffix_ids=suffix,
        strips_leading_space=pieces.strips_leading_space,
        special_tokens=names,
        chat_templates=_chat_templates(path, config),
    )


def count_merges(path: Path) -> tuple[int, bool] | None:
    """How many merges the tokenizer.json of a model directory has, and whether each is a list of
    two, without building anything; None if there is no such file. What looks like no merges at all
    counts as none."""
    file = Path(path) / "tokenizer.json"
    if not file.is_file() or not file.stat().st_size:
        return None
    check_size(file)
    # Mapped: a buffer of that size would teach the allocator to keep what is freed.
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return _count_merges(text)


def _count_merges(text: mmap.mmap) -> tuple[int, bool]:
    start = text.rfind(b'"merges"')
    opening = text.find(b"[", start) if start >= 0 else -1
    if opening < 0:
        return 0, False
    strings, depth, pairs = 0, 0, 0
    for match in _JSON_MARKS.finditer(text, opening):
        mark = match[0]
        if mark == b"[":
            depth += 1
            pairs += depth == 2
        elif mark == b"]":
            depth -= 1
            if depth == 0:
                break
        else:
            strings += 1
    # Newer files write each merge as a list of two, older ones as one text.
    return pairs or strings, pairs > 0


def count_values(path: Path) -> int:
    """About how many values the tokenizer.json of a model directory has, without reading it whole:
    hardly fewer than it has tokens and parts of merges together."""
    with (Path(path) / "tokenizer.json").open("rb") as file:
        return sum(part.count(b",") for part in iter(lambda: file.read(_TOGETHER), b""))


class HuggingFaceEncoder:
    """tokenizer.json's own pipeline, with and without its special tokens.

    A Unigram model that lists its control tokens with a score may still choose them for text that
    spells them: the library offers no way to leave them out.
    """

    def __init__(self, engine: tokenizers.Tokenizer) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # the switch below belongs to the engine, not to a call
        self._cuts, self._adds_space, self._byte = known_cuts(engine)

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        first = True
        for part in (text,) if self._cuts is None else self._cuts.parts(text):
            if self._adds_space and not first:
                part = part.removeprefix(" ")
            first = False
            with self._lock, failures_named("tokenizer.json", foreign=True):
                self._engine.encode_special_tokens = not parse_special
                ids = ids_of(self._engine, part)
            yield ids

    def working_bytes(self, text: str) -> int:
        normalizer = self._engine.normalizer
        if self._cuts is not None and normalizer is None:
            return self._byte * self._cuts.longest(text)
        # Of what a part becomes, for that may be longer.
        most = 0
        with failures_named("tokenizer.json", foreign=True):
            for part in (text,) if self._cuts is None else self._cuts.parts(text):
                size = 0
                for start in range(0, len(part), _TOGETHER_NORMALIZED):
                    some = part[start : start + _TOGETHER_NORMALIZED]
                    made = some if normalizer is None else normalizer.normalize_str(some)
                    size += max(len(some.encode()), len(made.encode()))
                most = max(most, size)
        return self._byte * most


class HuggingFacePieces:
    """Bytes of the tokens, by the scheme that tokenizer.json's decoder states."""

    def __init__(self, engine: tokenizers.Tokenizer) -> None:
        scheme = _scheme(engine)
        self._byte_level, self._byte_fallback = scheme.byte_level, scheme.byte_fallback
        self._continuation = scheme.continuation
        self.strips_leading_space = scheme.strips
        added = engine.get_added_tokens_decoder()
        self._added = {id: token.content for id, token in added.items()}
        self._special = {id for id, token in added.items() if token.special}
        self._engine = engine
        ids = engine.get_vocab(with_added_tokens=True).values()
        self._size = 1 + max(ids, default=-1)

    def __len__(self) -> int:
        return self._size

    def is_special(self, id: int) -> bool:
        return id in self._special

    def piece(self, id: int) -> bytes:
        added = self._added.get(id)
        text = added if added is not None else self._engine.id_to_token(id)
        if text is None:
            return b""
        if self._byte_level:
            return text.encode() if added is not None else letters_to_bytes(text)
        if self._byte_fallback and len(text) == 6 and text[:3] == "<0x" and text[5] == ">":
            try:
                return bytes([int(text[3:5], 16)])
            except ValueError:
                pass
        if self._continuation is not None:
            inside = self._continuation and text.startswith(self._continuation)
            return (text[len(self._continuation) :] if inside else f" {text}").encode()
        return text.replace(SPACE, " ").encode()


@dataclass
class _Scheme:
    """How tokens are written: ``byte_level`` letters, named bytes (``byte_fallback``), or words
    with a space before each that does not begin with the ``continuation``; ``strips`` the space at
    the beginning."""

    byte_level: bool = False
    byte_fallback: bool = False
    strips: bool = False
    continuation: str | None = None


def _scheme(engine: tokenizers.Tokenizer) -> _Scheme:
    """From the decoder. Spaces before punctuation, which WordPiece's may clean up, stay."""
    state = engine.decoder.__getstate__() if engine.decoder is not None else b"null"
    decoder = json.loads(state)
    steps = decoder["decoders"] if decoder and decoder["type"] == "Sequence" else [decoder]
    found = _Scheme()
    for step in steps:
        kind = step["type"] if step else None
        if kind == "ByteLevel":
            found.byte_level = True
        elif kind == "ByteFallback":
            found.byte_fallback = True
        elif kind == "Metaspace" and step.get("replacement") == SPACE:
            found.strips = found.strips or step.get("prepend_scheme", "always") != "never"
        elif kind == "Strip" and (step["content"], step["start"], step["stop"]) == (" ", 1, 0):
            found.strips = True
        elif kind in ("WordPiece", None):
            # Without a decoder the library puts a space between all tokens.
            found.continuation = step["prefix"] if step else ""
            found.strips = True
        elif kind == "Replace" and step == {
            "type": "Replace",
            "pattern": {"String": SPACE},
            "content": " ",
        }:
            pass
        elif kind != "Fuse":
            raise TokenizerError(
                f"tokenizer.json: decoder {json.dumps(step)} is not known; known are ByteLevel, "
                "ByteFallback, Metaspace, WordPiece, Fuse, a Replace of \u2581 and a Strip of one "
                "space"
            )
    return found


def _open_engine(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    if not path.is_file():
        raise TokenizerError(
            f"{path} is missing; a model directory needs it (transformers writes it with "
            "save_pretrained of a fast tokenizer)"
        )
    check_size(path)
    _check_character_maps(path)
    with failures_named(str(path), foreign=True):
        engine = tokenizers.Tokenizer.from_file(str(path))
        engine.no_truncation()
        engine.no_padding()
    return engine


def _check_character_maps(path: Path) -> None:
    """The library makes room for as many entries as a map says that it has, and where the system
    refuses it the whole process ends."""
    if not path.stat().st_size:
        return
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        for match in _CHARACTER_MAP.finditer(text):
            start = match.end()
            head = text[start : start + 8]
            length = (text.find(b'"', start) - start) * 3 // 4
            try:
                said = int.from_bytes(base64.b64decode(head)[:4], "little")
            except ValueError:
                continue  # no base64: the library says so
            if said > length:
                raise TokenizerError(
                    f"{path}: a character map of {length} bytes says that it has {said}"
                )
            with suppress(ValueError):
                table = base64.b64decode(text[start : text.find(b'"', start)])
                longest = max(map(len, table[4 + said :].split(b"\0")))
                if longest > _MAX_REPLACEMENT:
                    raise TokenizerError(
                        f"{path}: its character map has a replacement of {longest} bytes; at most "
                        f"{_MAX_REPLACEMENT} are put in"
                    )


def _special_names(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and so on, written as a string or as an object with `content`."""
    names = {}
    for name in _NAMED:
        value = config.get(name)
        text = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(text, str):
            names[name] = text
    return names


def _add_missing_tokens(
    engine: tokenizers.Tokenizer, config: Mapping[str, Any], names: Mapping[str, str]
) -> None:
    """Tokens that only tokenizer_config.json declares, as transformers adds them."""
    from tokenizers import AddedToken

    known = {token.content for token in engine.get_added_tokens_decoder().values()}
    declared = config.get("added_tokens_decoder")
    tokens: dict[str, AddedToken] = {}
    if isinstance(declared, Mapping):
        for key in sorted(declared, key=lambda key: int(key) if key.isdecimal() else -1):
            flags = declared[key]
            if not isinstance(flags, Mapping) or not isinstance(flags.get("content"), str):
                raise TokenizerError(f"tokenizer_config.json: added_tokens_decoder[{key!r}]")
            text = flags["content"]
            special = bool(flags.get("special", False)) or text in names.values()
            tokens[text] = AddedToken(
                text,
                single_word=bool(flags.get("single_word", False)),
                lstrip=bool(flags.get("lstrip", False)),
                rstrip=bool(flags.get("rstrip", False)),
                normalized=bool(flags.get("normalized", not special)),
                special=special,
            )
    for text in names.values():
        tokens.setdefault(text, AddedToken(text, special=True, normalized=False))
    engine.add_tokens([token for text, token in tokens.items() if text not in known])


def _surroundings(engine: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and after a text."""
    inner: list[int] = engine.encode("a", add_special_tokens=False).ids
    outer: list[int] = engine.encode("a", add_special_tokens=True).ids
    for start in range(len(outer) - len(inner) + 1):
        if outer[start : start + len(inner)] == inner:
            if len(outer) - len(inner) > _MAX_SURROUNDING:
                raise TokenizerError(
                    f"tokenizer.json: its post-processor adds {len(outer) - len(inner)} tokens; at "
                    f"most {_MAX_SURROUNDING} are added"
                )
            return outer[:start], outer[start + len(inner) :]
    raise TokenizerError("tokenizer.json: its post-processor changes the text's own tokens")


def _stop_ids(path: Path, eos: int | None, vocabulary: int) -> frozenset[int]:
    """The end-of-sequence token and every id that the model's settings call one. Ids outside the
    vocabulary, as files write for "none", do not count."""
    stops = set() if eos is None else {eos}
    for name in ("generation_config.json", "config.json"):
        value = read_object_if_there(path / name).get("eos_token_id")
        for id in value if isinstance(value, list) else [] if value is None else [value]:
            if not isinstance(id, int) or isinstance(id, bool):
                raise TokenizerError(f"{path / name}: eos_token_id is {shown(value)}: no token id")
            if 0 <= id < vocabulary:
                stops.add(id)
    return frozenset(stops)


def _chat_templates(path: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Files win over tokenizer_config.json, where templates are one string or a list of names."""
    templates: dict[str, str] = {}
    for directory in _TEMPLATE_DIRECTORIES:
        files = sorted((path / directory).glob("*.jinja"))
        if len(files) > _MAX_TEMPLATES:
            raise TokenizerError(
                f"{path / directory} has {len(files)} chat templates; at most {_MAX_TEMPLATES} are "
                "read"
            )
        templates.update((file.stem, read_template(file)) for file in files)
    if (path / "chat_template.jinja").is_file():
        templates["default"] = read_template(path / "chat_template.jinja")
    if templates:
        return templates
    stored = config.get("chat_template")
    if isinstance(stored, str):
        return {"default": stored}
    for entry in stored if isinstance(stored, list) else []:
        if not isinstance(entry, Mapping) or not all(
            isinstance(entry.get(key), str) for key in ("name", "template")
        ):
            raise TokenizerError("tokenizer_config.json: chat_template is not a list of templates")
        templates[entry["name"]] = entry["template"]
    return templates


def directory_templates(path: Path) -> dict[str, str]:
    """The chat templates beside a model, by name. TokenizerError for what cannot be one."""
    return _chat_templates(path, read_object_if_there(path / "tokenizer_config.json"))
