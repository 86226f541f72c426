"""What a capture says without anything being sent: traffic, findings with their first place, and the exit code."""

from __future__ import annotations

import io
import itertools
import tracemalloc
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from rich.console import Console

from bridges.calls import Tagged, Value
from bridges.capture import typed
from bridges.capture.records import ANSWERED, CLOSED, Complete, Fault, Header, Leg, Lost, Record, Reply, Request
from bridges.capture.store import Place
from bridges.interfaces import model
from bridges.replay import lint_html, terminal_report
from bridges.replay.bindings import Bindings
from bridges.replay.lint_results import KINDS, Finding, Kind, Level, LintReport, MethodRow, exit_code
from bridges.replay.linting import CALLERS, CONNECTIONS, FINDINGS, METHODS, lint
from bridges.replay.results import Spread
from bridges.replay.tallies import OTHERS, Histogram, Line, Peak

SECOND = 10**9
START = 1_764_000_000 * SECOND
DIAGNOSTICS = "get_diagnostics"


class Log:
    """A capture in the making. Times are in seconds from its beginning."""

    def __init__(self, *, boot: str = "boot 1", mono: bool = True, interfaces: dict[str, str] | None = None) -> None:
        self.found: list[tuple[Place, Record]] = []
        self.seq = itertools.count(1)
        self.mono = mono
        self.boot(boot, 0, interfaces or {})

    def add(self, record: Record) -> Place:
        place = Place("000001.jsonl.zst", len(self.found) + 1)
        self.found.append((place, record))
        return place

    def boot(self, boot: str, mono: float, interfaces: dict[str, str]) -> None:
        """Another segment, perhaps of another boot, whose clock began `mono` seconds before."""
        self.shift = mono
        times = str(START), str(SECOND)
        self.add(Header(1, "t", "host a", boot, *times, 1, interfaces=interfaces))

    def _times(self, at: float) -> tuple[str, str]:
        return str(START + round(at * SECOND)), str(round((at - self.shift + 1) * SECOND)) if self.mono else ""

    def call(
        self, name: str, arguments: dict[str, Any] | None, at: float = 0.0, service: str = "squeezed", **more: Any
    ) -> Request:
        known = model.load(service).method(name) if service in model.available() else None
        defaults: dict[str, Any] = {"door": "http", "method": "" if known is None else name, "size": 100, "conn": "7"}
        if arguments is not None and known is not None and "debug_info" in {p.name for p in known.parameters}:
            arguments = {"debug_info": "d"} | arguments
        seq = next(self.seq)
        fields = defaults | {"leg": Leg.CALLER} | more
        ts, mono = self._times(at)
        request = Request(
            seq=seq, id=str(seq), ts=ts, mono=mono, service=service, name=name, arguments=arguments, **fields
        )
        self.place = self.add(request)
        return request

    def answer(self, request: Request, result: Any = None, us: int = 500, **more: Any) -> None:
        said = {"result": result, "outcome": "fault" if "fault" in more else ANSWERED, "size": 50, "leg": request.leg}
        self.add(
            Reply(
                seq=next(self.seq), id=request.id, ts=request.ts, mono=request.mono, service=request.service,
                door=request.door, re=request.seq, us=us, **(said | more),
            )
        )  # fmt: skip

    def lint(self, bound: dict[str, str] | None = None, damage: list[str] | None = None) -> LintReport:
        return lint(iter(self.found), capture="monday", bindings=Bindings(bound or {}), damage=damage or [])


def reserve(log: Log, session: str = "xapi", reservation: str = "r1", at: float = 0.0, **more: Any) -> None:
    log.answer(log.call("reserve_memory", {"session_id": session, "kib": "1024"}, at, **more), reservation)


def found(report: LintReport, kind: Kind) -> Finding:
    [finding] = [finding for finding in report.findings if finding.kind is kind]
    assert finding.level is KINDS[kind].level
    return finding


def method(report: LintReport, name: str) -> MethodRow:
    [row] = [row for row in report.methods if row.method == name]
    return row


# --- traffic ---------------------------------------------------------------------------------------------------------


