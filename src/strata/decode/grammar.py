"""Grammars: JSON schemas, regular expressions, and context-free grammars.

What is foreign is done by ``strata.guard``: each compiled grammar is in a process of its own, with
bounds of time and memory, and so are all answers that obey it. Where the next mask is asked for as
soon as a token is chosen, it is computed beside the engine's step.
"""

from __future__ import annotations

import gc
import json
from collections import OrderedDict, deque
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from itertools import count
from threading import RLock, get_ident
from time import monotonic
from typing import Any, Protocol
from weakref import WeakSet, finalize

import numpy as np
from numpy.typing import NDArray

from strata.decode.constraint import Constraint
from strata.decode.schemas import LAYOUT, closed, enforced
from strata.errors import StrataError, UsageError
from strata.giving_way import give_way, rest_after
from strata.guard import limits
from strata.guard.account import Account
from strata.guard.errors import GuardBusy, GuardError
from strata.guard.nursery import GrammarVocabulary, Ward, nursery
from strata.guard.wire import COMMAND, VOCABULARY

# A byte that no UTF-8 text holds sets the names of special tokens apart from text.
_SPECIAL = b"\xff"

_numbers = count()


class GrammarTokenizer(Protocol):
    """What grammars need of ``strata.text.Tokenizer``."""

    vocab_size: int
    bos_id: int | None
    stop_ids: frozenset[int]

    def token_bytes(self, id: int, *, special: bool = False) -> bytes: ...

    def encode(self, text: str) -> list[int]: ...


class GrammarError(UsageError):
    """A schema, expression or grammar that does not parse, that is not supported, or that takes
    more than a grammar may."""


class GrammarsBusy(StrataError):
    """As many other grammars as there may be are in use, or there is no memory for one; try again
    later."""


class GrammarCompiler:
    """Makes grammars over one vocabulary, at most ``most`` at once; those that nobody uses any
    longer are kept until there is another one. Compiling may take a second for a hard one. Their
    memory is entered in ``account``. Any thread may call."""

    def __init__(
        self,
        tokenizer: GrammarTokenizer,
        most: int = limits.GRAMMARS,
        account: Account | None = None,
    ) -> None:
        if not tokenizer.stop_ids:
            raise GrammarError("this model has no end token, which an answer by a grammar needs")
        self._tokenizer = tokenizer
        self._most = most
        self._account = account
        self._number = next(_numbers)
        self._made: OrderedDict[bytes, _Compiled] = OrderedDict()
        self._compiling = 0
        self._under_way: dict[int, Ward] = {}
        self._lock = RLock()
        finalize(self, nursery().forget, self._number)

    def json_object(self) -> TokenGrammar:
        """Any JSON object."""
        return self.json_schema({"type": "object"})

    def json_schema(self, schema: Mapping[str, Any]) -> TokenGrammar:
        """JSON on one line that is valid under ``schema``, as ``strata.decode.schemas`` reads it;
        what no grammar can hold it to is left open (``strata.decode.schemas.enforced``)."""
        try:
            text = json.dumps(enforced(closed(schema))[0])
        except RecursionError:
            raise GrammarError("the schema is nested too deeply") from None
        return self._compile("json_schema", text)

    def regex(self, expression: str) -> TokenGrammar:
        """Text that ``expression`` (Rust's syntax, no look-around) matches as a whole."""
        return self._compile("regex", expression)

    def grammar(self, text: str) -> TokenGrammar:
        """A grammar in llguidance's dialect of Lark, or in llama.cpp's GBNF."""
        return self._compile("any", text)

    def lark(self, text: str) -> TokenGrammar:
        """A grammar in llguidance's dialect of Lark."""
        return self._compile("lark", text)

    def _compile(self, kind: str, text: str) -> TokenGrammar:
        """GrammarError for a grammar that is not usable, GrammarsBusy where there is no room."""
        asked = json.dumps(
            {
                "kind": kind,
                "text": text,
                "layout": dict(LAYOUT),
                "compile_s": limits.COMPILE_S,
                "mask_s": limits.MASK_S,
                "masks_s": limits.MASKS_S,
                "mask_each_s": limits.MASK_EACH_S,
            }
        ).encode()
        key = sha256(asked).digest()
        with self._lock:
            made = self._made.get(key)
            if made is not None and made.alive:
                self._made.move_to_end(key)
                return made.grammar()
            self._make_room()
            self._compiling += 1
        thread = get_ident()
        try:
            ward = self._under_way[thread] = self._ward()
            give_way()
            made = _Compiled(ward, asked, self._tokenizer)
        except GuardBusy as error:
            raise GrammarsBusy(str(error)) from None
        except GuardError as error:
            raise GrammarError(f"the grammar is not usable: {error}") from None
        finally:
            with self._lock:
                self._under_way.pop(thread, None)
                self._compiling -= 1
        with self._lock:
            self._made[key] = made
            return made.grammar()

    def abandon(self, thread: int) -> None:
        """End what is compiled in that thread, which gets a GrammarError."""
        if (ward := self._under_way.get(thread)) is not None:
            ward.end()

    def _ward(self) -> Ward:
        return nursery().open(
            "grammar",
            nbytes=limits.GRAMMAR_BYTES,
            vocabulary=GrammarVocabulary(
                self._number, self._tokenizer.vocab_size, lambda: _vocabulary(self._tokenizer)
            ),
            account=self._account,
        )

    def _make_room(self) -> None:
        for collect in (False, True):
            if collect:
                # What failed may be held by a cycle with its traceback.
                gc.collect()
            for key, made in list(self._made.items()):
                if not made.alive:
                    del self._made[key]
            for key, made in list(self._made.items()):
                if len(self._made) + self._compiling < self._most:
                    return
                if not made.used:
                    made.end()
                    del self._made[key]
            if len(self._made) + self._compiling < self._most:
                return
        raise GrammarsBusy(
            f"{self._most} other grammars are in use, as many as there may be; try again later"
        )


