"""Records of the xenstore RPC and neutral calls."""

from __future__ import annotations

from typing import Any

import pytest

from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.xenstore_translation import (
    LABEL,
    method_of,
    read_arguments,
    read_response,
    write_arguments,
    write_fault,
    write_response,
)
from xenstore_rpc.records import Request, Response, error_response

SQUEEZED = model.load("squeezed")


def request(function: str, **arguments: bytes) -> Request:
    return Request(function, "id", tuple(arguments.items()))


def method(name: str) -> model.Method:
    found = SQUEEZED.method(name)
    assert found is not None
    return found


FUNCTIONS = [
    ("login", {"service_name": b"xapi"}, {"service_name": "xapi"}, {"session_id": b"xapi"}, "xapi"),
    (
        "reserve-memory",
        {"session_id": b"s", "kib": b"1024"},
        {"session_id": "s", "kib": 1024},
        {"reservation_id": b"r"},
        "r",
    ),
    (
        "reserve-memory-range",
        {"session_id": b"s", "min": b"1", "max": b"9223372036854775807"},
        {"session_id": "s", "min": 1, "max": 2**63 - 1},
        {"reservation_id": b"r", "kib": b"5"},
        ("r", 5),
    ),
    (
        "transfer-reservation-to-domain",
        {"session_id": b"s", "reservation_id": b"r", "domid": b"7"},
        {"session_id": "s", "reservation_id": "r", "domid": 7},
        {},
        None,
    ),
    (
        "delete-reservation",
        {"session_id": b"s", "reservation_id": b"r"},
        {"session_id": "s", "reservation_id": "r"},
        {},
        None,
    ),
    ("balance-memory", {}, {}, {}, None),
]


@pytest.mark.parametrize(("function", "records", "arguments", "results", "value"), FUNCTIONS)
def test_functions_both_ways(function: str, records: Any, arguments: Any, results: Any, value: Any) -> None:
    """Arguments by name as decimal text, results by name; debug_info exists on the other side only."""
    found = method_of(SQUEEZED, request(function))
    assert read_arguments(found, request(function, **records)) == {"debug_info": LABEL} | arguments
    assert write_arguments(found, {"debug_info": "gone"} | arguments) == (function, tuple(records.items()))
    assert write_response(found, value) == Response(tuple(results.items()))
    assert read_response(SQUEEZED, found, arguments, Response(tuple(results.items()))) == value


def test_echo_carries_whatever_it_is_given() -> None:
    """Any names, none included; values are text."""
    found = method_of(SQUEEZED, request("echo"))
    for pairs in ({"a": "1", "b": "ü"}, {}):
        records = {name: value.encode() for name, value in pairs.items()}
        assert read_arguments(found, request("echo", **records)) == {"arguments": pairs}
        assert write_arguments(found, {"arguments": dict(pairs)}) == ("echo", tuple(records.items()))
        assert write_response(found, dict(pairs)) == Response(tuple(records.items()))
        assert read_response(SQUEEZED, found, {}, Response(tuple(records.items()))) == pairs


def test_every_function_of_the_interface_is_tried_here() -> None:
    """The tables above leave none out."""
    assert set(SQUEEZED.by_xenstore_function) == {row[0] for row in FUNCTIONS} | {"echo"}


@pytest.mark.parametrize(
    ("text", "value"), [(b"0x400", 1024), (b"0o17", 15), (b"0b11", 3), (b"1_000", 1000), (b"-5", -5)]
)
def test_integers_as_the_legacy_daemon_reads_them(text: bytes, value: int) -> None:
    """OCaml's forms; whether a negative amount is right is for the authority to say."""
    arguments = read_arguments(method("reserve_memory"), request("reserve-memory", session_id=b"s", kib=text))
    assert arguments["kib"] == value


@pytest.mark.parametrize(
    ("records", "kind", "code", "answer"),
    [
        ({}, Kind.DECLARED, "Missing_argument", ("3", "session_id")),
        ({"session_id": b"s"}, Kind.DECLARED, "Missing_argument", ("3", "kib")),
        ({"kib": b" 1"}, Kind.DECLARED, "Missing_argument", ("3", "session_id")),
        ({"session_id": b"s", "kib": b" 1"}, Kind.INVALID_ARGUMENT, "",
         ("2", "InvalidArgument: kib: expected int64 as decimal text, got ' 1'")),
        ({"session_id": b"s", "kib": b"9223372036854775808"}, Kind.INVALID_ARGUMENT, "",
         ("2", "InvalidArgument: kib: expected int64 as decimal text, got '9223372036854775808'")),
        ({"session_id": b"\xff", "kib": b"1"}, Kind.INVALID_ARGUMENT, "",
         ("2", "InvalidArgument: session_id: expected UTF-8 text, got byte 0xff at 0")),
    ],
)  # fmt: skip
def test_wrong_arguments(records: Any, kind: Kind, code: str, answer: tuple[str, str]) -> None:
    """The first missing one is code 3 with its name; what cannot be read is code 2, as the daemon's exceptions."""
    with pytest.raises(Fault) as caught:
        read_arguments(method("reserve_memory"), request("reserve-memory", **records))
    assert (caught.value.kind, caught.value.code) == (kind, code)
    assert write_fault(SQUEEZED, {}, caught.value) == error_response(*answer)


def test_unknown_arguments_are_ignored() -> None:
    """As the legacy daemon ignored them."""
    found = read_arguments(method("balance_memory"), request("balance-memory", what=b"ever"))
    assert found == {"debug_info": LABEL}


