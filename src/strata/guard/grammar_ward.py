"""Compiling a grammar and walking it: what a ward for grammars does.

By llguidance, which walks a vocabulary's bytes beside an Earley parser, so that a mask takes well
under a millisecond: https://github.com/guidance-ai/llguidance
"""

from __future__ import annotations

import json
import resource
import socket
import struct
from collections import deque
from time import process_time
from typing import Any, cast

import llguidance
from llguidance import gbnf_to_lark

from strata.guard import limits, wire
from strata.guard.gbnf import spelt
from strata.guard.wire import COMMAND, VOCABULARY

_MESSAGE = 400
_OPEN_FILES = 3
"""Standard input, output and errors: what a new descriptor would be numbered beyond."""


class _Encoder:
    """The attributes that llguidance looks for."""

    def __init__(self, data: bytearray) -> None:
        count, bos, specials, ends = VOCABULARY.unpack_from(data)
        numbers = struct.unpack_from(f"<{specials + ends + count}I", data, VOCABULARY.size)
        at = VOCABULARY.size + 4 * len(numbers)
        self.special_token_ids = list(numbers[:specials])
        self.ends = list(numbers[specials : specials + ends])
        self.tokens = []
        for length in numbers[specials + ends :]:
            self.tokens.append(bytes(data[at : at + length]))
            at += length
        self.eos_token_id = min(self.ends)
        self.bos_token_id = bos if bos >= 0 else None

        self.sock: socket.socket | None = None
        self.later: deque[bytearray] = deque()

    def __call__(self, text: bytes) -> list[int]:
        """The ids of a text that the grammar forces: who has the tokenizer is asked for them."""
        if self.sock is None:
            return []  # the library tries whether bytes may be given, and gives a str otherwise
        wire.send(self.sock, b"?" + text)
        # What was asked in the meantime comes first.
        while (came := wire.receive(self.sock, most=1 << 20))[:1] != b"i":
            self.later.append(came)
        return list(struct.unpack_from(f"<{len(came) // 4}I", came, 1))

    def command(self) -> bytearray:
        """What is asked for next."""
        assert self.sock is not None
        return self.later.popleft() if self.later else wire.receive(self.sock, most=COMMAND.size)


def make_vocabulary(data: bytearray) -> tuple[_Encoder, llguidance.LLTokenizer]:
    """The tables of a vocabulary, and who is asked for encodings."""
    vocabulary = _Encoder(data)
    wrapped = llguidance.TokenizerWrapper(vocabulary)
    return vocabulary, llguidance.LLTokenizer(wrapped, eos_token=vocabulary.ends)


def serve(sock: socket.socket, made: tuple[_Encoder, llguidance.LLTokenizer]) -> None:
    """Compile what is asked for first; then answer for positions in it, until nobody asks."""
    encoder, vocabulary = made
    encoder.sock = sock
    # A panic of the library reads the symbols of all libraries that it can open: there is no memory
    # for them here, and it would wait for ever. Those descriptors that are open stay.
    resource.setrlimit(resource.RLIMIT_NOFILE, (_OPEN_FILES, _OPEN_FILES))
    try:
        asked = json.loads(wire.receive(sock, most=1 << 31))
        limits.allow_time(asked["compile_s"])
        root, reason = _compile(vocabulary, asked["kind"], asked["text"], asked["layout"])
        wire.send(sock, b"-" + reason.encode() if root is None else b"+")
        if root is None:
            return
        positions: dict[int, llguidance.LLMatcher] = {}
        until = process_time() + asked["masks_s"]
        while True:
            command, number, argument = COMMAND.unpack(encoder.command())
            limits.allow_time(asked["mask_s"])
            if command == b"d":
                positions.pop(number, None)
                continue
            if command == b"a":
                positions[number].consume_token(argument)
            else:
                source = root if command == b"n" else positions[argument]
                positions[number] = source.deep_copy()
            mask = _mask(positions[number])
            until += asked["mask_each_s"]
            if process_time() > until:
                # Each is quick enough, and all together hold up everybody.
                wire.send(sock, f"-{1e3 * asked['mask_each_s']:g} ms for a token".encode())
                return
            wire.send(sock, mask)
    except wire.FrameError:
        return


def _compile(
    vocabulary: llguidance.LLTokenizer, kind: str, text: str, layout: dict[str, Any]
) -> tuple[llguidance.LLMatcher | None, str]:
    """A matcher at the beginning; or why there is none."""
    try:
        matcher = llguidance.LLMatcher(vocabulary, _source(kind, text, layout), log_level=0)
        if not matcher.is_error():
            return matcher, ""
        reason = matcher.get_error().split("<state>")[0]
    except Exception as error:
        reason = str(error) or type(error).__name__
    reason = " ".join(reason.split())[:_MESSAGE]
    return None, reason.encode("utf-8", "backslashreplace").decode()


def _source(kind: str, text: str, layout: dict[str, Any]) -> str:
    if kind == "json_schema":
        return llguidance.LLMatcher.grammar_from_json_schema(text, cast(Any, layout))
    if kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(text)
    if kind == "any":
        text = gbnf_to_lark.any_to_lark(spelt(text) if "::=" in text else text)
    return llguidance.LLMatcher.grammar_from_lark(text)


def _mask(matcher: llguidance.LLMatcher) -> bytes:
    """``+``, the tokens that the grammar forces next (their number, and they), and a bit for each
    token; ``.`` where none can follow; ``-`` and a bound."""
    bits = matcher.compute_bitmask()
    if not matcher.is_error():
        # What comes of them is a guess: the text is certain, and not how it is cut.
        forced = matcher.deep_copy().compute_ff_tokens()[: limits.FORCED_TOKENS]
        return b"+" + struct.pack(f"<I{len(forced)}I", len(forced), *forced) + bits
    reason = matcher.stop_reason()
    return b"-" + reason.encode() if "TooComplex" in str(reason) else b"."