class _Compiled:
    """A grammar in its process."""

    def __init__(self, ward: Ward, asked: bytes, tokenizer: GrammarTokenizer) -> None:
        self.size = tokenizer.vocab_size
        self.ends = sorted(tokenizer.stop_ids)
        self._ward = ward
        self._encode = tokenizer.encode
        self._users: WeakSet[TokenGrammar | _Position] = WeakSet()
        self._numbers = count()
        self._lock = RLock()
        self._dropped: deque[tuple[int, list[int]]] = deque()
        # Answers come in the order of the questions.
        self._asked = 0
        self._answered = 0
        self._answers: dict[int, bytearray] = {}
        self._unwanted: set[int] = set()
        self._since = 0.0
        ward.send(asked)
        ward.work_in_pieces(rest_after)
        answer = self._receive(limits.COMPILE_S, most=1 << 16)
        if answer[:1] != b"+":
            ward.end()
            raise GrammarError(
                f"the grammar is not usable: {answer[1:].decode('utf-8', 'replace')}"
            )

    @property
    def alive(self) -> bool:
        """Whether the process is there."""
        return bool(self._ward.end.alive)

    @property
    def used(self) -> bool:
        """Whether anybody may still ask."""
        return bool(self._users)

    def end(self) -> None:
        """End the process."""
        self._ward.end()

    def grammar(self) -> TokenGrammar:
        """For one more who uses it."""
        return TokenGrammar(self)

    def enter(self, user: TokenGrammar | _Position) -> None:
        """It is in use by one more, until that leaves or is collected."""
        self._users.add(user)

    def leave(self, user: TokenGrammar | _Position) -> None:
        """It is not in use by that one any longer."""
        self._users.discard(user)

    def new_number(self) -> int:
        """Of a position."""
        return next(self._numbers)

    def ask(self, command: bytes, position: int, argument: int = 0) -> int:
        """Do something to a position; the number under which its mask will come."""
        with self._lock:
            while self._dropped:
                dropped, waited = self._dropped.popleft()
                self._tell(b"d", dropped, 0)
                for number in waited:
                    self._answers.pop(number, None)
                    self._unwanted.add(number)
            self._tell(command, position, argument)
            if self._asked == self._answered:
                self._since = monotonic()
            self._asked += 1
            return self._asked

    def ready(self, number: int, seconds: float) -> bool:
        """Whether the answer of that number is there, or will never be, after ``seconds`` at
        most."""
        with self._lock:
            while self._answered < number and self._ward.end.alive:
                if not self._ward.ready(seconds):
                    if monotonic() - self._since < limits.MASK_S * limits.PATIENCE:
                        return False
                    self._ward.end()
                elif (came := self._take(limits.MASK_S, most=self._most_of_a_mask)) is not None:
                    self._keep(came)
            return True

    def answer(self, number: int) -> bytearray:
        """The answer of that number, once; GrammarError if the grammar took too much."""
        with self._lock:
            while self._answered < number:
                try:
                    self._keep(self._receive(limits.MASK_S, most=self._most_of_a_mask))
                except GuardError as error:
                    raise GrammarError(f"the grammar takes too much: {error}") from None
            return self._answers.pop(number)

    def _keep(self, came: bytearray) -> None:
        self._answered += 1
        self._since = monotonic()
        if self._answered in self._unwanted:
            self._unwanted.discard(self._answered)
        else:
            self._answers[self._answered] = came

    @property
    def _most_of_a_mask(self) -> int:
        return self.size // 8 + 2048

    def drop(self, position: int, waited: list[int]) -> None:
        """A position is not used any longer, nor are the answers it waited for. Called when it is
        collected, which may be in the middle of anything."""
        self._dropped.append((position, waited))

    def _tell(self, command: bytes, position: int, argument: int) -> None:
        try:
            self._ward.send(COMMAND.pack(command, position, argument))
        except GuardError as error:
            raise GrammarError(f"the grammar was ended: {error}") from None

    def _receive(self, seconds: float, *, most: int) -> bytearray:
        """The next answer; meanwhile texts that the grammar forces are encoded."""
        while (came := self._take(seconds, most=most)) is None:
            pass
        return came

    def _take(self, seconds: float, *, most: int) -> bytearray | None:
        """The next answer; None if it was a question, a text that is encoded now."""
        most = max(most, 1 + limits.FORCED_BYTES)
        came = self._ward.receive(seconds=seconds, most=most, memory=limits.GRAMMAR_BYTES)
        if came[:1] != b"?":
            return came
        ids = self._encode(came[1:].decode("utf-8", "replace"))
        self._ward.send(b"i" + np.array(ids, "<u4").tobytes())
        return None