def test_a_clean_capture_has_no_findings() -> None:
    """Calls that fit and are carried; the report goes through JSON."""
    log = Log(interfaces={"squeezed": model.digest("squeezed", "rpclib")})
    for number in range(3):
        reserve(log, reservation=f"r{number}", at=number)
    report = log.lint()
    assert report.findings == []
    assert exit_code(report) == 0
    assert (report.calls, report.records, report.hosts, report.sources) == (3, 7, ["host a"], {"bridge": 1})
    assert report.services[0].interface == "today's"
    assert method(report, "reserve_memory").carried == 3
    assert msgspec.json.decode(msgspec.json.encode(report), type=LintReport) == report


def test_traffic_is_counted_per_service_method_and_caller() -> None:
    """Rates over the capture and at their peak, sizes, times, doors, connections."""
    log = Log()
    for number in range(10):
        peer = {"command": "xapi", "pid": 100 + number}
        reserve(log, at=number * 12, conn=str(number % 4), peer=peer, effect="write", stage="relay")
    for number in range(5):
        request = log.call(DIAGNOSTICS, {}, 108 + number / 10, peer={"name": ":1.5"}, door="bus", effect="read")
        log.answer(request, "ok", us=1000 * (number + 1), size=2000)
    report = log.lint()
    [service] = report.services
    assert (service.traffic.calls, service.reads, service.writes, service.methods) == (15, 5, 10, 2)
    assert service.doors == {"http": 10, "bus": 5}
    assert service.stages == {"relay": 10}
    assert service.traffic.busiest_second == 6
    assert service.traffic.busiest_minute == 5 + 5
    assert report.seconds == pytest.approx(108.4)
    row = method(report, DIAGNOSTICS)
    assert row.traffic.per_second == pytest.approx(5 / 108.4)
    assert row.request == Spread(5, 100, 100, 100)
    assert row.reply == Spread(5, 2000, 2000, 2000)
    assert (row.took.count, row.took.p50, row.took.most) == (5, 3000, 5000)
    assert [(caller.caller, caller.calls, caller.connections) for caller in report.callers] == [
        ("xapi", 10, 4),
        (":1.5", 5, 1),
    ]


def test_the_other_legs_of_a_call_are_no_calls() -> None:
    """The same call seen at its backend counts once."""
    log = Log()
    reserve(log)
    log.answer(log.call("reserve_memory", None, leg=Leg.BACKEND, note="as the caller's"), "r1")
    assert log.lint().calls == 1


@pytest.mark.parametrize(
    ("fields", "caller"),
    [
        ({"peer": {"pid": 12, "uid": 0}}, "pid 12, uid 0"),
        ({"peer": {"address": "10.0.0.5:40312"}}, "10.0.0.5"),
        ({"peer": {"address": "[::1]:40312"}}, "[::1]"),
        ({"peer": {}, "conn": "D3"}, "domain 3"),
        ({"peer": {}, "conn": "A17"}, "a process at xenstored's socket"),
        ({"peer": {}, "conn": ""}, "not known"),
    ],
)
def test_callers_are_named_by_what_is_known(fields: dict[str, Any], caller: str) -> None:
    """A log of oxenstored knows connections only."""
    log = Log()
    reserve(log, **fields)
    assert [row.caller for row in log.lint().callers] == [caller]


def test_clocks_that_jump_do_not_make_rates() -> None:
    """Within a boot `mono` counts, whatever `ts` says; another boot goes on by `ts`, one that goes back goes on too."""
    log = Log()
    reserve(log, at=0)
    request = log.call(DIAGNOSTICS, {}, 10)
    log.found[-1] = (log.place, msgspec.structs.replace(request, ts=str(START + 86400 * SECOND)))
    assert log.lint().seconds == pytest.approx(10)

    log = Log()
    reserve(log, at=0)
    log.boot("boot 2", 90, {})
    reserve(log, at=100)
    assert log.lint().seconds == pytest.approx(100)

    log = Log(mono=False)
    for at in (0, 50, 20, 30):
        reserve(log, at=at)
    assert log.lint().seconds == pytest.approx(60)


# --- findings --------------------------------------------------------------------------------------------------------


