"""This side of the guarded processes: starting them, talking to them, ending them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from functools import cache
from time import clock_gettime, sleep
from typing import Any, NamedTuple

from strata.guard import limits, wire
from strata.guard.account import Account
from strata.guard.errors import GuardBusy, GuardError

_START = (
    "import sys, json; sys.path[:] = json.loads(sys.argv[2]); "
    "from strata.guard.worker import main; main(int(sys.argv[1]))"
)
# What an interpreter needs of the environment; keys and tokens stay here.
_ENVIRONMENT = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME")
_START_S = 60.0
"""For the nursery's own work: starting, a vocabulary."""

_LOOK_S = 1e-3
"""How often it is looked at what a ward has computed."""

_END_S = 2.0
"""For ending the wards."""


class GrammarVocabulary(NamedTuple):
    """Of grammars: its number, its tokens, and what makes it as ``wire.VOCABULARY`` says."""

    number: int
    tokens: int
    make: Callable[[], bytes]


class Ward:
    """A forked process for one thing. For one thread at a time."""

    def __init__(
        self, nursery: Nursery, sock: socket.socket, pid: int, entry: _Entry | None = None
    ) -> None:
        self._sock = sock
        self.pid = pid
        self.end = weakref.finalize(self, nursery.end, sock, pid, entry)
        """End it, at once and without waiting. Safe from any thread, and to call again."""

    def send(self, payload: bytes) -> None:
        """Ask for something; GuardError if the ward is gone."""
        try:
            self._sock.settimeout(_START_S)
            wire.send(self._sock, payload)
        except OSError:
            self.end()
            raise GuardError("its process is gone") from None

    def ready(self, seconds: float) -> bool:
        """Whether it has said something, or is gone, after ``seconds`` at most."""
        waiting = select.poll()
        try:
            waiting.register(self._sock, select.POLLIN)
            return bool(waiting.poll(1e3 * seconds))
        except (OSError, ValueError):
            return True

    def work_in_pieces(self, rest_after: Callable[[float], float]) -> None:
        """Wait until it says something. ``rest_after`` gives for how long it rests when it has
        worked for so many seconds of processor time: a lower priority alone takes whole slices of
        time from those who compute, and a much lower one would starve it where they always do."""
        with contextlib.suppress(OSError, AttributeError), _pidfd(self.pid) as process:
            worked = _processor_s(self.pid)
            while not self.ready(_LOOK_S):
                now = _processor_s(self.pid)
                if rest := rest_after(now - worked):
                    signal.pidfd_send_signal(process, signal.SIGSTOP)
                    try:
                        sleep(rest)
                    finally:
                        signal.pidfd_send_signal(process, signal.SIGCONT)
                    worked = now

    def receive(self, *, seconds: float, most: int, memory: int) -> bytearray:
        """Its next answer. ``seconds`` are those of processor time that the job had, ``memory`` the
        bytes, for the message of the GuardError that is raised when the ward did not keep to them,
        or says more than ``most`` bytes."""
        try:
            return wire.receive(self._sock, most=most, seconds=seconds * limits.PATIENCE)
        except (OSError, wire.FrameError) as error:
            self.end()
            if isinstance(error, wire.FrameError) and "allowed" in str(error):
                reason = f"it makes more than {most} bytes"
            else:
                reason = (
                    f"it takes more than {seconds:g} s of processor time or {memory >> 20} MiB of "
                    "memory, or its library failed"
                )
            raise GuardError(reason) from None
        except BaseException:
            # What is left of the answer would be taken for the next one.
            self.end()
            raise


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int]:
    """A process by a name that is no other's later (Linux)."""
    process = os.pidfd_open(pid)
    try:
        yield process
    finally:
        os.close(process)


def _processor_s(pid: int) -> float:
    """Seconds that a process has computed, by its clock (Linux, clock_getcpuclockid)."""
    return clock_gettime((~pid << 3) | 2)


class _Entry:
    """Bytes that are entered in an account until they are given back."""

    def __init__(self, account: Account, nbytes: int) -> None:
        if not account.take(nbytes):
            raise GuardBusy("there is no memory for a guarded process now; try again later")
        self._left = [(account, nbytes)]

    def give_back(self) -> None:
        """Once; also from a finalizer."""
        with contextlib.suppress(IndexError):
            account, nbytes = self._left.pop()
            account.give(nbytes)


