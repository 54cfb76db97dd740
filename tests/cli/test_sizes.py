"""Sizes as people write and read them."""

from __future__ import annotations

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from strata.cli.options import SIZE
from strata.errors import UsageError
from strata.sizes import (
    format_budget,
    format_seconds,
    format_size,
    format_speed,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MB", 512_000_000),
        ("4GB", 4_000_000_000),
        ("1.5GiB", 1_610_612_736),
        ("1 kib", 1024),
        ("0.1gb", 100_000_000),
        ("7", 7),
        ("7b", 7),
        (" 2TB ", 2_000_000_000_000),
        ("0.9999999999999999999GiB", 1_073_741_823),
        ("1024PiB", 2**60),
    ],
)
def test_reading(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "-1GB", "1e3MB", "1,5GB", "4 G B", "4gbs", "nan", "1025PiB", "٤GB", "9" * 99]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_995, "10.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (98_362_432, "98.4 MB"),
        (10**18, "1.00 EB"),
    ],
)
def test_writing(size: int, text: str) -> None:
    assert format_size(size) == text


@given(st.integers(0, 2**59))
def test_what_is_written_reads_back_to_three_digits(size: int) -> None:
    text = format_size(size)
    if not text.endswith("EB"):
        assert abs(parse_size(text) - size) <= 0.0051 * size


def test_the_option_type_names_the_parameter() -> None:
    assert SIZE.convert("4GB", None, None) == 4_000_000_000
    assert SIZE.convert(5, None, None) == 5
    with pytest.raises(click.BadParameter, match="512MB"):
        SIZE.convert("four", None, None)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (1, "1MB"),
        (345_000_000, "345MB"),
        (345_000_001, "346MB"),
        (9_999_000_001, "10000MB"),
        (10_000_000_001, "10.1GB"),
        (107_453_000_000, "107.5GB"),
        (200_000_000_000, "200GB"),
    ],
)
def test_a_budget_is_named_as_it_is_typed_and_never_too_small(size: int, text: str) -> None:
    assert format_budget(size) == text
    assert parse_size(text) >= size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0123, "12.3 ms"),
        (0.9999, "1 s"),
        (3.456, "3.46 s"),
        (119, "119 s"),
        (700, "11.7 min"),
        (90_000, "25 h"),
        (9.09e5, "10.5 days"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("speed", "text"),
    [(4049.2, "4049 tok/s"), (0.0897, "0.0897 tok/s"), (1.1e-6, "a token in 10.5 days")],
)
def test_speeds(speed: float, text: str) -> None:
    assert format_speed(speed) == text