def test_what_the_interface_does_not_have_is_wrong() -> None:
    """Methods, services and doors; one finding for all calls of a method, with the first place."""
    log = Log()
    places = []
    for at in range(3):
        log.answer(log.call("reserve_more", None, at, complete=Complete.UNREAD, note="no method of the service"))
        places.append(str(log.place))
    log.call("x", None, service="nowhere", complete=Complete.UNREAD)
    log.answer(log.call("echo", None, complete=Complete.UNREAD, method="", note="no method of the service"))
    log.answer(log.call(DIAGNOSTICS, None, complete=Complete.UNREAD, door="xenstore"))
    report = log.lint()
    finding = found(report, Kind.UNKNOWN_METHOD)
    assert (finding.method, finding.count, finding.first) == ("reserve_more", 3, places[0])
    assert found(report, Kind.UNKNOWN_SERVICE).service == "nowhere"
    doors = {finding.method: finding.text for finding in report.findings if finding.kind is Kind.DOOR}
    assert doors == {"echo": "at the door http", DIAGNOSTICS: "at the door xenstore"}
    assert method(report, "reserve_more").not_carried == 3
    assert not method(report, "reserve_more").known
    assert exit_code(report) == 1


def test_what_the_daemon_refused_as_well_is_only_noted() -> None:
    """An unknown method that was closed without a byte would be refused by us in the same way."""
    log = Log()
    log.answer(log.call("nonsense", None, complete=Complete.UNREAD), outcome=CLOSED)
    report = log.lint()
    assert found(report, Kind.REFUSED).method == "nonsense"
    assert method(report, "nonsense").faults == {"closed": 1}
    assert exit_code(report) == 0


def test_values_that_do_not_fit_todays_types_are_wrong() -> None:
    """In arguments, results and faults, by their place; what was not read when it was captured has its note."""
    log = Log()
    log.answer(log.call("reserve_memory", {"session_id": "s", "kib": "lots"}), "r1")
    log.answer(log.call("get_host_reserved_memory", {}), {"kib": "1"})
    unread = {"complete": Complete.UNREAD, "note": "arguments.min: expected int64"}
    log.answer(log.call("reserve_memory_range", None, **unread))
    declared = Fault("Declared", "Does_not_exist", "x", argument="no pair")
    log.answer(log.call("VM.stat", {"dbg": "d", "id": "x"}, service="xenopsd"), fault=declared)
    report = log.lint()
    texts = {(f.kind, f.method): f.text for f in report.findings if f.level is Level.WRONG}
    assert texts[Kind.ARGUMENTS, "reserve_memory"].startswith("kib: ")
    assert "int64" in texts[Kind.RESULT, "get_host_reserved_memory"]
    assert texts[Kind.ARGUMENTS, "reserve_memory_range"] == "arguments.min: expected int64"
    assert (Kind.FAULT, "VM.stat") in texts
    assert [row.not_carried for row in report.methods] == [1, 1, 1, 1]


def test_an_answer_that_was_not_read_does_not_fit() -> None:
    """By the note of its record; unless its call was not read either."""
    log = Log()
    unread = {"complete": Complete.UNREAD, "note": "result: expected int64"}
    log.answer(log.call("get_host_reserved_memory", {}), outcome="unknown", **unread)
    report = log.lint()
    assert found(report, Kind.RESULT).text == "result: expected int64"
    assert method(report, "get_host_reserved_memory").not_carried == 1


def test_a_secret_that_does_not_fit_is_not_shown() -> None:
    """Neither in arguments nor in results."""
    log = Log()
    log.answer(log.call("join", {"token": ["hunter2"]}, service="cluster"))
    log.answer(log.call("VTPM.get_contents", {"session_id": "s", "self": "OpaqueRef:x"}, service="xapi"), ["hunter2"])
    report = log.lint()
    assert [f.text for f in report.findings if f.kind in (Kind.ARGUMENTS, Kind.RESULT)] == [
        "token is a secret that does not fit",
        "value is a secret that does not fit",
    ]
    assert b"hunter2" not in msgspec.json.encode(report)


def test_wrong_arguments_that_the_daemon_refused_are_no_finding() -> None:
    """Nor is what stands in the place of a secret."""
    log = Log()
    log.answer(log.call("reserve_memory", {"session_id": "s", "kib": "lots"}), fault=Fault("Undeclared", "Odd"))
    log.answer(log.call("reserve_memory", {"session_id": "s", "kib": "(secret)"}, redacted=["kib"]), "r1")
    log.answer(log.call("get_host_reserved_memory", {}), "(secret)", redacted=["result"])
    assert [finding.kind for finding in log.lint().findings if finding.level is Level.WRONG] == []


