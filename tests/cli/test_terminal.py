"""``strata run`` in a terminal of its own: chatting, stopping, leaving; and without one."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BACKEND = "cpu" if importlib.util.find_spec("strata._native") else "reference"
COMMAND = [sys.executable, "-m", "strata", "run"]
OPTIONS = ["--backend", BACKEND, "--threads", "2", "--context", "2048"]
TIMEOUT_S = 60.0
PROMPT = ">>> "


class Terminal:
    """A process on a pseudo-terminal."""

    def __init__(self, *args: str) -> None:
        master, slave = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [*COMMAND, *args],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),
        )
        os.close(slave)
        self.master = master
        self._unread = self._read = ""

    def until(self, expected: str, nudge: str = "", timeout_s: float = TIMEOUT_S) -> str:
        """Everything up to and with ``expected``, without the terminal's control sequences.

        ``nudge`` is typed after every second of silence.
        """
        end = time.monotonic() + timeout_s
        searched = 0
        while self._unread.find(expected, searched) < 0:
            searched = max(0, len(self._unread) - len(expected))
            if time.monotonic() > end:
                raise AssertionError(f"{expected!r} did not come: {self._unread[-2000:]!r}")
            if not select.select([self.master], [], [], 1.0)[0]:
                self.send(nudge)
                continue
            try:
                read = os.read(self.master, 65536)
            except OSError:
                read = b""
            if not read:
                raise AssertionError(f"{expected!r} did not come: {self._unread[-2000:]!r}")
            self._read += read.decode(errors="replace")
            # A control sequence is looked at when all of it is there.
            begun = re.search(r"\x1b(\[[?0-9;]*)?\Z", self._read)
            end_of_whole = len(self._read) if begun is None else begun.start()
            whole, self._read = self._read[:end_of_whole], self._read[end_of_whole:]
            self._unread += re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", whole)
        text, _, self._unread = self._unread.partition(expected)
        return text + expected

    def send(self, text: str) -> None:
        os.write(self.master, text.encode())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)


@pytest.fixture
def terminal(smollm2_path: Path) -> Iterator[Terminal]:
    opened = Terminal(str(smollm2_path), *OPTIONS, "--max-tokens", "8", "--stats")
    yield opened
    opened.close()


def prompt_tokens(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"prompt (\d+) tokens", text)]


def test_a_conversation(terminal: Terminal) -> None:
    terminal.until(PROMPT)
    terminal.send("Hello there\n")
    (first,) = prompt_tokens(terminal.until(PROMPT))
    terminal.send("Hello there\n")
    (second,) = prompt_tokens(terminal.until(PROMPT))
    assert second > first, "the second prompt holds the first and its answer"
    terminal.send("/clear\n")
    assert "forgotten" in terminal.until(PROMPT)
    terminal.send("Hello there\n")
    assert prompt_tokens(terminal.until(PROMPT)) == [first]
    terminal.send("/help\n")
    assert "/bye" in terminal.until("several")
    terminal.until(PROMPT)
    terminal.send("/nonsense\n")
    assert "no command /nonsense" in terminal.until(PROMPT)
    terminal.send("\n")
    terminal.until(PROMPT)
    terminal.send("/bye\n")
    assert terminal.process.wait(TIMEOUT_S) == 0


def test_settings_files_and_a_full_context(smollm2_path: Path, tmp_path: Path) -> None:
    talk = tmp_path / "talk.json"
    terminal = Terminal(str(smollm2_path), *OPTIONS[:-1], "128", "--stats")
    try:
        terminal.until(PROMPT)
        terminal.send("/set max_tokens 20\n")
        terminal.until(PROMPT)
        terminal.send("/set warmth 3\n")
        assert "no setting 'warmth'" in terminal.until(PROMPT)
        terminal.send("/set\n")
        assert re.search(r"max_tokens +20\n", terminal.until(PROMPT))
        sizes, told = [], ""
        for turn in range(4):
            terminal.send(f"Tell me a story, number {turn}\n")
            said = terminal.until(PROMPT)
            told += said
            sizes += prompt_tokens(said)
        assert "128 positions is full: the oldest" in told
        assert len(sizes) == 4, "every turn was answered"
        terminal.send(f"/save {talk}\n")
        assert "saved)" in terminal.until(PROMPT)
        terminal.send("/clear\n")
        terminal.until(PROMPT)
        terminal.send(f"/load {talk}\n")
        assert "loaded)" in terminal.until(PROMPT)
        terminal.send("/exit\n")
        assert terminal.process.wait(TIMEOUT_S) == 0
    finally:
        terminal.close()


@pytest.mark.slow
def test_a_full_context_is_refused_where_that_was_asked_for(smollm2_path: Path) -> None:
    options = ["--max-tokens", "20", "--when-full", "refuse"]
    terminal = Terminal(str(smollm2_path), *OPTIONS[:-1], "128", *options)
    try:
        terminal.until(PROMPT)
        terminal.send("Tell me a story\n")
        terminal.until(PROMPT)
        terminal.send("Tell me another one that is longer " * 9 + "\n")
        assert "128 positions is full; /clear" in terminal.until(PROMPT)
        terminal.send("/quit\n")
        assert terminal.process.wait(TIMEOUT_S) == 0
    finally:
        terminal.close()


def test_several_lines_are_one_entry(terminal: Terminal) -> None:
    terminal.until(PROMPT)
    terminal.send('"""one\n')
    terminal.until("... ")
    terminal.send('two"""\n')
    (typed,) = prompt_tokens(terminal.until(PROMPT))
    terminal.send("/clear\n")
    terminal.until(PROMPT)
    if importlib.util.find_spec("readline"):
        terminal.send("\x1b[200~one\ntwo\x1b[201~")
        terminal.send("\r")
        assert prompt_tokens(terminal.until(PROMPT)) == [typed]
    terminal.send("\x04")
    assert terminal.process.wait(TIMEOUT_S) == 0


