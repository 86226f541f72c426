"""Captures for other tools: bus messages that tshark reads and that come back as they were, and plain lines."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from bridges.capture import exporting, records
from bridges.capture.importing import dbus_capture, exchanges
from bridges.capture.records import Complete, Fault, Flip, Header, Leg, Record, Reply, Request
from bridges.capture.store import Place

GOLDEN = Path(__file__).parents[1] / "golden"
TS = 1795627904_123456789


def asked(seq: int, method: str, arguments: dict[str, Any] | None, **more: Any) -> Request:
    fields: dict[str, Any] = {
        "seq": seq,
        "id": str(seq),
        "leg": Leg.CALLER,
        "ts": str(TS + seq),
        "mono": str(seq),
        "service": "squeezed",
        "door": "xenstore",
        "name": method,
        "method": method,
        "conn": "A3",
        "arguments": arguments,
    }
    return Request(**(fields | more))


def answered(seq: int, to: int, result: Any = None, **more: Any) -> Reply:
    fields: dict[str, Any] = {
        "seq": seq,
        "id": str(to),
        "leg": Leg.CALLER,
        "ts": str(TS + seq),
        "mono": str(seq),
        "service": "squeezed",
        "door": "xenstore",
        "re": to,
        "us": 5,
        "outcome": records.ANSWERED,
        "result": result,
    }
    return Reply(**(fields | more))


def placed(found: Iterable[Record]) -> Iterator[tuple[Place, Record]]:
    return ((Place("000001.jsonl.zst", number), record) for number, record in enumerate(found, 1))


def pcap(file: Path, found: Iterable[Record]) -> tuple[int, list[str]]:
    """How many were written to a file, and what was told."""
    notes: list[str] = []
    with file.open("wb") as out:
        return exporting.pcap(placed(found), out, notes.append), notes


def tshark(file: Path, *fields: str) -> list[list[str]]:
    """What Wireshark's own reader finds in the file: one list a message."""
    program = shutil.which("tshark")
    if program is None:
        if os.environ.get("CI") == "true":
            pytest.fail("tshark is missing: apt install tshark")
        pytest.skip("needs tshark")
    options = [option for field in fields for option in ("-e", field)]
    command = [program, "-r", str(file), "-T", "fields", *options]
    home = {"HOME": str(file.parent), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30, env=home)
    return [line.split("\t") for line in done.stdout.splitlines()]


LOGIN = asked(1, "login", {"debug_info": "d", "service_name": "xenopsd"})
RESERVE = asked(3, "reserve_memory", {"debug_info": "d", "session_id": "s", "kib": "9007199254740993"}, conn="A4")
TOO_MUCH = answered(4, 3, outcome="fault", fault=Fault("Declared", "Cannot_free_this_much_memory", "no", ["7", "3"]))


def test_tshark_shows_calls_answers_and_errors(tmp_path: Path) -> None:
    """Service, member, arguments and who answered whom, from calls that came by the xenstore door."""
    file = tmp_path / "out.pcap"
    assert pcap(file, [LOGIN, answered(2, 1, "session"), RESERVE, TOO_MUCH]) == (4, [])
    names = ("sender", "destination", "path", "interface", "member", "reply_serial", "error_name", "signature")
    path, interface = "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1"
    assert tshark(file, *(f"dbus.{name}" for name in names)) == [
        [":1.1", "org.xen.xcp.squeezed", path, interface, "Login", "", "", "ss"],
        [":1.2", ":1.1", "", "", "", "1", "", "s"],
        [":1.3", "org.xen.xcp.squeezed", path, interface, "ReserveMemory", "", "", "ssx"],
        [":1.2", ":1.3", "", "", "", "3", "org.xen.xcp.squeezed.Error.Cannot_free_this_much_memory", "sxx"],
    ]
    values = tshark(file, "frame.time_epoch", "dbus.type.string", "dbus.type.int64", "_ws.malformed")
    assert [line[0] for line in values] == [f"1795627904.12345679{digit}" for digit in (0, 1, 2, 3)]
    assert values[0][1].endswith("d,xenopsd")
    assert values[2][2] == "9007199254740993"
    assert values[3][2] == "7,3"
    assert {line[3] for line in values} == {""}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("xmlrpc/xenopsd-http-allcalls.jsonl", 134),
        ("json16/xenopsd-json16-allcalls.jsonl", 142),
        ("xenstore/squeezed-2012.jsonl", 4),
    ],
)
def test_recorded_calls_come_back_as_they_were(name: str, count: int, tmp_path: Path) -> None:
    """Every method of a service, out as bus messages and in again: arguments, results and faults are the same."""
    service = "squeezed" if "squeezed" in name else "xenopsd"
    imported = exchanges(GOLDEN / name, service, None, lambda _: None)
    before = [imported.header(1, ""), *imported.records]
    file = tmp_path / "out.pcap"
    written, notes = pcap(file, before)
    after = list(dbus_capture(file, notes.append).records)
    assert (written, len(after)) == (2 * count, 2 * count)
    assert told(after) == told(before)
    assert [line for line in tshark(file, "_ws.malformed", "_ws.expert.severity") if any(line)] == []


