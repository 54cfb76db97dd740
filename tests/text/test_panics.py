"""A panic inside the tokenizers library is an error with a name, and nothing else is said of it."""

from __future__ import annotations

import base64
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from strata.text import TokenizerError, tokenizer_from_directory
from strata.text.panics import panics_untold
from text.test_hostile_tokenizers import directory

# One unit that leads to a hundredth one, beyond the table.
FAULTY = {
    "type": "Precompiled",
    "precompiled_charsmap": base64.b64encode(
        struct.pack("<II", 4, 5 << 10 | 1 << 8) + b"ab\0"
    ).decode(),
}


@pytest.mark.parametrize("backtrace", ["0", "1"])
def test_no_line_of_a_panic_reaches_the_terminal(backtrace: str, tmp_path: Path) -> None:
    path = directory(tmp_path, normalizer=FAULTY)
    script = """
import os, pathlib, sys
from strata.text import TokenizerError, tokenizer_from_directory
os.write(2, b"before\\n")
try:
    tokenizer_from_directory(pathlib.Path(sys.argv[1])).encode("abc")
except TokenizerError as error:
    assert "gave up" in str(error), error
    os.write(2, b"after\\n")
"""
    environment = {**os.environ, "RUST_BACKTRACE": backtrace}
    done = subprocess.run(
        [sys.executable, "-c", script, path],
        capture_output=True,
        env=environment,
        check=True,
        text=True,
    )
    assert done.stderr == "before\nafter\n"


def test_what_others_say_meanwhile_arrives(capfd: pytest.CaptureFixture[str]) -> None:
    with panics_untold():
        other = threading.Thread(target=os.write, args=(2, b"from another thread\n"))
        other.start()
        other.join()
        with panics_untold():
            os.write(2, b"from within\n")
    assert capfd.readouterr().err == "from another thread\nfrom within\n"


def _says_and_fails() -> None:
    with panics_untold():
        os.write(2, b"thread 'x' panicked at y:\nkept\n")
        raise ValueError("kept")


def test_only_a_panic_is_untold(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="kept"):
        _says_and_fails()
    assert capfd.readouterr().err == "thread 'x' panicked at y:\nkept\n"


def test_a_process_without_standard_error_goes_on(tmp_path: Path) -> None:
    before = os.dup(2)
    os.close(2)
    try:
        with pytest.raises(TokenizerError, match="gave up"):
            tokenizer_from_directory(directory(tmp_path, normalizer=FAULTY)).encode("abc")
    finally:
        os.dup2(before, 2)
        os.close(before)