def test_what_the_bus_would_lose_is_wrong() -> None:
    """A text with NUL has no form there."""
    log = Log()
    log.answer(log.call(DIAGNOSTICS, {}), "a\0b")
    report = log.lint()
    assert found(report, Kind.LOSS).text.startswith("result: ")
    assert (method(report, DIAGNOSTICS).lossy, method(report, DIAGNOSTICS).carried) == (1, 0)
    assert exit_code(report) == 1


def test_a_fault_that_is_not_written_down_is_carried() -> None:
    """Under its own name."""
    log = Log()
    log.answer(log.call(DIAGNOSTICS, {}), fault=Fault("Undeclared", "Odd", argument=["a"]))
    report = log.lint()
    assert found(report, Kind.UNDECLARED).text == "Odd"
    assert method(report, DIAGNOSTICS).carried == 1
    assert method(report, DIAGNOSTICS).faults == {"Odd": 1}


def test_what_the_daemon_did_not_answer_itself_cannot_be_told() -> None:
    """Such as a fault of the bridge."""
    log = Log()
    log.answer(log.call(DIAGNOSTICS, {}), fault=Fault("Unavailable", text="nobody there"))
    assert (method(log.lint(), DIAGNOSTICS).untold, exit_code(log.lint())) == (1, 0)


def test_a_redacted_argument_must_be_bound() -> None:
    """A secret cannot be sent."""
    log = Log()
    request = log.call("VM.migrate", None, service="xenopsd")
    kind = model.load("xenopsd").method("VM.migrate")
    assert kind is not None
    assert "xenops_url" in {parameter.name for parameter in kind.parameters}
    arguments = {"debug_info": "d", "id": "vm", "vdi_map": {}, "vif_map": {}, "pci_map": {}, "xenops_url": "(secret)"}
    known = {name: value for name, value in arguments.items() if name in {p.name for p in kind.parameters}}
    log.found[-1] = (log.place, msgspec.structs.replace(request, arguments=known, redacted=["xenops_url"]))
    assert found(log.lint(), Kind.REDACTED).text.startswith("xenops_url was redacted")


def test_handles_that_nothing_in_the_capture_gave_are_told() -> None:
    """Until they are bound; a reservation that was made before is one."""
    log = Log()
    strange = "5f3c2a90-1111-4222-8333-444455556666"
    for reservation in ("5f3c2a90-aaaa-4222-8333-444455556666", strange):
        if reservation != strange:
            reserve(log, reservation=reservation)
        log.answer(log.call("delete_reservation", {"session_id": "xapi", "reservation_id": reservation}))
    report = log.lint()
    finding = found(report, Kind.UNBOUND)
    assert (finding.method, finding.count, finding.first) == ("delete_reservation", 1, str(log.place))
    assert "reservation" in finding.text
    assert [f.kind for f in log.lint({strange: "r7"}).findings if f.kind is Kind.UNBOUND] == []
    assert exit_code(report) == 0


def test_a_secret_in_a_record_is_wrong_and_is_not_shown() -> None:
    """Found in the encoded line, in whatever leg it stands."""
    log = Log()
    key = "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEAvb8\n-----END RSA PRIVATE KEY-----\n"
    log.answer(log.call(DIAGNOSTICS, {}), key)
    report = log.lint()
    secrets = [finding for finding in report.findings if finding.kind is Kind.SECRET]
    assert secrets
    assert exit_code(report) == 1
    assert b"MIIEowIBAAKCAQEAvb8" not in msgspec.json.encode(report)
    assert "MIIEowIBAAKCAQEAvb8" not in lint_html.html(report)