@pytest.mark.slow
@pytest.mark.alone  # who sends and who reads each want a core
@pytest.mark.skipif(not importlib.util.find_spec("readline"), reason="no line editing")
@pytest.mark.parametrize(
    ("begins", "ends", "says"),
    [
        ("\x1b[200~", "\x1b[201~", "too long (5700000 bytes)"),
        ("", "", "too long (it came faster than it was taken)"),
    ],
    ids=["pasted", "typed"],
)
def test_megabytes_on_a_line_are_refused(
    begins: str, ends: str, says: str, terminal: Terminal
) -> None:
    terminal.until(PROMPT)
    terminal.send("Hello there\n")
    (first,) = prompt_tokens(terminal.until(PROMPT))
    terminal.send("/clear\n")
    terminal.until(PROMPT)
    # A process of its own: nothing that reads here slows it down.
    sent = f"import sys; sys.stdout.write({begins!r} + 'so many ' * 712_500 + {ends!r})"
    with subprocess.Popen([sys.executable, "-c", sent], stdout=terminal.master):
        assert says in terminal.until(PROMPT, timeout_s=3 * TIMEOUT_S)
    terminal.send("Hello there\n")
    assert prompt_tokens(terminal.until(PROMPT)) == [first]


@pytest.mark.skipif(not importlib.util.find_spec("readline"), reason="no line editing")
def test_what_is_typed_behind_a_paste_stays(terminal: Terminal) -> None:
    terminal.until(PROMPT)
    terminal.send("Hello there\n")
    (first,) = prompt_tokens(terminal.until(PROMPT))
    terminal.send("/clear\n")
    terminal.until(PROMPT)
    terminal.send("He\x1b[200~llo \x1b[201~the\x1b[200~\x1b[201~re\n/bye\n")
    assert prompt_tokens(terminal.until(PROMPT)) == [first]
    assert terminal.process.wait(TIMEOUT_S) == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(smollm2_path: Path) -> None:
    terminal = Terminal(str(smollm2_path), *OPTIONS, "--ignore-eos")
    try:
        terminal.until(PROMPT)
        terminal.send("\x03")
        # Python misses a signal between the prompt and its wait for a key: people press again.
        assert "leaves" in terminal.until(PROMPT, nudge="\x03")
        terminal.send("Tell me a long story\n")
        terminal.until("story\n")
        terminal.until(" ")
        terminal.send("\x03")
        assert "(stopped)" in terminal.until(PROMPT)
        terminal.send("/bye\n")
        assert terminal.process.wait(TIMEOUT_S) == 0
    finally:
        terminal.close()


def test_an_interrupted_answer_ends_in_a_clean_line(smollm2_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, str(smollm2_path), "Tell me a long story", *OPTIONS, "--ignore-eos", "-q"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        begin = process.stdout.read1(100)  # type: ignore[attr-defined]
        process.send_signal(signal.SIGINT)
        rest, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 130
    assert begin
    assert (begin + rest).endswith(b"\n")
    assert err == b"strata: error: interrupted\n"


def test_a_reader_that_goes_away(smollm2_path: Path) -> None:
    with subprocess.Popen(
        [*COMMAND, str(smollm2_path), "Tell me a long story", *OPTIONS, "--ignore-eos"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.read1(10)  # type: ignore[attr-defined]
        process.stdout.close()
        assert process.wait(TIMEOUT_S) == 141
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