class Nursery:
    """Starts at its first use, and again when it has come to an end. Any thread may call.

    What it takes is entered in the account of who needs it first, wards in that of who opens
    them: GuardBusy where that has no room.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._known: dict[int | str, _Entry | None] = {}
        self._entry: _Entry | None = None
        self._later: deque[dict[str, Any]] = deque()
        self._asking = False

    def open(
        self,
        kind: str,
        *,
        nbytes: int,
        vocabulary: GrammarVocabulary | None = None,
        account: Account | None = None,
    ) -> Ward:
        """A ward with ``nbytes`` of memory for a ``kind`` of work; for grammars with a
        vocabulary, which is made where the nursery does not know it yet."""
        try:
            with self._lock:
                for _ in range(2):
                    try:
                        return self._open(kind, nbytes, vocabulary, account)
                    except (OSError, wire.FrameError):
                        self.close()
                raise GuardError("the guarded process cannot be started")
        finally:
            self._say_later()

    def _open(
        self, kind: str, nbytes: int, vocabulary: GrammarVocabulary | None, account: Account | None
    ) -> Ward:
        sock = self.start(account)
        number = None
        if vocabulary is not None:
            number = vocabulary.number
            if number not in self._known:
                self._tell_vocabulary(sock, vocabulary, account)
        elif "template" not in self._known:
            self._known["template"] = _entered(account, limits.TEMPLATES)
        copied = limits.TEMPLATE_WARD if vocabulary is None else limits.GRAMMAR_WARD
        entry = _entered(account, copied + nbytes)
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                told = {"do": "open", "kind": kind, "nbytes": nbytes, "number": number}
                answer = self._ask(sock, told, fd=theirs.fileno())
            return Ward(self, ours, answer["pid"], entry)
        except BaseException:
            ours.close()
            _give_back(entry)
            raise

    def _tell_vocabulary(
        self, sock: socket.socket, vocabulary: GrammarVocabulary, account: Account | None
    ) -> None:
        entry = _entered(account, limits.vocabulary_bytes(vocabulary.tokens))
        try:
            told = {"do": "vocabulary", "number": vocabulary.number}
            self._ask(sock, told, then=vocabulary.make())
        except BaseException:
            _give_back(entry)
            raise
        self._known[vocabulary.number] = entry

    def forget(self, number: int) -> None:
        """A vocabulary is not needed any longer. Also called when its owner is collected."""
        self._later.append({"do": "forget", "number": number})
        self._say_later()

    def end(self, sock: socket.socket, pid: int, entry: _Entry | None) -> None:
        """End a ward. Also called when one is collected, which may be in the middle of anything."""
        _give_back(entry)
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        self._later.append({"do": "end", "pid": pid})
        self._say_later()

    def _say_later(self) -> None:
        # Who has the lock, or is asking in this very thread, does it afterwards.
        while self._later and not self._asking and self._lock.acquire(blocking=False):
            try:
                if self._asking:
                    return
                while self._later:
                    command = self._later.popleft()
                    if command["do"] == "forget":
                        _give_back(self._known.pop(command["number"], None))
                    if self._sock is not None:
                        with contextlib.suppress(OSError):
                            wire.send(self._sock, json.dumps(command).encode())
            finally:
                self._lock.release()

    def start(self, account: Account | None = None) -> socket.socket:
        """Start the process unless it runs; returns its socket."""
        with self._lock:
            if self._process is not None and self._process.poll() is not None:
                self.close()
            if self._sock is not None:
                return self._sock
            self._entry = _entered(account, limits.NURSERY)
            try:
                self._process, self._sock = _started()
            except BaseException:
                _give_back(self._entry)
                raise
            return self._sock

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def close(self) -> None:
        """End the process with all its wards."""
        with self._lock:
            process, self._process = self._process, None
            sock, self._sock = self._sock, None
            entries = [self._entry, *self._known.values()]
            self._entry = None
            self._known.clear()
            # They end with the nursery; the next one has other numbers.
            self._later.clear()
        if sock is not None:
            sock.close()
        if process is not None:
            # It ends its wards first.
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for entry in entries:
            _give_back(entry)

    def _ask(
        self,
        sock: socket.socket,
        command: dict[str, Any],
        *,
        fd: int | None = None,
        then: bytes | None = None,
    ) -> dict[str, Any]:
        self._asking = True
        try:
            sock.settimeout(_START_S)
            wire.send(sock, json.dumps(command).encode(), fd)
            if then is not None:
                wire.send(sock, then)
            answer: dict[str, Any] = json.loads(wire.receive(sock, most=1 << 16, seconds=_START_S))
        except BaseException:
            # An answer that comes later would be taken for that of the next question.
            self.close()
            raise
        finally:
            self._asking = False
        if "error" in answer:
            raise GuardError(answer["error"])
        return answer


def _started() -> tuple[subprocess.Popen[bytes], socket.socket]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno()), json.dumps(sys.path)],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={k: os.environ[k] for k in _ENVIRONMENT if k in os.environ},
            # An interrupt at the terminal is for the command, which ends this.
            start_new_session=True,
        )
    ours.settimeout(_START_S)
    return process, ours


def _entered(account: Account | None, nbytes: int) -> _Entry | None:
    """GuardBusy without room."""
    return None if account is None else _Entry(account, nbytes)


def _give_back(entry: _Entry | None) -> None:
    if entry is not None:
        entry.give_back()


@cache
def nursery() -> Nursery:
    """The one of this process; a forked process has one of its own."""
    import atexit

    made = Nursery()
    atexit.register(made.close)
    os.register_at_fork(after_in_child=nursery.cache_clear)
    return made
