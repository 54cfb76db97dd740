"""What somebody enters at a chat: lines with editing and history, and what is pasted at once.

The line editor takes each byte by itself and draws it: megabytes that are pasted by mistake would
keep it busy for minutes. So a paste is read here, where the terminal says that it is one; where it
does not, a line that keeps coming faster than it is taken is ended.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import suppress

import click

from strata.cli.console import remark

MAX_ENTRY = 1_000_000
"""Bytes that are taken at once."""

_QUOTE = '"""'
_PROMPT, _CONTINUED = ">>> ", "... "
_PASTE_ENDS = b"\x1b[201~"
_READ = 1 << 16
_LOOKED_S = 0.05
# Nobody types so far ahead of the line editor for so long.
_AHEAD = 64
_FLOOD_S = 2.0
_SILENT_S = 1.0


class _Editor:
    """What the line editor is at."""

    prompt = _PROMPT
    pasting = False


_editor = _Editor()


def prepare_terminal() -> None:
    """Line editing and history, and pasted newlines that are text instead of the end of it."""
    with suppress(ImportError):
        import readline

        readline.set_auto_history(True)
        if "libedit" in (readline.__doc__ or ""):
            return
        # What begins a paste asks for completion, which reads it; no other key does.
        readline.parse_and_bind("set enable-bracketed-paste on")
        readline.parse_and_bind("set bell-style none")
        readline.parse_and_bind(r'"\e\t": self-insert')
        readline.parse_and_bind(r'"\e[200~": insert-completions')
        readline.set_completer(_put_in_paste)


def read_entry() -> str:
    """One entry: a line, what was pasted at once, or lines between triple quotes; "" for what was
    too long, which is told. EOFError at the end of input."""
    line = _read_line(_PROMPT)
    if not line.startswith(_QUOTE):
        return line
    lines, size = [line[len(_QUOTE) :]], len(line)
    while _QUOTE not in lines[-1]:
        lines.append(_read_line(_CONTINUED))
        size += len(lines[-1]) + 1
        if size > MAX_ENTRY:
            _refuse(f"{size} bytes so far")
            return ""
    text = "\n".join(lines)
    return text[: text.index(_QUOTE)]


def _read_line(prompt: str) -> str:
    if sys.stdout.isatty():
        return _edited_line(prompt)
    # Answers go to a file: the prompt must not.
    click.echo(prompt, nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.removesuffix("\n")


def _refuse(why: str) -> None:
    remark(
        f"strata: error: this entry is too long ({why}); at most {MAX_ENTRY} bytes are taken here: "
        "for more, strata run MODEL < FILE"
    )


def _edited_line(prompt: str) -> str:
    watch = _Watch()
    _editor.prompt = prompt
    try:
        with watch:
            line = input(prompt)
    except KeyboardInterrupt:
        if not watch.flooded:
            raise
    if not watch.flooded:
        return line
    remark("")
    _refuse("it came faster than it was taken")
    return ""


class _Watch:
    """Ends a line whose bytes keep coming faster than the line editor takes them."""

    def __init__(self) -> None:
        self.flooded = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *raised: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        floods = 0.0
        while not self._over.wait(_LOOKED_S):
            ahead = not _editor.pasting and _waiting_bytes() >= _AHEAD
            # Who sends is not always on the processor either.
            floods = floods + 1 if ahead else max(0.0, floods - 0.25)
            if floods * _LOOKED_S > _FLOOD_S:
                self.flooded = True
                _drain()
                # The editor misses a signal that comes just before it waits.
                while not self._over.wait(_LOOKED_S):
                    signal.pthread_kill(_main_thread(), signal.SIGINT)


def _put_in_paste(text: str, state: int) -> None:
    """The line editor calls it where a paste begins."""
    import readline

    _editor.pasting = True
    try:
        data, size = _read_paste(sys.stdin.fileno())
    finally:
        _editor.pasting = False
    if size <= MAX_ENTRY:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\0", b"")
        readline.insert_text(os.fsdecode(data))
        return
    remark("")
    _refuse(f"{size} bytes")
    # The editor believes its line to be where it was.
    sys.stdout.write(_editor.prompt + readline.get_line_buffer())
    sys.stdout.flush()


def _read_paste(descriptor: int) -> tuple[bytes, int]:
    """What was pasted, or a part of it if that is too much, and how many bytes it was.

    What was typed behind its end stays unread: while the paste may be wanted, no more is read at a
    time than its end certainly has left.
    """
    data = bytearray()
    while len(data) <= MAX_ENTRY + len(_PASTE_ENDS):
        last = data[1 - len(_PASTE_ENDS) :]
        begun = last[last.rfind(b"\x1b") :] if b"\x1b" in last else b""
        left = len(_PASTE_ENDS) - (len(begun) if _PASTE_ENDS.startswith(begun) else 0)
        read = os.read(descriptor, left)
        data += read
        if data.endswith(_PASTE_ENDS) or not read:
            data = data.removesuffix(_PASTE_ENDS)
            return bytes(data), len(data)
    size = len(data)
    while _PASTE_ENDS not in data:
        read = os.read(descriptor, _READ)
        size += len(read)
        data = data[1 - len(_PASTE_ENDS) :] + read
        if not read:
            break
    return bytes(data), size - len(data) + data.find(_PASTE_ENDS)


def _waiting_bytes() -> int:
    """How many bytes were typed that nobody has read."""
    import fcntl
    import termios

    count = fcntl.ioctl(sys.stdin.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(count, sys.byteorder)


def _drain() -> None:
    """Forget what is typed, until nothing more comes."""
    import termios

    silent = time.monotonic()
    while time.monotonic() - silent < _SILENT_S:
        if _waiting_bytes():
            termios.tcflush(sys.stdin.fileno(), termios.TCIFLUSH)
            silent = time.monotonic()
        time.sleep(0.001)


def _main_thread() -> int:
    main = threading.main_thread().ident
    assert main is not None
    return main
