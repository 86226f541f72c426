"""Requests, responses and the tree of the RPC convention."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenstore_rpc.errors import InvalidPath, ValueTooLong
from xenstore_rpc.records import Request, Response, Tree, error_response, node_payloads, unanswered

TREE = Tree("squeezed")


def test_tree_paths() -> None:
    """The paths are those of the 2009 convention."""
    assert (TREE.pid, TREE.state) == ("/squeezed/pid", "/squeezed/state")
    assert TREE.request("echo", "u1") == "/squeezed/rpc/request/echo/u1"
    assert TREE.response("echo", "u1") == "/squeezed/rpc/response/echo/u1"


@pytest.mark.parametrize(("function", "request_id"), [("a/b", "u"), ("a", "u/v"), ("", "u"), ("a", "")])
def test_tree_refuses_parts_that_are_no_names(function: str, request_id: str) -> None:
    """A function or id that would reach elsewhere in the store is refused."""
    with pytest.raises(InvalidPath):
        TREE.request(function, request_id)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("/squeezed/rpc/request", None),
        ("/squeezed/rpc/request/echo", None),
        ("/squeezed/rpc/request/echo/u", ("echo", "u")),
        ("/squeezed/rpc/request/echo/u/arg", ("echo", "u")),
        ("/squeezed/rpc/requests/echo/u", None),
        ("/other", None),
    ],
)
def test_request_key_of_a_changed_path(path: str, key: tuple[str, str] | None) -> None:
    """A watch event within a request names the request; above it, it does not."""
    assert TREE.request_key(path) == key


@pytest.mark.parametrize(
    ("results", "is_error"),
    [
        ((), False),
        ((("code", b"2"),), False),
        ((("description", b"x"),), False),
        ((("description", b"x"), ("other", b""), ("code", b"2")), True),
    ],
)
def test_only_code_and_description_together_are_an_error(
    results: tuple[tuple[str, bytes], ...], *, is_error: bool
) -> None:
    """One of the two keys alone is an ordinary result."""
    assert Response(results).is_error is is_error


def test_error_response_reads_back() -> None:
    """Code and description come back, whatever text was put in."""
    response = error_response("1000", "10,5 \udc00")
    assert (response.is_error, response.code, response.description) == (True, "1000", "10,5 \\udc00")
    assert (Response(()).code, Response(()).description) == ("", "")


def test_request_key() -> None:
    """A request is told apart by function and id."""
    assert Request("echo", "u", ()).key == ("echo", "u")


def test_node_payloads_check_names_and_sizes() -> None:
    """Every node is checked before anything is sent."""
    assert node_payloads("/d", "argument", [("a", b"1"), ("b", b"")]) == [b"/d/a\x001", b"/d/b\x00"]
    with pytest.raises(InvalidPath, match=r"^argument: 'a b'"):
        node_payloads("/d", "argument", [("a b", b"")])
    with pytest.raises(ValueTooLong):
        node_payloads("/d", "argument", [("a", bytes(4096))])


IDS = st.frozensets(st.sampled_from("abcdef"))


@given(st.dictionaries(st.sampled_from("fgh"), IDS), st.dictionaries(st.sampled_from("fgh"), IDS))
def test_unanswered_is_the_difference_per_function(
    requests: dict[str, frozenset[str]], responses: dict[str, frozenset[str]]
) -> None:
    """A request is unanswered unless the same function lists a response of the same id."""
    pairs = {(function, name) for function, names in requests.items() for name in names}
    done = {(function, name) for function, names in responses.items() for name in names}
    assert set(unanswered(requests, responses)) == pairs - done
