"""A flood of failures fills no log, and hides no other one."""

from __future__ import annotations

import logging

import pytest

from strata.server.seldom import Seldom

pytest.importorskip("fastapi", reason="the extra strata-llm[server] is not installed")


def _fails(number: int) -> BaseException:
    try:
        if number % 2:
            raise ZeroDivisionError("odd")
        raise KeyError("even")
    except (ZeroDivisionError, KeyError) as error:
        return error


def test_each_place_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 5.0
    seldom = Seldom(logging.getLogger("strata.server"), lambda: now)
    with caplog.at_level(logging.WARNING, "strata.server"):
        for number in range(1000):
            seldom.failure("a request failed", _fails(number))
            seldom.warning("no room")
        assert len(caplog.records) == 3
        now += 1
        seldom.failure("a request failed", _fails(0))
        seldom.warning("no room")
    assert len(caplog.records) == 5
    assert caplog.records[0].exc_info
    assert "(and 499 times since the last line)" in caplog.records[3].getMessage()
    assert caplog.records[4].getMessage() == "no room (and 999 times since the last line)"


def test_what_is_remembered_is_bounded() -> None:
    seldom = Seldom(logging.getLogger("strata.quiet"))
    for number in range(1000):
        error = type(f"Error{number}", (Exception,), {})()
        seldom.failure("it failed", error)
    assert len(seldom._places) <= 64
