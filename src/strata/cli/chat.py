"""The interactive side of ``strata run``."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from strata.cli import chat_commands
from strata.cli.answer import print_answer, print_stats
from strata.cli.console import counted, remark
from strata.cli.entry import prepare_terminal, read_entry
from strata.errors import StrataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from strata.answers import Chunk
    from strata.decode import SamplingParams
    from strata.llm import LLM
    from strata.text.turns import Message

WhenFull = Literal["drop", "refuse"]

# A path or a fraction at the beginning of a line is none.
_COMMAND = re.compile(r"/([a-z?]*)(?:\s+(.*))?", re.DOTALL)
_LEAVE = ("bye", "exit", "quit", "q")

# What an answer should find free: so many positions, or this share of a short context.
_ANSWER, _ANSWER_SHARE = 512, 4


def chat(
    llm: LLM,
    params: SamplingParams,
    *,
    system: str | None,
    raw: bool,
    stats: bool,
    when_full: WhenFull = "drop",
) -> None:
    """Talk until /bye or the end of input. With ``raw`` every entry is continued on its own."""
    prepare_terminal()
    conversation = _Conversation(llm, params, system, raw, stats, when_full)
    remark("/help lists commands; Ctrl-C stops an answer, Ctrl-D leaves")
    going = True
    while going:
        # An impatient second Ctrl-C may come while the first is being told of.
        with suppress(KeyboardInterrupt):
            try:
                going = _turn(conversation)
            except KeyboardInterrupt:
                remark("\n(Ctrl-D or /bye leaves)")


def _turn(conversation: _Conversation) -> bool:
    """Read an entry and do what it asks; False to leave."""
    try:
        entry = read_entry()
    except EOFError:
        remark("")
        return False
    order = _COMMAND.fullmatch(entry.rstrip())
    try:
        if order is not None:
            return _obey(order[1], (order[2] or "").strip(), conversation)
        if entry.strip():
            conversation.answer(entry)
    except KeyboardInterrupt:
        remark("(stopped)")
    except StrataError as error:
        remark(f"strata: error: {error}")
    return True


class _Conversation:
    """What was said so far. An answer that was stopped stays in it as far as it came."""

    def __init__(
        self,
        llm: LLM,
        params: SamplingParams,
        system: str | None,
        raw: bool,
        stats: bool,
        when_full: WhenFull,
    ) -> None:
        self._llm = llm
        self.params = params
        self.stats = stats
        self._raw = raw
        self._when_full = when_full
        self.messages: list[dict[str, str]] = []
        self.system = system

    @property
    def system(self) -> str | None:
        """What the model is told before all else."""
        first = self.messages[0] if self.messages else {}
        return first["content"] if first.get("role") == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        rest = self.messages if self.system is None else self.messages[1:]
        told = [] if text is None else [{"role": "system", "content": text}]
        self.messages = [*told, *rest]

    def clear(self) -> None:
        """Begin anew, with the system message if there is one."""
        self.messages = [] if self.system is None else self.messages[:1]

    def answer(self, entry: str) -> None:
        """Print the answer to ``entry`` and remember both; neither if nothing came of it."""
        heard: list[str] = []
        asked: list[dict[str, Any]] = [*self.messages, {"role": "user", "content": entry}]
        try:
            if self._raw:
                chunks = self._llm.generate(entry, self.params, stream=True)
            else:
                ids, asked = self._fitting(asked)
                left = self._llm.context - len(ids)
                params = self.params
                if params.max_tokens is not None and 0 < left < params.max_tokens:
                    params = replace(params, max_tokens=left)
                chunks = self._llm.generate([ids], params, stream=True, continuing=False)
            output = print_answer(_listen(chunks, heard))
        finally:
            if heard:
                self.messages = [*asked, {"role": "assistant", "content": "".join(heard)}]
        if output.finish_reason == "length":
            if len(output.token_ids) == self.params.max_tokens:
                count = counted(len(output.token_ids), "token")
                remark(f"(cut off after {count}: /set max_tokens changes that)")
            else:
                remark(f"(cut off: the context of {self._llm.context} positions is full)")
        if self.stats:
            print_stats(self._llm, output)

    def _fitting(self, asked: list[dict[str, Any]]) -> tuple[list[int], list[dict[str, Any]]]:
        """Token ids of a conversation that leave room for an answer, and what is left of it."""
        from strata.engine.texts import chat_ids
        from strata.text.turns import without_oldest

        llm, latest = self._llm, [0]

        def encode(messages: Sequence[Message]) -> int:
            nonlocal latest
            latest = chat_ids(llm.tokenizer, messages, llm.ledger).tolist()
            return len(latest)

        most = llm.context - min(llm.context // _ANSWER_SHARE, self.params.max_tokens or _ANSWER)
        kept, dropped = without_oldest(asked, encode, most=most, aim=most // 2)
        if dropped and self._when_full == "refuse":
            raise UsageError(
                f"the context of {llm.context} positions is full; /clear begins anew, and "
                "--context asks for a longer one"
            )
        if dropped:
            turns = "turn was" if dropped == 1 else f"{dropped} turns were"
            remark(f"(the context of {llm.context} positions is full: the oldest {turns} left out)")
            encode(kept)
        return latest, [dict(message) for message in kept]


def _listen(chunks: Iterator[Chunk], heard: list[str]) -> Iterator[Chunk]:
    for chunk in chunks:
        heard.append(chunk.text)
        yield chunk


def _obey(order: str, rest: str, conversation: _Conversation) -> bool:
    """Do as told; False to leave."""
    if order in _LEAVE:
        return False
    if order == "clear":
        conversation.clear()
        remark("(the conversation is forgotten)")
    elif order in ("set", "show"):
        _set(rest, conversation)
    elif order in ("save", "load"):
        if not rest:
            raise UsageError(f"/{order} needs the name of a file")
        path = Path(rest).expanduser()
        if order == "save":
            chat_commands.write_conversation(path, conversation.messages)
        else:
            conversation.messages = chat_commands.read_conversation(path)
        did = "saved" if order == "save" else "loaded"
        remark(f"({counted(len(conversation.messages), 'message')} {did})")
    elif order in ("help", "?", ""):
        remark(chat_commands.HELP)
    else:
        remark(f"there is no command /{order}; /help lists those there are")
    return True


def _set(rest: str, conversation: _Conversation) -> None:
    name, _, value = rest.partition(" ")
    value = value.strip()
    if name and not value:
        raise UsageError(f"/set {name} needs a value; /set alone shows them all")
    if name == "system":
        conversation.system = None if value == "off" else value
    elif name == "stats":
        if value not in ("on", "off"):
            raise UsageError("stats are on or off")
        conversation.stats = value == "on"
    elif name:
        conversation.params = chat_commands.changed(conversation.params, name, value)
    else:
        stats = "on" if conversation.stats else "off"
        shown = {"system": conversation.system or "off", **chat_commands.shown(conversation.params)}
        for setting, text in {**shown, "stats": stats}.items():
            remark(f"{setting:<19}{text}")