def told(found: Iterable[Record]) -> list[Any]:
    """What calls and answers say, of those that were read."""
    said: list[Any] = []
    read: set[int] = set()
    for record in found:
        if isinstance(record, Request) and record.arguments is not None:
            read.add(record.seq)
            said.append((record.method, record.arguments, record.ts))
        elif isinstance(record, Reply) and record.re in read:
            fault = record.fault and (record.fault.kind, record.fault.code, record.fault.argument)
            said.append((record.outcome, record.result, fault))
    return said


def test_the_older_dialect_is_another_interface(tmp_path: Path) -> None:
    """By the capture's header."""
    imported = exchanges(GOLDEN / "json16/xenopsd2013-bin.jsonl", "xenopsd", None, lambda _: None)
    file = tmp_path / "out.pcap"
    written, notes = pcap(file, [imported.header(1, ""), *imported.records])
    assert written > 200
    found = dbus_capture(file, notes.append)
    assert all(record.complete is Complete.COMPLETE for record in found.records if isinstance(record, Request))


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (asked(1, "login", None, complete=Complete.CUT), "arguments are not there: cut"),
        (asked(1, "login", None, complete=Complete.NO_ARGUMENTS), "arguments are not there: no arguments"),
        (asked(1, "", None, name="nope"), "the method is not written down"),
        (asked(1, "login", {}, service="nope"), "the service is not written down"),
        (asked(1, "login", {"debug_info": "d"}, leg=Leg.BACKEND), "behind the bridge"),
        (asked(1, "login", {"debug_info": "d", "service_name": "a\0b"}), "a value that the bus cannot carry"),
        (
            asked(1, "reserve_memory", {"debug_info": "", "session_id": "", "kib": "x"}),
            "a value that the bus cannot carry",
        ),
        (asked(1, "login", LOGIN.arguments, ts="-5"), "its time is none that the file can hold"),
        (asked(1, "login", LOGIN.arguments, ts=str(2**62)), "its time is none that the file can hold"),
        (answered(2, 99), "the request was left out"),
    ],
)
def test_what_cannot_be_a_message_is_left_out_and_told(record: Record, why: str, tmp_path: Path) -> None:
    assert pcap(tmp_path / "out.pcap", [record]) == (0, [f"1 records were left out: {why}"])


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        (answered(2, 1, outcome="closed"), "the answer is not there: closed"),
        (answered(2, 1, outcome="unknown"), "the answer is not there: unknown"),
        (answered(2, 1, complete=Complete.CUT), "the answer is not there: cut"),
        (answered(2, 1, 5), "a value that the bus cannot carry"),
    ],
)
def test_an_answer_that_cannot_be_a_message(reply: Reply, why: str, tmp_path: Path) -> None:
    assert pcap(tmp_path / "out.pcap", [LOGIN, reply]) == (1, [f"1 records were left out: {why}"])


def test_the_answers_of_the_oldest_calls_are_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "OPEN_LIMIT", 1)
    written, notes = pcap(tmp_path / "out.pcap", [LOGIN, RESERVE, answered(5, 1, "session"), TOO_MUCH])
    assert (written, notes) == (3, ["1 records were left out: the request was left out"])


def test_lines_are_the_records() -> None:
    header = Header(1, "tool", "host", "boot", "5", "6", 1)
    found: list[Record] = [header, Flip(1, "1", "1", "squeezed", "relay", "live", 4), LOGIN, TOO_MUCH]
    out = BytesIO()
    assert exporting.lines(placed(found), out) == 4
    assert [records.decode(line) for line in out.getvalue().splitlines()] == found
