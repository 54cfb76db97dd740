"""The Tokenizer: text to ids and back, whatever file the vocabulary came from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from strata.errors import UsageError
from strata.guard.known_templates import is_known
from strata.text.bpe import BpeEncoder
from strata.text.chat import ChatTemplate
from strata.text.errors import ChatTemplateError
from strata.text.stream import StreamDecoder

if TYPE_CHECKING:
    from strata.guard.rendering import GuardedRenderer

_TOOLS = re.compile(r"\btools\b")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Encoder(Protocol):
    """Text to ids, without the tokens that surround a prompt."""

    def encode_parts(self, text: str, parse_special: bool) -> Iterator[Sequence[int]]:
        """Ids of one part after another, cut where that changes nothing."""

    def working_bytes(self, text: str) -> int:
        """What encoding ``text`` takes at most, beside the text and its ids."""


class Pieces(Protocol):
    """Ids to bytes."""

    def __len__(self) -> int: ...

    def piece(self, id: int) -> bytes:
        """Bytes of a token as it would be printed, control tokens by their name."""

    def is_special(self, id: int) -> bool:
        """Whether the token is one that readers do not see (control, unknown)."""


class Tokenizer:
    """Encodes as the reference tokenizer of its model does, id for id.

    `vocab_size` counts the tokens of the vocabulary; a model may pad its embedding beyond it.
    `stop_ids` are the ids that end a generation (end of sequence, of turn, of message and kin).
    `add_bos` and `add_eos` say what `encode(add_special=True)` adds.
    """

    def __init__(
        self,
        *,
        encoder: Encoder,
        pieces: Pieces,
        bos_id: int | None,
        eos_id: int | None,
        stop_ids: frozenset[int],
        prefix_ids: Sequence[int],
        suffix_ids: Sequence[int],
        strips_leading_space: bool,
        special_tokens: Mapping[str, str],
        chat_templates: Mapping[str, str],
    ) -> None:
        self._encoder = encoder
        self._pieces = pieces
        self._prefix = list(prefix_ids)
        self._suffix = list(suffix_ids)
        self._strips_leading_space = strips_leading_space
        self.vocab_size = len(pieces)
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.stop_ids = stop_ids
        self.add_bos = bos_id is not None and bos_id in self._prefix
        self.add_eos = eos_id is not None and eos_id in self._suffix
        self.special_tokens = dict(special_tokens)
        self.renderer: GuardedRenderer | None = None
        self.chat_templates: dict[str, ChatTemplate] = {}
        self.use_chat_templates(chat_templates)

    def use_chat_templates(self, chat_templates: Mapping[str, str]) -> None:
        """Take these, by their names, for the model's own."""
        if self.renderer is None and not all(map(is_known, chat_templates.values())):
            from strata.guard.rendering import GuardedRenderer

            self.renderer = GuardedRenderer()
        self.chat_templates = {
            name: ChatTemplate(source, self.special_tokens, self.renderer)
            for name, source in chat_templates.items()
        }

    def expect_one_text(self) -> bool:
        """Whether building for the next text alone, which is mostly the only one, takes less: then
        that is done."""
        if not isinstance(self._encoder, BpeEncoder):
            return False
        self._encoder.expect_one_text()
        return True

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Ids of `text`.

        With `add_special` the tokens that the model wants around a prompt are added; with
        `parse_special` text that spells a control token becomes that token, otherwise it is
        ordinary text. User-defined tokens are always recognised. Lone surrogates, which no UTF-8
        text holds, are read as U+FFFD.
        """
        parts = self.encode_parts(text, add_special=add_special, parse_special=parse_special)
        return list(chain.from_iterable(parts))

    def encode_parts(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> Iterator[Sequence[int]]:
        """The ids of ``encode`` as they come, some at a time, so that long texts need not be held
        with all their ids, and can be given up."""
        if add_special:
            yield self._prefix
        if text:
            yield from self._encoder.encode_parts(_valid(text), parse_special)
        if add_special:
            yield self._suffix

    def working_bytes(self, text: str) -> int:
        """Memory that encoding ``text`` takes at most, beside the text and its ids: of its longest
        stretch that cannot be cut."""
        return self._encoder.working_bytes(_valid(text))

    def token_bytes(self, id: int, *, special: bool = False) -> bytes:
        """Raw bytes of one token; empty for control tokens unless `special`.

        Ids at or past `vocab_size` (rows that pad an embedding) have no text.
        """
        if id < 0:
            raise UsageError(f"token id {id} is negative")
        if id >= self.vocab_size or (not special and self._pieces.is_special(id)):
            return b""
        return self._pieces.piece(id)

    def decode(
        self, ids: Sequence[int], *, skip_special: bool = True, continuing: bool = False
    ) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Sentencepiece vocabularies put a space before the first word: it is taken away again unless
        the ids are `continuing` a text that already began (a completion after its prompt).
        """
        data = b"".join([self.token_bytes(i, special=not skip_special) for i in ids])
        if self._strips_leading_space and not continuing:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def stream(self, *, skip_special: bool = True, continuing: bool = False) -> StreamDecoder:
        """A decoder to push ids into one at a time; same result as `decode`."""
        return StreamDecoder(
            lambda id: self.token_bytes(id, special=not skip_special),
            self._strips_leading_space and not continuing,
        )

    def usual_variables(self, tools: Sequence[Mapping[str, Any]] | None = None) -> dict[str, Any]:
        """What chat templates of this model read by llama.cpp's names and nobody sends: today's
        date, without which some tell the day that their model was released, and the tools as text
        where they are called ``functions``."""
        now = datetime.now()
        known = {"date_string": f"{now:%d %b %Y}", "datetime": f"{now:%b %d %Y}"}
        sources = [template.source for template in self.chat_templates.values()]
        found = {name: told for name, told in known.items() if any(name in s for s in sources)}
        if any("functions" in s and not _TOOLS.search(s) for s in sources):
            found["functions"] = json.dumps(tools, indent=2) if tools else ""
        return found

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The template named `default`, or the only one, or none."""
        templates = self.chat_templates
        if len(templates) == 1:
            return next(iter(templates.values()))
        return templates.get("default")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        /,
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> str:
        """The prompt for `messages`; encode it with `parse_special=True` and no `add_special`.

        `chat_template` is the name of one of the model's templates or the text of another; without
        it the template `tool_use` is taken when there are tools and a model has one, else the
        default. Further keywords reach the template as variables.
        """
        return self._choose_template(chat_template, tools).render(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=documents,
            **kwargs,
        )

    def _choose_template(self, wanted: str | None, tools: object) -> ChatTemplate:
        if wanted is not None:
            if wanted in self.chat_templates:
                return self.chat_templates[wanted]
            return ChatTemplate(wanted, self.special_tokens, self.renderer)
        if tools and "tool_use" in self.chat_templates:
            return self.chat_templates["tool_use"]
        template = self.chat_template
        if template is not None:
            return template
        if self.chat_templates:
            names = ", ".join(sorted(self.chat_templates))
            raise ChatTemplateError(
                f"the model has several chat templates and no default; name one of: {names}"
            )
        raise ChatTemplateError(
            "the model has no chat template; pass one (chat_template=...) or use a plain prompt"
        )


def _valid(text: str) -> str:
    return text if text.isascii() else _LONE_SURROGATE.sub("\ufffd", text)
