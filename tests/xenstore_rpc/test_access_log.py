"""oxenstored's access log: what lines say, and the calls that they tell of; the last test reads a real one."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.fixtures_xenstored import running_store
from xenstore_rpc.access_log import NODE_LIMIT, OPEN_LIMIT, Calls, Event, Gone, Seen, read_line
from xenstore_rpc.connection import Store
from xenstore_rpc.packets import Op
from xenstore_rpc.records import Response
from xenstore_rpc.rpc import Caller, Server

AT = "[20261125T17:31:44.014Z]"
TIME = 1795627904014000000
REQUEST = "/squeezed/rpc/request/login/ID"
RESPONSE = "/squeezed/rpc/response/login/ID"


def log(*operations: str) -> list[Event]:
    """What lines at one moment tell: each is CONNECTION OPERATION DATA, laid out as oxenstored does."""
    lines = []
    for operation in operations:
        connection, kind, data = operation.split(" ", 2)
        lines.append(f"{AT}  {connection:<12} {kind.replace('_', ' '):<9} {data}".encode())
    return events(Calls(), lines)


def events(calls: Calls, lines: Iterable[bytes]) -> list[Event]:
    found: list[Event] = []
    for line in lines:
        read = read_line(line)
        assert read is not None, line
        found += calls.feed(read)
    return found


def request(*nodes: tuple[str, bytes], cut: tuple[str, ...] = ()) -> Seen:
    return Seen(TIME, "A3", "squeezed", "login", "ID", True, nodes, cut)


# ---- lines, as oxenstored of Xen 4.17 wrote them


def test_a_line() -> None:
    line = read_line(b"[20261125T17:31:44.014Z]  A3.12        write     /squeezed/pid 18419")
    assert line == (TIME, "A3", 12, "write", b"/squeezed/pid 18419", False)


@pytest.mark.parametrize(
    ("line", "connection", "transaction", "operation", "data"),
    [
        (b"[20261125T17:31:43.974Z]  A1           newconn   ", "A1", 0, "newconn", b""),
        (b"[20261125T17:31:44.014Z]  A3.1         commit    ", "A3", 1, "commit", b""),
        (b"[20261125T17:32:59.491Z]  r(4):A2.5    commit    ", "A2", 5, "commit", b""),
        (b"[20261125T17:31:44.014Z]  A2           w event   /a/b X ", "A2", 0, "w event", b"/a/b X "),
        (b"[20261125T17:32:59.991Z]  D0.6         t end     ", "D0", 6, "t end", b""),
        (b"[20261125T17:32:59.492Z]  A2           error     EINVAL ", "A2", 0, "error", b"EINVAL "),
    ],
)
def test_other_lines(line: bytes, connection: str, transaction: int, operation: str, data: bytes) -> None:
    read = read_line(line)
    assert read is not None
    assert read[1:5] == (connection, transaction, operation, data)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"Nov 25 17:31:44 host oxenstored: A3 write /a b",
        b"[20261125T17:31:44.014Z] (II) something from the other log",
        b"[20261345T17:31:44.014Z]  A3           write     /a b",
        b"[20261125T17:31:44.014Z]  A3",
        b"\x00\xff",
    ],
)
def test_a_foreign_line_is_none(line: bytes) -> None:
    assert read_line(line) is None


def test_a_cut_line() -> None:
    line = read_line(b"[20261125T17:31:44.014Z]  A3           write     /a bbbb..")
    assert line is not None
    assert (line.data, line.is_cut) == (b"/a bbbb", True)


# ---- calls


def test_a_request_stands_there_when_its_transaction_is_committed() -> None:
    writes = (f"A3.1 mkdir {REQUEST} ", f"A3.1 write {REQUEST}/service_name xenopsd")
    assert log(*writes) == []
    assert log(*writes, "A3.1 commit ") == [request(("service_name", b"xenopsd"))]


def test_a_response_and_the_removal_of_its_request() -> None:
    found = log(f"A2.1 mkdir {RESPONSE} ", f"A2.1 write {RESPONSE}/session_id s", "A2.1 commit ", f"A3 rm {REQUEST} ")
    response = Seen(TIME, "A2", "squeezed", "login", "ID", False, (("session_id", b"s"),), ())
    assert found == [response, Gone(TIME, "squeezed", "login", "ID")]


def test_a_transaction_that_was_merged_is_over() -> None:
    """Beside others in the tree a transaction ends with `coalesce` and the place that both changed."""
    writes = f"A3.1 mkdir {REQUEST} ", f"A3.1 write {REQUEST}/a 1"
    assert log(*writes, "A3.1 coalesce  write /squeezed/rpc/request/login") == [request(("a", b"1"))]


def test_what_did_not_happen_is_not_told() -> None:
    """A conflict; one that the store resolves itself by running it again under another number; a refusal."""
    write = f"write {REQUEST}/a 1"
    assert log(f"A3.1 mkdir {REQUEST} ", "A3.1 conflict ", "A3.1 error EAGAIN ") == []
    again = log(
        f"A3.1 mkdir {REQUEST} ",
        f"A3.1 {write}",
        "A3.1 conflict ",
        f"r(1):A3.2 mkdir {REQUEST} ",
        f"r(1):A3.2 {write}",
        "r(1):A3.2 commit ",
    )
    assert again == [request(("a", b"1"))]
    refused = log(f"A3.1 mkdir {REQUEST} ", f"A3.1 {write}", f"A3.1 write {REQUEST}/b 2", "A3.1 error EINVAL ")
    assert refused == []
    refused = log(
        f"A3.1 mkdir {REQUEST} ",
        f"A3.1 {write}",
        "A3.1 write /elsewhere x",
        "A3.1 error EINVAL ",
        f"A3.1 write {REQUEST}/b 2",
        "A3.1 error EQUOTA ",
        "A3.1 commit ",
    )
    assert refused == [request(("a", b"1"))]


def test_without_a_transaction_a_record_is_over_with_the_connections_next_other_operation() -> None:
    writes = (f"A3 mkdir {REQUEST} ", f"A3 write {REQUEST}/a 1", f"A3 w_event {REQUEST} X ", "A4 write /x y")
    assert log(*writes) == []
    whole = request(("a", b"1"))
    assert log(*writes, f"A3 watch {RESPONSE} X ") == [whole]
    assert log(*writes, "A3 endconn ") == [whole]
    calls = Calls()
    lines = [f"{AT}  A3           mkdir     {REQUEST} ".encode(), f"{AT}  A4.7         mkdir     {REQUEST}x ".encode()]
    assert events(calls, lines) == []
    assert calls.end(TIME) == [request()]


def test_values_are_as_they_were() -> None:
    (seen,) = log(
        f"A3.1 mkdir {REQUEST} ",
        rf"A3.1 write {REQUEST}/a line\nbreak \001\195\191 'q' \"q\" \\ \t\127",
        f"A3.1 write {REQUEST}/empty ",
        f"A3.1 mkdir {REQUEST}/made ",
        "A3.1 commit ",
    )
    assert isinstance(seen, Seen)
    assert dict(seen.nodes) == {"a": b"line\nbreak \x01\xc3\xbf 'q' \"q\" \\ \t\x7f", "empty": b"", "made": b""}
    assert seen.cut == ()


def test_a_cut_value_is_named_and_half_an_escape_left_out() -> None:
    (seen,) = log(f"A3.1 mkdir {REQUEST} ", rf"A3.1 write {REQUEST}/a x\19..", "A3.1 commit ")
    assert seen == request(("a", b"x"), cut=("a",))
    (seen,) = log(f"A3.1 mkdir {REQUEST} ", f"A3.1 write {REQUEST}/reservat..", "A3.1 commit ")
    assert isinstance(seen, Seen)
    assert seen.cut != ()


def test_a_record_whose_beginning_is_not_in_the_log_is_cut() -> None:
    assert log(f"A3.1 write {REQUEST}/kib 5", "A3.1 commit ") == [request(("kib", b"5"), cut=("",))]


def test_every_tree_is_followed_and_nothing_else() -> None:
    (seen,) = log("D3 mkdir /other/rpc/request/f/1 ", "D3 write /other/rpc/pid 5", "D3 mkdir /other/rpc/request/f ")
    assert isinstance(seen, Seen)
    assert (seen.tree, seen.connection) == ("other", "D3")


def test_what_is_kept_is_bounded() -> None:
    calls = Calls()
    opened = (f"{AT}  A3.{number:<9} mkdir     {REQUEST} ".encode() for number in range(1, OPEN_LIMIT + 3))
    assert events(calls, opened) == []
    assert calls.forgotten == 2
    many = [f"A3.1 write {REQUEST}/n{number} x" for number in range(NODE_LIMIT + 5)]
    (seen,) = log(f"A3.1 mkdir {REQUEST} ", *many, "A3.1 commit ")
    assert isinstance(seen, Seen)
    assert len(seen.nodes) == NODE_LIMIT
    assert seen.cut == ("",)


# ---- a real log


async def test_the_log_of_a_real_oxenstored(request: pytest.FixtureRequest) -> None:
    """What our own caller and server did is what the log tells, cut values and conflicts included."""
    stub: Path = request.getfixturevalue("xenstored_stub")
    async with running_store("oxenstored", lambda: stub) as process:
        store, other = Store(process.socket), Store(process.socket)
        await store.connect()
        await other.connect()
        server = Server(other, "squeezed", answer, pid=os.getpid())
        await server.register()
        serving = asyncio.create_task(server.run())
        caller = Caller(store, "squeezed")
        value = b"'\"\\\n\xff" * 3
        await caller.call("echo", [("a", value), ("empty", b"")], timeout=10, request_id="one")
        await caller.call("echo", [("a", b"v" * 400)], timeout=10, request_id="two")
        await server.stop()
        await asyncio.wait([serving])
        async with store.transaction() as tx:
            await tx.submit(Op.MKDIR, b"/squeezed/rpc/request/echo/three\0")
            await other.write("/squeezed/rpc/request/echo/x", b"")  # the store runs the transaction again
        await store.close()
        await other.close()
        lines = await asyncio.to_thread(finished, Path(process.socket).parent / "access")
    found = [each for each in events(Calls(), lines) if isinstance(each, Seen)]
    told = {(each.request_id, each.is_request): each for each in found}
    assert set(told) == {("one", True), ("one", False), ("two", True), ("two", False), ("three", True)}
    for is_request in (True, False):
        whole, cut = told["one", is_request], told["two", is_request]
        assert dict(whole.nodes) == {"a": value, "empty": b""}
        assert whole.cut == ()
        assert cut.cut == ("a",)
        assert 20 < len(dict(cut.nodes)["a"]) < 180
    assert told["three", True].nodes == ()
    assert told["one", True].connection != told["one", False].connection


async def answer(request: object) -> Response:
    """An echo."""
    return Response(request.arguments)  # type: ignore[attr-defined]


def finished(file: Path) -> list[bytes]:
    """The lines of a log once both connections have ended in it."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        lines = file.read_bytes().splitlines()
        if sum(b"endconn" in line for line in lines) >= 3:  # one more looked whether the store was up
            return lines
        time.sleep(0.01)
    raise AssertionError(file.read_text())