def test_an_unknown_function_is_code_1_with_its_name() -> None:
    """Both ways."""
    with pytest.raises(Fault) as caught:
        method_of(SQUEEZED, request("reopen-logs"))
    assert write_fault(SQUEEZED, {}, caught.value) == error_response("1", "reopen-logs")
    with pytest.raises(Fault) as caught:
        read_response(SQUEEZED, method("balance_memory"), {}, error_response("1", "balance-memory"))
    assert caught.value.kind is Kind.UNKNOWN_METHOD


def test_a_method_without_a_function_is_refused() -> None:
    """It is never sent."""
    with pytest.raises(Fault, match="get_diagnostics has no xenstore function") as caught:
        write_arguments(method("get_diagnostics"), {"debug_info": "d"})
    assert caught.value.kind is Kind.UNKNOWN_METHOD


ARGUMENTS = {"debug_info": "d", "session_id": "s", "min": 5, "max": 3}


@pytest.mark.parametrize(
    ("code", "description", "error", "argument"),
    [
        ("1000", "524288,131072", "Cannot_free_this_much_memory", (524288, 131072)),
        ("1001", "1,2,30", "Domains_refused_to_cooperate", [1, 2, 30]),
        ("1001", "", "Domains_refused_to_cooperate", []),
        ("1002", "r", "Unknown_reservation", "r"),
        ("1003", "min", "Invalid_memory_value", 5),
        ("1003", "max", "Invalid_memory_value", 3),
        ("2", 'Failure("int_of_string")', "Internal_error", 'Failure("int_of_string")'),
        ("3", "kib", "Missing_argument", "kib"),
    ],
)
def test_declared_errors_both_ways(code: str, description: str, error: str, argument: Any) -> None:
    """Every code of the table; 1003 names the argument in the store and its value elsewhere."""
    with pytest.raises(Fault) as caught:
        read_response(SQUEEZED, method("reserve_memory_range"), dict(ARGUMENTS), error_response(code, description))
    fault = caught.value
    assert (fault.kind, fault.code, fault.argument) == (Kind.DECLARED, error, argument)
    assert write_fault(SQUEEZED, dict(ARGUMENTS), fault) == error_response(code, description)


def test_every_code_of_the_interface_is_tried_here() -> None:
    """The table above leaves none out."""
    assert set(SQUEEZED.xenstore_errors) == {"1000", "1001", "1002", "1003", "2", "3"}


@pytest.mark.parametrize(
    ("code", "description"),
    [
        ("999", "what"),
        ("1000", "5"),
        ("1000", "1,2,3"),
        ("1000", "a,b"),
        ("1001", "one"),
        ("1003", "nosuch"),
        ("1003", "session_id"),
    ],
)
def test_other_errors_keep_code_and_description(code: str, description: str) -> None:
    """An unknown code, or a description that is not of its form, is undeclared and goes back as it came."""
    with pytest.raises(Fault) as caught:
        read_response(SQUEEZED, method("reserve_memory_range"), dict(ARGUMENTS), error_response(code, description))
    fault = caught.value
    assert (fault.kind, fault.code, fault.argument) == (Kind.UNDECLARED, code, [description])
    assert write_fault(SQUEEZED, dict(ARGUMENTS), fault) == error_response(code, description)


@pytest.mark.parametrize(
    ("fault", "code", "description"),
    [
        (Fault(Kind.DECLARED, "text", code="Invalid_memory_value", argument=77), "1003", "77"),
        (Fault(Kind.DECLARED, "No_reservation", code="No_reservation"), "2", "No_reservation"),
        (Fault(Kind.DECLARED, "none there", code="No_reservation"), "2", "No_reservation: none there"),
        (Fault(Kind.UNDECLARED, "text", code="Fresh", argument=["x"]), "2", "Fresh: text"),
        (Fault(Kind.UNDECLARED, "text", code="1000", argument=["x", "y"]), "2", "1000: text"),
        (Fault(Kind.UNAVAILABLE, "nobody there"), "2", "Unavailable: nobody there"),
        (Fault(Kind.IN_DOUBT, "who knows"), "2", "InDoubt: who knows"),
    ],
)
def test_faults_without_a_code_of_their_own(fault: Fault, code: str, description: str) -> None:
    """Code 2 with the name in the text, as the daemon's own exceptions."""
    assert write_fault(SQUEEZED, dict(ARGUMENTS), fault) == error_response(code, description)


@pytest.mark.parametrize(
    ("results", "text"),
    [
        ({"reservation_id": b"r"}, "kib: is missing"),
        ({"reservation_id": b"r", "kib": b"many"}, "kib: expected int64 as decimal text, got 'many'"),
        ({"reservation_id": b"r", "code": b"1"}, "kib: is missing"),
        ({"reservation_id": b"\xff", "kib": b"1"}, "reservation_id: expected UTF-8 text, got byte 0xff at 0"),
    ],
)
def test_an_answer_that_is_not_as_declared(results: Any, text: str) -> None:
    """The fault says that the call was executed; one of code and description alone makes no error answer."""
    with pytest.raises(Fault) as caught:
        read_response(SQUEEZED, method("reserve_memory_range"), {}, Response(tuple(results.items())))
    assert caught.value.kind is Kind.NOT_REPRESENTABLE
    assert caught.value.text == f"reserve_memory_range was executed; its answer, {text}"


def test_a_text_that_the_store_cannot_carry() -> None:
    """A lone surrogate has no bytes."""
    with pytest.raises(Fault, match="session_id: expected text, got a lone surrogate at 1") as caught:
        write_arguments(method("delete_reservation"), {"session_id": "a\ud800", "reservation_id": "r"})
    assert caught.value.kind is Kind.NOT_REPRESENTABLE
