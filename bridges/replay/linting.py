"""What a capture says without anything being sent: who calls what, how much, and what would go wrong.

A capture of our own tells before a replay what cannot be sent or compared. One that was imported tells of a host on
which the bridge was never installed what it would and would not carry.

What this keeps is bounded: methods, callers and findings beyond a number are counted together, connections are told
apart up to a number, and distributions are exact to a hundredth.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from bridges.capture import detectors, records
from bridges.capture.records import Header, Lost, Record, Reply, Request
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.interfaces.model import Effect, InterfaceError, Method
from bridges.replay.bindings import Bindings, Unbound
from bridges.replay.checking import Carriage, Checked, Checker
from bridges.replay.lint_results import (
    KINDS,
    CallerRow,
    Finding,
    Kind,
    Level,
    LintReport,
    MethodRow,
    ServiceRow,
    Traffic,
)
from bridges.replay.pairs import Exchange, Troubles, join
from bridges.replay.tallies import Histogram, Line, Named, Peak, add

if TYPE_CHECKING:
    from bridges.capture.store import Place

METHODS: Final = 8192
FINDINGS: Final = 1024  # of a kind
CALLERS: Final = 512
CONNECTIONS: Final = 8192  # told apart, of all callers together
_SECOND: Final = 10**9
_UNREAD: Final = "(no call)"
_LEVELS: Final = list(Level)
_STORE_CONNECTION: Final = re.compile("([AD])([0-9]+)")  # as oxenstored's access log names them
# What a capture's header says of the interface data, against today's.
TODAYS: Final = "today's"
ANOTHER: Final = "another"
NOT_NAMED: Final = "not named"
UNKNOWN: Final = "unknown"


def lint(
    found: Iterable[tuple[Place, Record]],
    *,
    capture: str,
    bindings: Bindings,
    damage: Sequence[str] = (),
    was_stopped: Callable[[], bool] = lambda: False,
) -> LintReport:
    """Reads a capture once. `damage` are sentences that reading it adds while it goes on; `was_stopped` says in the end
    whether all of it was read.

    `bindings` are those that a replay would begin with. The memory this takes does not grow with the capture.
    """
    walk = _Walk(bindings)
    troubles = Troubles()
    for exchange in join(walk.over(found), troubles=troubles):
        walk.take(exchange)
    return walk.report(capture, troubles, list(damage), interrupted=was_stopped())


class _Flow:
    """How many calls, and how they came."""

    def __init__(self) -> None:
        self.calls = 0
        self.doors: dict[str, int] = {}
        self._second = Peak(1)
        self._minute = Peak(60)

    def add(self, request: Request, at: int) -> None:
        self.calls += 1
        add(self.doors, request.door)
        self._second.add(at)
        self._minute.add(at)

    def traffic(self, seconds: float) -> Traffic:
        return Traffic(self.calls, self.calls / seconds if seconds else 0.0, self._second.most, self._minute.most)


class _OfService(_Flow):
    def __init__(self) -> None:
        super().__init__()
        self.stages: dict[str, int] = {}
        self.effects: Counter[str] = Counter()
        self.interface = NOT_NAMED
        self.dialect = ""


class _OfMethod(_Flow):
    def __init__(self) -> None:
        super().__init__()
        self.known = False
        self.effect = ""
        self.request, self.reply, self.took = Histogram(), Histogram(), Histogram()
        self.faults: dict[str, int] = {}
        self.carriage: Counter[Carriage] = Counter()

    def add_reply(self, reply: Reply) -> None:
        self.reply.add(reply.size)
        self.took.add(reply.us)
        if reply.fault is not None:
            add(self.faults, reply.fault.code or reply.fault.kind)
        elif reply.outcome == records.CLOSED:
            add(self.faults, reply.outcome)


class _OfCaller:
    def __init__(self) -> None:
        self.calls = 0
        self.connections: set[str] = set()
        self.services: dict[str, int] = {}


class _Found:
    def __init__(self) -> None:
        self.count = 0
        self.first = ""
        self.text = ""


class _Walk:
    """The capture so far."""

    def __init__(self, bindings: Bindings) -> None:
        self._bindings = bindings
        self._line = Line()
        self._checkers: dict[tuple[str, str], Checker | None] = {}
        self._interfaces: dict[str, str] = {}
        self._dialects: dict[str, str] = {}
        self._sources: dict[str, int] = {}
        self._hosts: dict[str, int] = {}
        self._records = 0
        self._connections = 0
        self._began = self._ended = ""
        self._services = Named(_OfService, METHODS)
        self._methods = Named(_OfMethod, METHODS)
        self._callers = Named(_OfCaller, CALLERS)
        self._findings = {kind: Named(_Found, FINDINGS) for kind in Kind}

    def over(self, found: Iterable[tuple[Place, Record]]) -> Iterator[tuple[Place, Record]]:
        """The records, noted one by one on their way."""
        for place, record in found:
            self._records += 1
            match record:
                case Header():
                    self._enter(record)
                case Lost():
                    text = f"{record.n or 'nobody knows how many'}: {record.why}"
                    self._note(Kind.LOST, record.service, "", str(place), text, record.n or 1)
                case Request() | Reply():
                    self._look_for_secrets(place, record)
                case _:
                    pass
            yield place, record

    def _enter(self, header: Header) -> None:
        """Another segment begins."""
        self._interfaces, self._dialects = header.interfaces, header.dialects
        add(self._sources, header.source)
        add(self._hosts, header.host)

    def _look_for_secrets(self, place: Place, record: Request | Reply) -> None:
        name = (record.method or record.name) if isinstance(record, Request) else record.method
        for text in detectors.find(records.encode(record)):
            self._note(Kind.SECRET, record.service, name, str(place), text)

    def _note(self, kind: Kind, service: str, method: str, place: str, text: str, times: int = 1) -> None:
        found = self._findings[kind].of(service, method)
        found.count += times
        if not found.first:
            found.first, found.text = place, text

    # ---- one call

    def take(self, exchange: Exchange) -> None:
        """A call with its answer."""
        request, reply, place = exchange.request, exchange.reply, str(exchange.place)
        name = request.method or request.name or _UNREAD
        at = self._line.at(request, exchange.boot)
        self._began = self._began or request.ts
        self._ended = request.ts
        checker = self._checker(request.service)
        method = None if checker is None else checker.method(request)
        effect = request.effect or ("" if method is None else str(method.effect))
        self._count_service(request, at, effect)
        self._count_caller(request)
        row = self._methods.of(request.service, name)
        row.add(request, at)
        row.request.add(request.size)
        row.known = row.known or method is not None
        row.effect = row.effect or effect
        if reply is not None:
            row.add_reply(reply)
        if checker is None:
            self._note(Kind.UNKNOWN_SERVICE, request.service, "", place, f"first called: {name}")
            row.carriage[Carriage.NOT_CARRIED] += 1
            return
        checked = checker.check(exchange)
        row.carriage[checked.carriage] += 1
        for note in checked.notes:
            self._note(note.kind, request.service, name, place, note.text)
        if method is not None:
            self._follow_handles(exchange, method, checker, checked)

    def _follow_handles(self, exchange: Exchange, method: Method, checker: Checker, checked: Checked) -> None:
        """As a replay would whose daemon answers as the recorded one did."""
        if checked.arguments is not None:
            try:
                self._bindings.arguments(exchange, method, checker.service)
            except Unbound as unbound:
                kind = Kind.REDACTED if unbound.why.startswith("redacted") else Kind.UNBOUND
                self._note(kind, method.service, method.name, str(exchange.place), str(unbound))
        if checked.outcome is not None and not isinstance(checked.outcome.answer, Fault):
            self._bindings.learn(exchange, method, checker.service, checked.outcome.answer)

    def _checker(self, service: str) -> Checker | None:
        """None for a service that is not written down."""
        dialect = self._dialects.get(service, "")
        key = service, dialect
        if key not in self._checkers:
            try:
                loaded = model.load_dialect(service, dialect)
            except InterfaceError:
                self._checkers[key] = None
            else:
                self._checkers[key] = Checker(loaded)
        return self._checkers[key]

    def _count_service(self, request: Request, at: int, effect: str) -> None:
        row = self._services.of(request.service)
        row.add(request, at)
        row.effects[effect] += 1
        if request.stage:
            add(row.stages, request.stage)
        if row.calls == 1:
            row.dialect = self._dialects.get(request.service, "")
            row.interface = self._interface(request.service, row.dialect)

    def _interface(self, service: str, dialect: str) -> str:
        recorded = self._interfaces.get(service)
        if self._checker(service) is None:
            return UNKNOWN
        if recorded is None:
            return NOT_NAMED
        if recorded == model.digest(service, dialect):
            return TODAYS
        self._note(Kind.INTERFACE, service, "", "", f"captured with {recorded}")
        return ANOTHER

    def _count_caller(self, request: Request) -> None:
        row = self._callers.of(caller_of(request))
        row.calls += 1
        add(row.services, request.service)
        if request.conn and self._connections < CONNECTIONS and request.conn not in row.connections:
            row.connections.add(request.conn)
            self._connections += 1

    # ---- the end

    def report(self, capture: str, troubles: Troubles, damage: list[str], *, interrupted: bool) -> LintReport:
        """What was seen, as a whole."""
        if troubles.strays:
            self._note(Kind.NO_REQUEST, "", "", troubles.first_stray, "", troubles.strays)
        if troubles.repeated:
            self._note(Kind.REPEATED, "", "", troubles.first_repeated, "", troubles.repeated)
        for text in damage:
            self._note(Kind.DAMAGE, "", "", "", text)
        seconds = self._line.now / _SECOND
        methods = [_method_row(service, method, row, seconds) for (service, method), row in self._methods.items()]
        services = [self._service_row(name, row, seconds) for (name,), row in self._services.items()]
        return LintReport(
            capture=capture,
            sources=self._sources,
            hosts=list(self._hosts),
            began=self._began,
            ended=self._ended,
            seconds=seconds,
            records=self._records,
            calls=sum(row.traffic.calls for row in services),
            services=sorted(services, key=lambda row: (-row.traffic.calls, row.service)),
            callers=sorted(map(_caller_row, self._callers.items()), key=lambda row: (-row.calls, row.caller)),
            methods=sorted(methods, key=lambda row: (-row.traffic.calls, row.service, row.method)),
            findings=self._ranked(),
            damage=damage,
            interrupted=interrupted,
        )

    def _service_row(self, name: str, row: _OfService, seconds: float) -> ServiceRow:
        return ServiceRow(
            service=name,
            dialect=row.dialect,
            interface=row.interface,
            traffic=row.traffic(seconds),
            doors=row.doors,
            stages=row.stages,
            reads=row.effects[Effect.READ],
            writes=row.effects[Effect.WRITE],
            methods=sum(service == name for (service, _), _ in self._methods.items()),
        )

    def _ranked(self) -> list[Finding]:
        findings = [
            Finding(KINDS[kind].level, kind, service, method, found.count, found.first, found.text)
            for kind, by_method in self._findings.items()
            for (service, method), found in by_method.items()
        ]
        return sorted(findings, key=lambda f: (_LEVELS.index(f.level), -f.count, f.kind, f.service, f.method))


def caller_of(request: Request) -> str:
    """Who called, as short as it is known: a command, a name, a domain, an address, a process."""
    peer = request.peer
    for key in ("command", "name"):
        if text := peer.get(key):
            return str(text)
    if found := _STORE_CONNECTION.fullmatch(request.conn):
        return "a process at xenstored's socket" if found[1] == "A" else f"domain {found[2]}"
    if address := peer.get("address"):
        return str(address).rpartition(":")[0] or str(address)  # the port is another one in every connection
    return ", ".join(f"{key} {peer[key]}" for key in ("pid", "uid") if key in peer) or "not known"


def _method_row(service: str, method: str, row: _OfMethod, seconds: float) -> MethodRow:
    return MethodRow(
        service=service,
        method=method,
        known=row.known,
        effect=row.effect,
        traffic=row.traffic(seconds),
        doors=row.doors,
        request=row.request.spread(),
        reply=row.reply.spread(),
        took=row.took.spread(),
        faults=row.faults,
        carried=row.carriage[Carriage.CARRIED],
        lossy=row.carriage[Carriage.LOSSY],
        not_carried=row.carriage[Carriage.NOT_CARRIED],
        untold=row.carriage[Carriage.UNTOLD],
    )


def _caller_row(item: tuple[tuple[str, ...], _OfCaller]) -> CallerRow:
    (caller,), row = item
    return CallerRow(caller, row.calls, len(row.connections), row.services)
