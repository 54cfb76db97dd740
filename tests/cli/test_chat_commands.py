"""Settings of a chat, and conversations in files."""

from __future__ import annotations

from pathlib import Path

import pytest

from strata import SamplingParams, UsageError
from strata.cli.chat_commands import (
    SETTINGS,
    changed,
    read_conversation,
    shown,
    write_conversation,
)

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße"},
    {"role": "assistant", "content": "Hello."},
]


def test_settings_change_one_at_a_time() -> None:
    params = SamplingParams()
    for name, value, found in (
        ("temperature", "0.5", 0.5),
        ("temp", "0.25", 0.25),
        ("top-k", "40", 40),
        ("num_predict", "7", 7),
        ("stop", "###", "###"),
        ("max_tokens", "off", None),
    ):
        params = changed(params, name, value)
        assert found in (params.temperature, params.top_k, params.max_tokens, params.stop)
    assert params == SamplingParams(temperature=0.25, top_k=40, stop="###")
    assert tuple(shown(params)) == SETTINGS
    assert shown(params)["seed"] == "off"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("warmth", "1", "no setting 'warmth'"),
        ("temperature", "warm", "a number"),
        ("temperature", "-1", "at least 0"),
        ("top_k", "1.5", "whole number"),
    ],
)
def test_what_is_no_setting(name: str, value: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        changed(SamplingParams(), name, value)


def test_a_conversation_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    write_conversation(path, TALK)
    assert read_conversation(path) == TALK
    write_conversation(path, TALK[:1])
    assert read_conversation(path) == TALK[:1], "one's own file is written over"


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"[]", b"\xff", b'{"messages": 3}', b'{"messages": [{"role": "root"}]}'],
)
def test_other_files_are_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="no conversation"):
        read_conversation(path)
    with pytest.raises(UsageError, match="left alone"):
        write_conversation(path, TALK)
    assert path.read_bytes() == content
    with pytest.raises(UsageError, match="No such file"):
        read_conversation(tmp_path / "none")
    with pytest.raises(UsageError, match="No such file"):
        write_conversation(tmp_path / "no" / "folder", TALK)
