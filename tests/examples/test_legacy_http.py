"""The codec of the legacy examples, against the standard library's."""

from __future__ import annotations

import re
import xmlrpc.client

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.legacy_http import Failure, Unreadable, Value, integer, read_call, read_reply, write_call

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20)
VALUES: st.SearchStrategy[Value] = st.recursive(
    st.none() | st.booleans() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc_", min_size=1), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(VALUES, max_size=3))
def test_the_standard_library_reads_what_is_written(params: list[Value]) -> None:
    """A call is read the same by xmlrpc.client and by ourselves."""
    body = write_call("VM.add", params)
    assert read_call(body) == ("VM.add", params)
    assert xmlrpc.client.loads(body) == (tuple(params), "VM.add")


@given(st.lists(VALUES, max_size=3))
def test_what_the_standard_library_writes_is_read(params: list[Value]) -> None:
    """Line ends between tags and explicit <string> tags do not matter."""
    body = xmlrpc.client.dumps(tuple(params), "login", allow_none=True).encode()
    assert read_call(body) == ("login", params)


def test_numbers_have_the_looks_of_the_wire() -> None:
    """Integers bear no tag, floats have at most 16 digits, control bytes vanish, quotes are escaped."""
    body = write_call("f", [7, 1.0, 0.1, True, 'a\x01"<&'])
    expected = (
        b"<value>7</value>|<value><double>1</double></value>|<value><double>0.1</double></value>|"
        b"<value><boolean>1</boolean></value>|<value>a&quot;&lt;&amp;</value>"
    )
    for part in expected.split(b"|"):
        assert part in body


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("17", 17),
        ("-0x10", -16),
        ("0o17", 15),
        ("0b11", 3),
        ("1_0_", 10),
        ("+5", 5),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_integers_are_read_as_ocaml_does(text: str, number: int) -> None:
    """Prefixes and underscores are part of an integer."""
    assert integer(text) == number


@pytest.mark.parametrize("text", [" ", " 1", "1 ", "x", "0x", "_1", "1.0", "9223372036854775808", None, True])
def test_what_is_no_integer_is_refused(text: Value) -> None:
    """Blanks, fractions, and what does not fit into 64 bits."""
    with pytest.raises(ValueError, match=re.escape(str(text))):
        integer(text)


@pytest.mark.parametrize(
    "body", [b"", b"junk", b"<a/>", b"<methodCall><methodName>f</methodName><params><param/></params></methodCall>"]
)
def test_what_is_no_call_is_unreadable(body: bytes) -> None:
    """Nothing else than Unreadable comes out."""
    with pytest.raises(Unreadable):
        read_call(body)


def test_a_failure_is_raised_with_its_description() -> None:
    """The envelope decides, not the method."""
    envelope = {"Status": "Failure", "ErrorDescription": ["Unknown_reservation", "x"]}
    body = xmlrpc.client.dumps((envelope,), methodresponse=True).encode()
    with pytest.raises(Failure) as caught:
        read_reply(body)
    assert caught.value.description == ["Unknown_reservation", "x"]