def test_halves_and_incomplete_messages_are_warnings() -> None:
    """One for each kind and method; of none of them can be told whether the bridge would carry it."""
    log = Log()
    seen = {"leg": Leg.OBSERVED, "door": "xenstore"}
    log.call("reserve_memory", {"session_id": "s", "kib": "1"})
    log.answer(log.call("login", None, complete=Complete.CUT, note="cut: service_name", **seen), complete=Complete.CUT)
    log.answer(log.call("balance_memory", None, complete=Complete.NO_ARGUMENTS, **seen))
    log.answer(log.call("delete_reservation", {"session_id": "s", "reservation_id": "r"}), complete=Complete.NO_RESULT)
    log.add(Reply(999, "x", Leg.CALLER, "1", "1", "squeezed", "http", 998, 1, ANSWERED))
    log.add(Lost(1000, "1", "1", 12, "queue full", "squeezed"))
    report = log.lint(damage=["000002.jsonl.zst: a frame does not match its checksum"])
    told = {(f.kind, f.method): f.count for f in report.findings}
    assert told == {
        (Kind.NO_ANSWER, "reserve_memory"): 1,
        (Kind.CUT, "login"): 1,
        (Kind.NO_ARGUMENTS, "balance_memory"): 1,
        (Kind.NO_RESULT, "delete_reservation"): 1,
        (Kind.NO_REQUEST, ""): 1,
        (Kind.LOST, ""): 12,
        (Kind.DAMAGE, ""): 1,
    }
    assert {f.level for f in report.findings} == {Level.WARNING}
    assert [row.untold for row in report.methods] == [1] * 4
    assert exit_code(report) == 3


def test_http_that_is_no_call_is_told_apart() -> None:
    """It passes in `relay` and has no place on the bus."""
    log = Log()
    log.call("GET /", None, complete=Complete.UNREAD, note="no call of the service")
    assert found(log.lint(), Kind.NO_CALL).text == "GET /"


def test_other_interface_data_are_told_once() -> None:
    """By the digest in the header."""
    log = Log(interfaces={"squeezed": "0123"})
    reserve(log)
    reserve(log)
    report = log.lint()
    assert found(report, Kind.INTERFACE).count == 1
    assert report.services[0].interface == "another"


def test_the_weightiest_comes_first() -> None:
    """Wrong, then warnings, then notes, the most frequent first."""
    log = Log()
    log.answer(log.call("nonsense", None, complete=Complete.UNREAD), outcome=CLOSED)
    log.call("get_host_reserved_memory", {})
    for name in ("one", "two", "two"):
        log.answer(log.call(name, None, complete=Complete.UNREAD))
    findings = log.lint().findings
    assert [(f.level, f.method) for f in findings] == [
        (Level.WRONG, "two"),
        (Level.WRONG, "one"),
        (Level.WARNING, "get_host_reserved_memory"),
        (Level.NOTE, "nonsense"),
    ]


def test_a_capture_without_calls_tells_nothing() -> None:
    """Exit code 3, and its page says so."""
    report = Log().lint()
    assert exit_code(report) == 3
    assert "NO CALLS" in lint_html.html(report)


def test_the_older_dialect_has_its_own_interface() -> None:
    """As the header of the segment says."""
    log = Log()
    place, header = log.found[0]
    log.found[0] = (place, msgspec.structs.replace(header, dialects={"xenopsd": "rpclib-2012"}))
    older = model.load("xenopsd-2012")
    name = next(name for name in older.method_names if model.load("xenopsd").method(name) is None)
    log.answer(log.call(name, None, service="xenopsd", complete=Complete.CUT, method=name))
    report = log.lint()
    assert method(report, name).known
    assert report.services[0].dialect == "rpclib-2012"


# --- bounds ----------------------------------------------------------------------------------------------------------


def _many(calls: int) -> Iterator[tuple[Place, Record]]:
    """A capture that never is in memory: names and callers are new in every call, connections in every second."""
    yield Place("1", 1), Header(1, "t", "h", "b", "1", "1", 1)
    for number in range(calls):
        times = str(START + number), str(1 + number)
        name = f"method{number}"
        yield (
            Place("1", 2 * number + 2),
            Request(
                2 * number, str(number), Leg.CALLER, *times, "squeezed", "http", name,
                conn=f"c{number // 2}", peer={"command": f"p{number}"}, complete=Complete.UNREAD,
            ),
        )  # fmt: skip
        yield (
            Place("1", 2 * number + 3),
            Reply(2 * number + 1, str(number), Leg.CALLER, *times, "squeezed", "http", 2 * number, number, ANSWERED),
        )


