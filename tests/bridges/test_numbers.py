"""Numbers as OCaml reads them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridges import numbers


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        ("0", "int", 0),
        ("-0", "int", 0),
        ("+7", "int", 7),
        ("007", "int", 7),
        ("1_000_", "int", 1000),
        ("0x1F", "int", 31),
        ("0XfF", "int", 255),
        ("-0x1f", "int", -31),
        ("0o17", "int", 15),
        ("0O17", "int", 15),
        ("0b1_01", "int", 5),
        ("0u12", "int", 12),
        ("4611686018427387903", "int", 2**62 - 1),
        ("-4611686018427387904", "int", -(2**62)),
        ("0x7fffffffffffffff", "int", -1),
        ("0x4000000000000000", "int", -(2**62)),
        ("2147483647", "int32", 2**31 - 1),
        ("-2147483648", "int32", -(2**31)),
        ("0xffffffff", "int32", -1),
        ("0u4294967295", "int32", -1),
        ("-0xffffffff", "int32", 1),
        ("-0x80000000", "int32", -(2**31)),
        ("9223372036854775807", "int64", 2**63 - 1),
        ("-9223372036854775808", "int64", -(2**63)),
        ("0xffffffffffffffff", "int64", -1),
        ("0x8000000000000000", "int64", -(2**63)),
    ],
)
def test_integers_are_read_as_ocaml_reads_them(text: str, kind: str, expected: int) -> None:
    """Signs, prefixes and underscores are taken, and prefixed text may use all bits."""
    assert numbers.integer(text, kind) == expected


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", "int"),
        ("-", "int"),
        ("--1", "int"),
        ("0x", "int"),
        ("_1", "int"),
        ("0x_1", "int"),
        ("0b2", "int"),
        ("0o8", "int"),
        (" 1", "int"),
        ("1 ", "int"),
        ("1\n", "int"),
        ("1.0", "int"),
        ("1e3", "int"),
        ("seven", "int"),
        ("٣", "int"),
        ("4611686018427387904", "int"),
        ("-4611686018427387905", "int"),
        ("0xffffffffffffffff", "int"),
        ("2147483648", "int32"),
        ("0x100000000", "int32"),
        ("9223372036854775808", "int64"),
        ("0x10000000000000000", "int64"),
        ("1" * 10_000, "int64"),
    ],
)
def test_what_ocaml_refuses_is_refused(text: str, kind: str) -> None:
    """Blanks, foreign digits, empty digits and values beyond the width are no integers."""
    assert numbers.integer(text, kind) is None


@settings(derandomize=True, database=None, max_examples=50)
@given(st.sampled_from(sorted(numbers.RANGES)), st.data())
def test_decimal_text_of_every_integer_is_read_back(kind: str, data: st.DataObject) -> None:
    """What we write is what they read."""
    number = data.draw(st.integers(*numbers.RANGES[kind]))
    assert numbers.integer(str(number), kind) == number


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1.0),
        ("-1.5", -1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1_000.5", 1000.5),
        ("inf", math.inf),
        ("-Infinity", -math.inf),
        ("0x1.8p1", 3.0),
        ("1e999", math.inf),
        ("-0x1p99999", -math.inf),
    ],
)
def test_floats_are_read_as_ocaml_reads_them(text: str, expected: float) -> None:
    """Decimal and hexadecimal text, underscores, and the names of infinity."""
    assert numbers.floating(text) == expected


def test_nan_is_a_float() -> None:
    """NaN has a spelling of its own."""
    found = numbers.floating("nan")
    assert found is not None
    assert math.isnan(found)


@pytest.mark.parametrize("text", ["", ".", "e5", " 1", "1 ", "1,5", "٣", "one", "0x", "1" * 10_000])
def test_what_is_no_float_is_refused(text: str) -> None:
    """Blanks, foreign digits and words are no floats."""
    assert numbers.floating(text) is None
