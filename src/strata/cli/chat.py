"""The interactive side of ``strata run``."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING

from strata.cli.answer import print_answer, print_stats
from strata.cli.console import remark
from strata.cli.entry import prepare_terminal, read_entry
from strata.errors import StrataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from strata.decode import SamplingParams
    from strata.llm import LLM, Chunk

_COMMAND = re.compile(r"/[a-z?]*")
_HELP = """\
/clear  forget the conversation
/bye    leave (also Ctrl-D)
/help   show this
Ctrl-C stops an answer. A text of several lines is pasted, or put between \"\"\" and \"\"\"."""


def chat(llm: LLM, params: SamplingParams, *, system: str | None, raw: bool, stats: bool) -> None:
    """Talk until /bye or the end of input. With ``raw`` every entry is continued on its own."""
    prepare_terminal()
    conversation = _Conversation(llm, params, system, raw)
    remark("/help lists commands; Ctrl-C stops an answer, Ctrl-D leaves")
    going = True
    while going:
        # An impatient second Ctrl-C may come while the first is being told of.
        with suppress(KeyboardInterrupt):
            try:
                going = _turn(conversation, stats)
            except KeyboardInterrupt:
                remark("\n(Ctrl-D or /bye leaves)")


def _turn(conversation: _Conversation, stats: bool) -> bool:
    """Read an entry and do what it asks; False to leave."""
    try:
        entry = read_entry()
    except EOFError:
        remark("")
        return False
    order = entry.strip()
    if _COMMAND.fullmatch(order):
        return _obey(order, conversation)
    try:
        if order:
            conversation.answer(entry, stats=stats)
    except KeyboardInterrupt:
        remark("(stopped)")
    except StrataError as error:
        remark(f"strata: error: {error}")
    return True


class _Conversation:
    """What was said so far. An answer that was stopped stays in it as far as it came."""

    def __init__(self, llm: LLM, params: SamplingParams, system: str | None, raw: bool) -> None:
        self._llm = llm
        self._params = params
        self._system = system
        self._raw = raw
        self._messages: list[dict[str, str]] = []
        self.clear()

    def clear(self) -> None:
        """Begin anew, with the system message if there is one."""
        self._messages = []
        if self._system is not None:
            self._messages.append({"role": "system", "content": self._system})

    def answer(self, entry: str, *, stats: bool) -> None:
        """Print the answer to ``entry`` and remember both; neither if nothing came of it."""
        heard: list[str] = []
        asked = [*self._messages, {"role": "user", "content": entry}]
        try:
            chunks = (
                self._llm.generate(entry, self._params, stream=True)
                if self._raw
                else self._llm.chat(asked, self._params, stream=True)
            )
            output = print_answer(_listen(chunks, heard))
        finally:
            if heard:
                self._messages = [*asked, {"role": "assistant", "content": "".join(heard)}]
        if output.finish_reason == "length":
            remark("(cut off at the token limit or the end of the context; /clear begins anew)")
        if stats:
            print_stats(self._llm, output)


def _listen(chunks: Iterator[Chunk], heard: list[str]) -> Iterator[Chunk]:
    for chunk in chunks:
        heard.append(chunk.text)
        yield chunk


def _obey(order: str, conversation: _Conversation) -> bool:
    """Do as told; False to leave."""
    if order == "/bye":
        return False
    if order == "/clear":
        conversation.clear()
        remark("(the conversation is forgotten)")
    elif order in ("/help", "/?", "/"):
        remark(_HELP)
    else:
        remark(f"there is no command {order}; /help lists those there are")
    return True