def test_memory_is_bounded_whatever_the_wire_says() -> None:
    """Beyond so many names all further ones are counted together, and the counts stay right."""
    calls = 2 * CONNECTIONS + 1000
    report = lint(_many(calls), capture="x", bindings=Bindings({}))
    assert report.calls == calls
    assert len(report.methods) == METHODS + 1
    assert method(report, OTHERS).traffic.calls == calls - METHODS
    assert sum(row.calls for row in report.callers) == calls
    assert len(report.callers) == CALLERS + 1
    assert sum(row.connections for row in report.callers) == CONNECTIONS
    findings = [f for f in report.findings if f.kind is Kind.UNKNOWN_METHOD]
    assert len(findings) == FINDINGS + 1
    assert (findings[0].method, findings[0].count) == (OTHERS, calls - FINDINGS)


def test_memory_does_not_grow_with_the_capture() -> None:
    """Ten times the calls of the same methods take no more."""

    def peak(calls: int) -> int:
        def stream() -> Iterator[tuple[Place, Record]]:
            for place, record in _many(calls):
                yield (
                    place,
                    msgspec.structs.replace(record, name="get_x", conn="1", peer={})
                    if isinstance(record, Request)
                    else record,
                )

        tracemalloc.start()
        lint(stream(), capture="x", bindings=Bindings({}))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(2000) < peak(200) + 1_000_000


def test_distributions_are_exact_to_a_hundredth() -> None:
    """Small numbers are exact; nothing is beyond the largest."""
    histogram = Histogram()
    for value in range(1, 10_001):
        histogram.add(value * 10)
    spread = histogram.spread()
    assert spread.count == 10_000
    assert spread.p50 == pytest.approx(50_000, rel=0.01)
    assert spread.p99 == pytest.approx(99_000, rel=0.01)
    assert spread.most == 100_000
    one = Histogram()
    one.add(700)
    assert one.spread() == Spread(1, 700, 700, 700)
    assert Histogram().spread() == Spread()


def test_a_peak_is_of_the_busiest_stretch() -> None:
    """What comes late counts where the time stands."""
    peak = Peak(1)
    for at in (0, 1, 2, 3 * SECOND, 2 * SECOND, 3 * SECOND + 1, 3 * SECOND + 2, 9 * SECOND):
        peak.add(at)
    assert peak.most == 4


def test_a_line_begins_with_its_first_request() -> None:
    """And takes a number that is none for the beginning."""
    line = Line()
    odd = Request(1, "1", Leg.CALLER, "x", "-5", "s", "http", "m")
    assert line.at(odd, "b") == 0


# --- reports ---------------------------------------------------------------------------------------------------------


def _busy() -> LintReport:
    log = Log()
    for number in range(30):
        log.answer(log.call(f"<b>{number}\x1b[31m", None, complete=Complete.UNREAD))
    reserve(log, peer={"command": "<i>xapi"})
    return log.lint()


def test_the_page_shows_findings_services_callers_and_methods() -> None:
    """Escaped, and without anything that runs."""
    page = lint_html.html(_busy())
    page.encode()
    for heading in ("Findings", "Services", "Callers", "Methods", "Sizes and times"):
        assert f"<h2>{heading}</h2>" in page
    assert "SOMETHING WRONG" in page
    assert r"&lt;b&gt;0\x1b[31m" in page
    assert "&lt;i&gt;xapi" in page
    for tag in ("<b>", "<i>", "<script", "\x1b"):
        assert tag not in page


def test_the_terminal_shows_the_first_methods_and_how_many_more() -> None:
    """The verdict last."""
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(*terminal_report.lint_table(_busy()), sep="\n")
    text = captured.get()
    assert "and 11 more methods" in text
    assert "\x1b[31m" not in text
    assert "unknown method: the daemon answers a method that is not written down" in text
    assert "SOMETHING WRONG" in text.splitlines()[-3]


def test_typed_values_of_every_kind_pass_through() -> None:
    """A neutral value written as a capture does is read back and carried."""
    log = Log()
    kind = model.load("squeezed").method("get_domain_zero_policy")
    assert kind is not None
    value: Value = Tagged("Auto_balloon", (1, 2))
    log.answer(log.call("get_domain_zero_policy", {}), typed.write(kind.result, value))
    assert method(log.lint(), "get_domain_zero_policy").carried == 1