class TokenGrammar:
    """See ``strata.decode.constraint.Grammar``."""

    def __init__(self, compiled: _Compiled) -> None:
        self._compiled = compiled
        compiled.enter(self)

    def start(self) -> Constraint:
        """The beginning of an answer."""
        return _Position(self._compiled, b"n")

    def close(self) -> None:
        """No answer begins any longer; those that have begun go on."""
        self._compiled.leave(self)


class _Position:
    def __init__(self, compiled: _Compiled, command: bytes, other: int = 0) -> None:
        self._compiled = compiled
        compiled.enter(self)
        self._number = compiled.new_number()
        self._waits = [compiled.ask(command, self._number, other)]
        self._mask = bytearray()
        self._gone: GrammarError | None = None
        self._drop = finalize(self, compiled.drop, self._number, self._waits)

    def _await(self) -> None:
        while self._waits:
            self._mask = self._compiled.answer(self._waits[0])
            del self._waits[0]

    def ready(self, seconds: float = 0.0) -> bool:
        """What went wrong is there at once, and told by ``allowed``."""
        if self._gone is not None or not self._waits:
            return True
        with suppress(GuardError):
            return self._compiled.ready(self._waits[-1], seconds)
        return True

    @property
    def _forced_count(self) -> int:
        return int.from_bytes(self._mask[1:5], "little") if self._mask[:1] == b"+" else 0

    def forced(self) -> tuple[int, ...]:
        if self._gone is not None:
            return ()
        # What is wrong with the grammar is said where a token is chosen.
        with suppress(GrammarError):
            self._await()
            ids = np.frombuffer(self._mask, "<u4", self._forced_count, 5)
            return tuple(ids.tolist())
        return ()

    def allowed(self) -> NDArray[np.bool_]:
        if self._gone is not None:
            raise self._gone
        compiled = self._compiled
        self._await()
        state, size = self._mask[:1], compiled.size
        if state == b"-":
            reason = self._mask[1:].decode()
            raise GrammarError(f"the grammar takes too much: {reason}")
        allowed = np.zeros(size, np.bool_)
        if state == b"+":
            bits = np.frombuffer(self._mask, np.uint8, offset=5 + 4 * self._forced_count)
            allowed = np.unpackbits(bits, count=size, bitorder="little").astype(np.bool_)
        if not allowed.any():
            # From a dead end an answer can only end.
            allowed[compiled.ends] = True
        return allowed

    def accept(self, token: int) -> None:
        # The mask is computed while the model is.
        try:
            self._waits.append(self._compiled.ask(b"a", self._number, token))
        except GrammarError as error:
            self._gone = error.with_traceback(None)

    def copy(self) -> Constraint:
        return _Position(self._compiled, b"c", self._number)

    def close(self) -> None:
        self._drop()
        self._compiled.leave(self)


def _vocabulary(tokenizer: GrammarTokenizer) -> bytes:
    """A vocabulary as ``strata.guard.wire.VOCABULARY`` says."""
    texts = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
    specials = [id for id, text in enumerate(texts) if not text]
    for id in specials:
        texts[id] = _SPECIAL + tokenizer.token_bytes(id, special=True)
    ends = sorted(tokenizer.stop_ids)
    bos = -1 if tokenizer.bos_id is None else tokenizer.bos_id
    head = VOCABULARY.pack(len(texts), bos, len(specials), len(ends))
    numbers = np.array([*specials, *ends, *map(len, texts)], "<u4")
    return b"".join([head, numbers.tobytes(), *texts])
