"""Other tools' files as records: access logs, bus messages captured by the real programs, recorded exchanges."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from bridges.capture import importing
from bridges.capture.importing import Imported, access_log, dbus_capture, exchanges, kind_of
from bridges.capture.records import Complete, Leg, Lost, Reply, Request, encode
from bridges.capture.store import CaptureError
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.messages import MethodCall
from dbus_side.pcap import Writer
from tests.fixtures_dbus import BusDaemon

GOLDEN = Path(__file__).parents[1] / "golden"
LOG = """\
[20261125T17:31:44.013Z]  A3           newconn   
[20261125T17:31:44.019Z]  A3.3         mkdir     /squeezed/rpc/request/reserve-memory/ID 
[20261125T17:31:44.019Z]  A3.3         write     /squeezed/rpc/request/reserve-memory/ID/session_id s1
[20261125T17:31:44.019Z]  A3.3         write     /squeezed/rpc/request/reserve-memory/ID/kib 1024
[20261125T17:31:44.019Z]  A3.3         commit    
[20261125T17:31:44.019Z]  A2           w event   /squeezed/rpc/request/reserve-memory/ID X 
[20261125T17:31:44.020Z]  A2           write     /squeezed/state/s1/f49d5b59 1024
[20261125T17:31:44.020Z]  A2.3         mkdir     /squeezed/rpc/response/reserve-memory/ID 
[20261125T17:31:44.020Z]  A2.3         write     /squeezed/rpc/response/reserve-memory/ID/reservation_id f49d5b59
[20261125T17:31:44.021Z]  A2.3         commit    
[20261125T17:31:44.021Z]  A3           rm        /squeezed/rpc/request/reserve-memory/ID 
"""  # noqa: W291 -- as oxenstored writes them
FIRST_HALF = "".join(LOG.splitlines(keepends=True)[:5])
SECOND_HALF = "".join(LOG.splitlines(keepends=True)[5:])


def taken(imported: Imported) -> list[Any]:
    return list(imported.records)


def logged(directory: Path, text: str, name: str = "access") -> tuple[list[Any], list[str]]:
    """Records and notes of a log."""
    file = directory / name
    file.write_text(text)
    notes: list[str] = []
    return taken(access_log(file, notes.append)), notes


# ---- access logs


def test_a_call_in_a_log(tmp_path: Path) -> None:
    (request, reply), notes = logged(tmp_path, LOG)
    assert isinstance(request, Request)
    assert (request.leg, request.door, request.conn, request.side) == (Leg.OBSERVED, "xenstore", "A3", "legacy")
    assert (request.name, request.method, request.effect) == ("reserve-memory", "reserve_memory", "write")
    assert request.arguments == {"debug_info": "xenstore-rpc", "session_id": "s1", "kib": "1024"}
    assert request.ts == request.mono == "1795627904019000000"
    assert isinstance(reply, Reply)
    assert (reply.re, reply.id, reply.us, reply.result) == (1, request.id, 2000, "f49d5b59")
    assert notes == []


def test_the_header_says_what_it_was_made_from(tmp_path: Path) -> None:
    file = tmp_path / "access"
    file.write_text(LOG)
    header = access_log(file, print).header(3, "chain")
    assert (header.source, header.segment, header.chain) == ("oxenstored access log", 3, "chain")
    assert (header.dialects, list(header.interfaces)) == ({"squeezed": "rpclib"}, ["squeezed"])
    assert header.real == header.mono


def test_secrets_of_a_log_are_nowhere(tmp_path: Path) -> None:
    """In arguments that are written down, and in trees of services that are not."""
    text = LOG.replace("reserve-memory", "echo").replace("session_id s1", "password hunter2-canary")
    text += text.replace("/squeezed/", "/other/").replace("ID", "ID2")
    found, notes = logged(tmp_path, text)
    assert len(found) == 4
    assert b"hunter2" not in b"".join(map(encode, found)) + "".join(notes).encode()


def test_other_trees_are_kept_for_the_report(tmp_path: Path) -> None:
    """A host where the bridge never was: names and sizes, no values."""
    failed = SECOND_HALF.replace("reservation_id f49d5b59", "code 17").replace(
        "A2.3         commit",
        "A2.3         write     /squeezed/rpc/response/reserve-memory/ID/description d\n"
        "[20261125T17:31:44.021Z]  A2.3         commit",
    )
    (request, reply), _ = logged(tmp_path, (FIRST_HALF + failed).replace("/squeezed/", "/v6d/"))
    assert (request.service, request.name, request.method, request.arguments) == ("v6d", "reserve-memory", "", None)
    assert (request.complete, request.size) == (Complete.UNREAD, len("session_ids1kib1024"))
    assert request.note == "no interface is written down; arguments: session_id, kib"
    assert (reply.outcome, reply.fault.code, reply.us) == ("fault", "17", 2000)


def test_a_function_that_is_not_written_down(tmp_path: Path) -> None:
    (request, reply), _ = logged(tmp_path, LOG.replace("reserve-memory", "nope"))
    assert (request.name, request.method, request.complete) == ("nope", "", Complete.UNREAD)
    assert reply.complete is Complete.UNREAD


def test_a_cut_value_is_not_kept(tmp_path: Path) -> None:
    """Half a number is another number."""
    (request, reply), _ = logged(tmp_path, LOG.replace("kib 1024", "kib 10.."))
    assert (request.complete, request.arguments) == (Complete.CUT, None)
    assert request.note == "the log has cut kib; arguments: session_id, kib"
    assert (reply.outcome, reply.result) == ("answered", "f49d5b59")
    (request, reply), _ = logged(tmp_path, LOG.replace("f49d5b59\n", "f49d..\n"))
    assert (reply.outcome, reply.complete, reply.result) == ("answered", Complete.CUT, None)


def test_a_cut_failure_keeps_its_code(tmp_path: Path) -> None:
    more = (
        "write     /squeezed/rpc/response/reserve-memory/ID/description 102..\n[20261125T17:31:44.021Z]  A2.3         "
    )
    text = LOG.replace("reservation_id f49d5b59", "code 1000").replace(
        "A2.3         commit", f"A2.3         {more}commit"
    )
    (_, reply), _ = logged(tmp_path, text)
    assert (reply.outcome, reply.complete) == ("fault", Complete.CUT)
    assert (reply.fault.kind, reply.fault.code) == ("Declared", "Cannot_free_this_much_memory")
    assert reply.fault.argument is None


def test_a_log_that_begins_within_a_call(tmp_path: Path) -> None:
    (request, reply), _ = logged(tmp_path, SECOND_HALF)
    assert (request.complete, request.conn, request.arguments) == (Complete.NO_ARGUMENTS, "", None)
    assert (reply.outcome, reply.re) == ("answered", request.seq)


def test_a_call_that_was_never_answered(tmp_path: Path) -> None:
    (request,), _ = logged(tmp_path, FIRST_HALF)
    assert request.method == "reserve_memory"


def test_rotated_files_are_read_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "access.2").write_text(FIRST_HALF)
    with gzip.open(tmp_path / "access.1.gz", "wt") as packed:
        packed.write(SECOND_HALF)
    found, notes = logged(tmp_path, LOG.replace("ID", "ID2").replace("T17", "T18"))
    assert [type(record) for record in found] == [Request, Reply] * 2
    assert found[1].us == 2000
    assert notes == [f"{tmp_path}/access: read with 2 older files, from access.2 on"]


def test_foreign_lines_are_named_and_counted(tmp_path: Path) -> None:
    strange = "Nov 25 17:31:44 kernel: hunter2\n"
    found, notes = logged(tmp_path, strange + FIRST_HALF + "[2026\n" * 12 + SECOND_HALF)
    assert [type(record) for record in found] == [Request, Reply, Lost]
    assert notes[0] == f"{tmp_path}/access line 1: is no line of oxenstored's access log: skipped"
    assert notes[1].startswith(f"{tmp_path}/access line 7: ")
    assert len(notes) == 11
    assert notes[-1] == "13 lines in all are none of oxenstored's access log: they were skipped"


def test_a_clock_that_goes_back_is_told(tmp_path: Path) -> None:
    _, notes = logged(tmp_path, FIRST_HALF + SECOND_HALF.replace("T17:31", "T16:31"))
    assert notes == [f"{tmp_path}/access line 6: the clock goes back by 3600 s"]


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (
            "Nov 25 kernel: hello\n" * 3,
            2,
            r"access line 1: is no line of oxenstored's access log: b'Nov 25 kernel: hello\\n'",
        ),
        ("x" * 200_000, 2, "access line 1: is no line"),
        ("\0" * 300_000 + "\n" * 2000, 2, "access line 1: is no line"),
        ("", 3, "no call of any service is in this log"),
        (LOG.replace("/rpc/", "/cpr/"), 3, "no call of any service is in this log"),
    ],
)
def test_what_is_no_log(tmp_path: Path, text: str, code: int, said: str) -> None:
    with pytest.raises(CaptureError, match=said) as caught:
        logged(tmp_path, text)
    assert caught.value.code == code


# ---- bus messages


@contextmanager
def capturing(command: list[str], file: Path) -> Iterator[None]:
    """A program that writes what it sees on the bus to a file."""
    with file.open("wb") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.terminate()


async def served(call: MethodCall) -> tuple[str, tuple[Any, ...]]:
    """A few methods of squeezed."""
    match call.member:
        case "Login":
            return "s", ("session",)
        case "ReserveMemory":
            text, code = "no", "org.xen.xcp.squeezed.Error.Cannot_free_this_much_memory"
            raise BusRefused(code, "sxx", (text, 7, 3))
        case "GetDiagnostics":
            return "s", ("x" * 6000,)
        case _:
            raise BusRefused("org.freedesktop.DBus.Error.UnknownMethod", "s", ("no such method",))


CALLS: list[tuple[str, str, tuple[Any, ...]]] = [
    ("Login", "ss", ("debug", "xenopsd")),
    ("ReserveMemory", "ssx", ("debug", "session", 1024)),
    ("GetDiagnostics", "s", ("debug",)),
    ("Nope", "s", ("argument",)),
    ("Login", "i", (3,)),
    ("GetDiagnostics", "s", ("y" * 5000,)),
    ("BalanceMemory", "s", ("the last one",)),
]


async def talk(address: str, file: Path) -> None:
    """The calls above, once the capture has begun, until the last of them is in it."""
    daemon, caller = await Bus.connect(address), await Bus.connect(address)
    daemon.serve(served)
    await daemon.request_name("org.xen.xcp.squeezed")
    async with asyncio.timeout(20):
        while b"NameHasOwner" not in file.read_bytes():  # noqa: ASYNC240 -- a small file, in a test
            await caller.queued_owners("org.xen.xcp.squeezed")
            await caller.call("org.freedesktop.DBus", "/", None, "NameHasOwner", "s", ("a.b",), timeout=5)
        for member, signature, body in CALLS:
            path, interface = "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1"
            with suppress(BusRefused):
                await caller.call("org.xen.xcp.squeezed", path, interface, member, signature, body, timeout=5)
        while b"the last one" not in file.read_bytes():  # noqa: ASYNC240
            await caller.queued_owners("org.xen.xcp.squeezed")
    await caller.close()
    await daemon.close()


@pytest.mark.parametrize("program", ["dbus-monitor", "busctl"])
async def test_what_real_programs_captured(program: str, bus_daemon: BusDaemon, tmp_path: Path) -> None:
    command = {
        "dbus-monitor": ["dbus-monitor", "--address", bus_daemon.address, "--pcap"],
        "busctl": ["busctl", f"--address={bus_daemon.address}", "capture"],
    }[program]
    file, notes = tmp_path / "capture", list[str]()
    with capturing(command, file):
        await talk(bus_daemon.address, file)
    assert kind_of(file) == importing.DBUS
    found = taken(dbus_capture(file, notes.append))
    requests = [record for record in found if isinstance(record, Request)]
    replies = {record.re: record for record in found if isinstance(record, Reply)}
    cut = Complete.CUT if program == "busctl" else Complete.COMPLETE
    assert [(each.method, each.complete) for each in requests] == [
        ("login", Complete.COMPLETE),
        ("reserve_memory", Complete.COMPLETE),
        ("get_diagnostics", Complete.COMPLETE),
        ("", Complete.UNREAD),
        ("login", Complete.UNREAD),
        ("get_diagnostics", cut),
        ("balance_memory", Complete.COMPLETE),
    ]
    login, reserve, diagnostics, nope, wrong, long, _ = requests
    assert (login.leg, login.door, login.peer) == (Leg.CALLER, "bus", {"name": login.conn})
    assert login.arguments == {"debug_info": "debug", "service_name": "xenopsd"}
    assert replies[login.seq].result == "session"
    assert 0 < replies[login.seq].us < 5_000_000
    fault = replies[reserve.seq].fault
    assert fault is not None
    assert (fault.code, fault.argument) == ("Cannot_free_this_much_memory", ["7", "3"])
    assert (replies[diagnostics.seq].complete, replies[diagnostics.seq].outcome) == (cut, "answered")
    assert (nope.name, nope.note) == ("Nope", "no method of the service")
    assert replies[nope.seq].outcome == "fault"
    assert wrong.note == "its signature is 'i', declared is 'ss'"
    assert (long.arguments is None) == (program == "busctl")
    assert "not imported, since it is no call of a service: " in notes[-1]
    assert "calls of others" in notes[-1]


def bus_file(directory: Path, *messages: bytes) -> Path:
    stream = BytesIO()
    writer = Writer(stream)
    for number, message in enumerate(messages):
        writer.write(number, message)
    file = directory / "capture"
    file.write_bytes(stream.getvalue())
    return file


@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        (b"", 3, "at byte 0: expected 4 bytes"),
        (b"\xd4\xc3\xb2\xa1", 2, "at byte 4: expected 20 bytes of the file's header"),
        (b"hello, world", 2, "at byte 0: expected a pcap or pcapng file"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1), 2, "at byte 20: expected link type 231"),
        (struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 231), 3, "no call of a service is in this file"),
    ],
)
def test_what_is_no_capture_of_bus_messages(tmp_path: Path, data: bytes, code: int, said: str) -> None:
    file = tmp_path / "capture"
    file.write_bytes(data)
    with pytest.raises(CaptureError, match=said) as caught:
        taken(dbus_capture(file, print))
    assert caught.value.code == code
    assert str(file) in str(caught.value)


def test_strange_packets_and_a_cut_end_are_told(tmp_path: Path, login: bytes) -> None:
    file = bus_file(tmp_path, b"no message", login, login)
    file.write_bytes(file.read_bytes()[:-5])
    notes: list[str] = []
    found = taken(dbus_capture(file, notes.append))
    assert [type(record) for record in found] == [Request, Lost, Lost]
    assert notes[0] == f"{file} at byte 24: the head of a message cannot be read"
    assert "the file ends after" in notes[1]


@pytest.fixture
def login() -> bytes:
    """A call to squeezed."""
    from dbus_side import frames, wire

    interface = "org.xen.xcp.squeezed.Memory1"
    path = "/org/xen/xcp/squeezed/Memory"
    head = wire.Head(
        frames.METHOD_CALL, 1, 0, ":1.5", "org.xen.xcp.squeezed", path, interface, "Login", "", reply_expected=True
    )
    return wire.write(head, "ss", ("debug", "xenopsd"))


# ---- recorded exchanges


def counts(name: str, service: str, dialect: str | None = None) -> tuple[Counter[str], list[str]]:
    """What became of the lines of a golden file: how many requests and replies, and how complete they are."""
    notes: list[str] = []
    found = taken(exchanges(GOLDEN / name, service, dialect, notes.append))
    told: Counter[str] = Counter()
    for record in found:
        told[f"{type(record).__name__} {record.complete}"] += 1
    return told, notes


@pytest.mark.parametrize(
    ("name", "service", "whole", "unread"),
    [
        ("xmlrpc/xenopsd-http-cli.jsonl", "xenopsd", 35, 0),
        ("xmlrpc/xenopsd2013-xml.jsonl", "xenopsd", 111, 5),
        ("json16/xenopsd-json16-errors.jsonl", "xenopsd", 13, 18),
        ("json16/xenopsd2013-json.jsonl", "xenopsd", 113, 5),
        ("json16/squeezed-json16-rpclight2012.jsonl", "squeezed", 6, 0),
        ("xenstore/squeezed-2012.jsonl", "squeezed", 4, 2),
    ],
)
def test_golden_files(name: str, service: str, whole: int, unread: int) -> None:
    """Of every framing; unread is what the interface does not know, and what was wrong on purpose."""
    told, _ = counts(name, service)
    assert told["Request complete"] == whole
    assert told["Request unread"] == unread
    assert sum(count for kind, count in told.items() if kind.startswith("Reply")) == whole + unread


def test_the_dialect_is_guessed_and_can_be_said() -> None:
    told, notes = counts("json16/xenopsd2013-bin.jsonl", "xenopsd")
    assert notes[0].endswith("read in the dialect rpclib-2012")
    assert (told, notes[1:]) == counts("json16/xenopsd2013-bin.jsonl", "xenopsd", "rpclib-2012")
    with pytest.raises(
        CaptureError, match=r"1 of its first 64 exchanges are calls of xenopsd as .* rpclib; it has query, "
    ):
        counts("json16/xenopsd2013-bin.jsonl", "xenopsd", "rpclib")


def test_a_conversation_with_the_store() -> None:
    first, answered, *_ = taken(exchanges(GOLDEN / "xenstore/squeezed-2012.jsonl", "squeezed", None, lambda _: None))
    assert (first.door, first.method, first.arguments) == ("xenstore", "echo", {"arguments": {"a": "b", "c": "d"}})
    assert first.conn == "0001_conn_nologin"
    assert answered.result == {"a": "b", "c": "d"}
    assert answered.us > 0


def test_message_switch_is_counted_and_not_read(tmp_path: Path) -> None:
    with gzip.open(GOLDEN / "message-switch/message-switch.jsonl.gz") as packed:
        lines = [packed.readline() for _ in range(2)]
    file = tmp_path / "switch.jsonl"
    file.write_bytes(b"".join(lines))
    notes: list[str] = []
    found = taken(exchanges(file, "message-switch", None, notes.append))
    assert {(each.service, each.method, each.complete) for each in found} == {("message-switch", "", Complete.UNREAD)}
    assert {each.name for each in found} >= {"GET /login", "GET /transient"}
    assert "the bridge does not carry them" in notes[0]
    assert str(len(found)) in notes[0]
    with pytest.raises(CaptureError, match="0 of its first 2 exchanges are calls of xenopsd"):
        exchanges(file, "xenopsd", None, notes.append)


def exchange(request: bytes, response: bytes = b"", **more: Any) -> str:
    fields = {"request": base64.b64encode(request).decode(), "response": base64.b64encode(response).decode()}
    return json.dumps(fields | more) + "\n"


QUERY = b'{"method":"query","params":[{"debug_info":"d","unit":null}],"id":1}'
FRAME = b"%016d" % len(QUERY) + QUERY
POST = b"POST /x HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % len(QUERY) + QUERY


@pytest.mark.parametrize(
    ("request_", "response", "told"),
    [
        (FRAME, b"", ("framed", "query", Complete.COMPLETE, "closed")),
        (FRAME, b"0000000000000009{}", ("framed", "", Complete.UNREAD, "unknown")),
        (FRAME[:-1], b"", ("framed", "", Complete.UNREAD, "closed")),
        (POST, b"HTTP/1.1 200 OK\r\n", ("http", "query", Complete.COMPLETE, "unknown")),
        (POST, b"", ("http", "query", Complete.COMPLETE, "closed")),
        (POST + POST, b"", ("http", "query", Complete.COMPLETE, "closed")),
        (b"POST /x HTTP/1.1\r\ncontent-le", b"", ("http", "", Complete.UNREAD, "closed")),
        (
            b"GET /page?secret=1 HTTP/1.1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n\r\nhi",
            ("http", "", Complete.UNREAD, "unknown"),
        ),
    ],
)
def test_exchanges_that_are_not_whole(tmp_path: Path, request_: bytes, response: bytes, told: tuple[Any, ...]) -> None:
    """Nothing raises for what stands in an exchange; the whole one before it makes the file one of xenopsd's."""
    file = tmp_path / "some.jsonl"
    file.write_text(exchange(FRAME) + exchange(request_, response))
    *_, request, reply = taken(exchanges(file, "xenopsd", None, lambda _: None))
    assert (request.door, request.method, request.complete, reply.outcome) == told
    assert b"secret=1" not in encode(request) + encode(reply)


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("", 3, "the file is empty"),
        ("hello\n", 2, "line 1: is no recorded exchange"),
        (exchange(FRAME) + "{}\n", 2, "line 2: is no recorded exchange: .*request"),
        (exchange(FRAME) + '{"request": "%%%"}\n', 2, "line 2: is no recorded exchange"),
        (exchange(FRAME)[:-20], 2, "line 1: is no recorded exchange"),
        (
            exchange(b"GET / HTTP/1.1\r\n\r\n"),
            2,
            "0 of its first 1 exchanges are calls of xenopsd as .*; it has no call at all",
        ),
    ],
)
def test_what_is_no_file_of_exchanges(tmp_path: Path, text: str, code: int, said: str) -> None:
    file = tmp_path / "some.jsonl"
    file.write_text(text)
    with pytest.raises(CaptureError, match=said) as caught:
        taken(exchanges(file, "xenopsd", None, lambda _: None))
    assert caught.value.code == code
    assert str(file) in str(caught.value)


def test_services_and_dialects_that_there_are_not(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match=r"service: expected one of .*squeezed.*, got 'nope'"):
        exchanges(tmp_path / "any", "nope", None, print)
    with pytest.raises(CaptureError, match=r"dialect: expected one of xenopsd's \(rpclib, rpclib-2012\), got 'xenapi'"):
        exchanges(tmp_path / "any", "xenopsd", "xenapi", print)


# ---- telling them apart


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (LOG.encode(), importing.ACCESS_LOG),
        (gzip.compress(LOG.encode()), importing.ACCESS_LOG),
        (b"\x0a\x0d\x0d\x0a....", importing.DBUS),
        (exchange(FRAME).encode(), importing.EXCHANGES),
    ],
)
def test_kinds(tmp_path: Path, data: bytes, kind: str) -> None:
    file = tmp_path / "some"
    file.write_bytes(data)
    assert kind_of(file) == kind


def test_no_kind(tmp_path: Path) -> None:
    file = tmp_path / "some"
    file.write_bytes(b"GIF89a")
    with pytest.raises(CaptureError, match="some: expected an access log"):
        kind_of(file)
    file.write_bytes(b"")
    with pytest.raises(CaptureError, match="is empty"):
        kind_of(file)
