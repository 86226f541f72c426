"""The settings file: parsed once, all its mistakes reported together, each with its place.

Settings never set a stage: stages are state and are changed by verbs only.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from bridges.cutover import Requirement, Stage
from bridges.interfaces import model

DOORS: Final = ("http", "framed", "xenstore", "datagram")
DEFAULT_PATH: Final = Path("/etc/xcp-bridge/bridge.toml")
_LATER: Final = {"console": "the console"}


class SettingsError(Exception):
    """The settings cannot be used. `problems` has one line per mistake: the place, what is there, what was expected."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class LegacyUnit:
    """The legacy daemon as a systemd unit."""

    unit: str


@dataclass(frozen=True, slots=True)
class LegacyCommands:
    """The legacy daemon by commands: each returns when its work is done; `pidfile` holds the decimal pid."""

    start: tuple[str, ...]
    stop: tuple[str, ...]
    pidfile: Path


@dataclass(frozen=True, slots=True)
class SocketSettings:
    """`socket` is where callers connect; `legacy` is where the daemon's own socket stands while ours is there."""

    socket: Path
    legacy: Path


@dataclass(frozen=True, slots=True)
class HttpDoorSettings(SocketSettings):
    """`format` is what the daemon speaks at every path; xapi speaks both, and is called by us in that one."""

    format: str = "xml"
    listen: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class ServiceSettings:
    """One service: its doors on the legacy side, the dialect spoken there, and `reach`, the door by which we call.

    `requires` are the stages in which other services must be before this one is moved; `quiet_hours` is for how long
    nobody may have called at its legacy doors before they are closed.
    """

    name: str
    legacy: LegacyUnit | LegacyCommands | None = None
    xenstore: str | None = None
    http: HttpDoorSettings | None = None
    framed: SocketSettings | None = None
    datagram: str | None = None
    dialect: str = "rpclib"
    reach: str = "http"
    stale_at_start: Literal["refuse", "execute"] = "refuse"
    requires: tuple[Requirement, ...] = ()
    quiet_hours: float = 168.0


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """Where captures stand, and what they may take: in all, for how long, and of one message."""

    directory: Path
    total_bytes: int = 1024 << 20
    age_seconds: float = 168 * 3600.0
    body_bytes: int = 1024 << 10


@dataclass(frozen=True, slots=True)
class Settings:
    """All of the settings, checked. Paths are absolute."""

    bus_address: str = "unix:path=/run/xcp/bus"
    xenstore_socket: str = "/var/run/xenstored/socket"
    state_directory: Path = Path("/var/lib/xcp-bridge")
    control_socket: Path = Path("/run/xcp-bridge/control")
    capture: CaptureSettings = CaptureSettings(Path("/var/lib/xcp-bridge/captures"))
    services: dict[str, ServiceSettings] = field(default_factory=dict)


def decode(content: bytes, environment: dict[str, str]) -> Settings:
    """The settings in a file's content. Raises SettingsError; XCP_BUS_ADDRESS in the environment stands above it."""
    try:
        data = tomllib.loads(content.decode())
    except UnicodeDecodeError as error:
        raise SettingsError([f"expected UTF-8 text, got byte 0x{content[error.start]:02x} at {error.start}"]) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise SettingsError([str(error)]) from None
    return parse(data, environment)


def parse(data: dict[str, Any], environment: dict[str, str]) -> Settings:
    """The settings of a parsed mapping. Raises SettingsError with every mistake."""
    problems: list[str] = []
    top = _Table("", data, problems)
    bus, store = top.table("bus"), top.table("xenstore")
    state, control, capture = top.table("state"), top.table("control"), top.table("capture")
    services = top.table("services")
    address = bus.text("address", "unix:path=/run/xcp/bus")
    directory = state.path("directory", Path("/var/lib/xcp-bridge"))
    settings = Settings(
        bus_address=environment.get("XCP_BUS_ADDRESS") or address,
        xenstore_socket=store.text("socket", "/var/run/xenstored/socket"),
        state_directory=directory,
        control_socket=control.path("socket", Path("/run/xcp-bridge/control")),
        capture=_capture(capture, directory),
        services={name: _service(name, services.table(name)) for name in services.names()},
    )
    for table in (top, bus, store, state, control, capture):
        table.refuse_the_rest()
    _refuse_shared_doors(settings, problems)
    _refuse_impossible_orders(settings, problems)
    if problems:
        raise SettingsError(problems)
    return settings


def _capture(table: _Table, state: Path) -> CaptureSettings:
    return CaptureSettings(
        directory=table.path("directory", state / "captures"),
        total_bytes=table.count("total_mib", 1024) << 20,
        age_seconds=table.hours("age_hours", 168.0) * 3600,
        body_bytes=table.count("body_kib", 1024) << 10,
    )


def _service(name: str, table: _Table) -> ServiceSettings:
    if name not in model.services():
        table.problem("", f"no interface is written down for {name!r}; known: {', '.join(model.services())}")
        return ServiceSettings(name)
    doors = [door for door in DOORS if table.has(door)]
    http = table.table("http") if "http" in doors else None
    framed = table.table("framed") if "framed" in doors else None
    dialect = _dialect(name, table, http, framed)
    settings = ServiceSettings(
        name=name,
        legacy=_legacy(table.table("legacy")) if table.has("legacy") else None,
        xenstore=table.text("xenstore", "") or None,
        http=_http(http, model.load_dialect(name, dialect).http_format) if http else None,
        framed=_framed(framed) if framed else None,
        datagram=table.text("datagram", "") or None,
        dialect=dialect,
        reach=table.choice("reach", DOORS, doors[0] if doors else "http"),
        stale_at_start="execute"
        if table.choice("stale_at_start", ("refuse", "execute"), "refuse") == "execute"
        else "refuse",
        requires=table.requirements("requires"),
        quiet_hours=table.hours("quiet_hours", 168.0),
    )
    table.refuse_the_rest()
    if not doors:
        table.problem("", f"needs a legacy door: one of {', '.join(DOORS)}")
    elif settings.reach not in doors:
        table.problem("reach", f"{settings.reach} is no door of this service")
    if settings.xenstore and not re.fullmatch("[A-Za-z0-9_@-]+", settings.xenstore):
        table.problem("xenstore", f"expected the name of a tree such as 'squeezed', got {settings.xenstore!r}")
    _refuse_foreign_doors(settings, table)
    return settings


def _dialect(name: str, *tables: _Table | None) -> str:
    """The service's dialect, which may stand in its own table or beside a socket."""
    choices = model.dialects(name)
    said = [table for table in tables if table is not None and table.has("dialect")]
    chosen = [table.choice("dialect", choices, choices[0]) for table in said]
    for table, dialect in zip(said[1:], chosen[1:], strict=True):
        if dialect != chosen[0]:
            table.problem("dialect", f"is {dialect!r} here, and {chosen[0]!r} before: a service has one daemon")
    return chosen[0] if chosen else choices[0]


def _refuse_foreign_doors(settings: ServiceSettings, table: _Table) -> None:
    """Doors at which none of the service's methods could be called."""
    known = model.load_dialect(settings.name, settings.dialect).doors
    for door in DOORS:
        if table.has(door) and door not in known:
            table.problem(
                door, f"no method of {settings.name} can be called there; its doors: {', '.join(sorted(known))}"
            )
    if settings.datagram is not None and not re.fullmatch("@[!-~]{1,107}", settings.datagram):
        table.problem("datagram", f"expected an abstract address such as '@perfmon', got {settings.datagram!r}")


def _legacy(table: _Table) -> LegacyUnit | LegacyCommands | None:
    if table.has("unit"):
        unit = table.text("unit", "")
        table.refuse_the_rest()
        return LegacyUnit(unit)
    if not table.has("start"):
        table.problem("", "expected unit, or start, stop and pidfile")
        return None
    commands = LegacyCommands(table.command("start"), table.command("stop"), table.path("pidfile", None))
    table.refuse_the_rest()
    return commands


def _http(table: _Table, default_format: str) -> HttpDoorSettings:
    socket, legacy = _socket(table)
    settings = HttpDoorSettings(
        socket=socket,
        legacy=legacy,
        format=table.choice("format", ("xml", "json"), default_format),
        listen=table.addresses("listen"),
    )
    table.refuse_the_rest()
    return settings


def _framed(table: _Table) -> SocketSettings:
    settings = SocketSettings(*_socket(table))
    table.refuse_the_rest()
    return settings


def _socket(table: _Table) -> tuple[Path, Path]:
    """Where callers connect, and where the daemon's own socket stands while ours is there."""
    socket = table.path("socket", None)
    legacy = table.path("legacy", Path(f"{socket}.legacy"))
    if legacy.parent != socket.parent:
        table.problem(
            "legacy", "must be in the directory of socket: it is made by a hard link and given back by a rename"
        )
    elif legacy == socket:
        table.problem("legacy", "must differ from socket")
    return socket, legacy


def _refuse_shared_doors(settings: Settings, problems: list[str]) -> None:
    seen: dict[str, str] = {}
    for service in settings.services.values():
        doors = [f"xenstore tree /{service.xenstore}"] if service.xenstore else []
        for sockets in filter(None, (service.http, service.framed)):
            doors += sorted({str(sockets.socket), str(sockets.legacy)})
        doors += [f"tcp:{host}:{port}" for host, port in service.http.listen] if service.http else []
        doors += [service.datagram] if service.datagram else []
        for door in doors:
            if door in seen:
                problems.append(f"services.{service.name}: {door} is also a door of {seen[door]}")
            seen[door] = service.name


def _refuse_impossible_orders(settings: Settings, problems: list[str]) -> None:
    """Services that wait for each other, or for one that is not there, could never be moved."""
    waits = {name: {each.service for each in service.requires} for name, service in settings.services.items()}
    for name, others in waits.items():
        unknown = sorted(others - waits.keys())
        problems += [f"services.{name}.requires: no service {other!r} in these settings" for other in unknown]
    reached = {name: set(others) for name, others in waits.items()}
    for _ in waits:
        for others in reached.values():
            others.update(*(reached.get(other, ()) for other in tuple(others)))
    circle = sorted(name for name, others in reached.items() if name in others)
    if circle:
        problems.append(f"services.{circle[0]}.requires: {', '.join(circle)} wait for each other")


class _Table:
    """A table of the settings, read key by key; what is wrong is noted with its place and reading goes on."""

    def __init__(self, place: str, data: dict[str, Any], problems: list[str]) -> None:
        self._place = place
        self._data = data
        self._left = dict(data)
        self._problems = problems

    def problem(self, key: str, text: str) -> None:
        self._problems.append(f"{'.'.join(part for part in (self._place, key) if part)}: {text}")

    def has(self, key: str) -> bool:
        return key in self._data

    def names(self) -> tuple[str, ...]:
        return tuple(self._data)

    def table(self, key: str) -> _Table:
        value = self._left.pop(key, {})
        place = f"{self._place}.{key}" if self._place else key
        if not isinstance(value, dict):
            self.problem(key, f"expected a table, got {value!r}")
            return _Table(place, {}, [])  # that its keys are missing needs no saying
        return _Table(place, value, self._problems)

    def text(self, key: str, default: str) -> str:
        found: str = self._read(key, default, "text", _is_text)
        return found

    def path(self, key: str, default: Path | None) -> Path:
        if default is None and not self.has(key):
            self.problem(key, "is missing: expected an absolute path")
            return Path("/")
        return Path(
            self._read(key, str(default), "an absolute path", lambda value: _is_text(value) and value.startswith("/"))
        )

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        found: str = self._read(key, default, " or ".join(repr(c) for c in choices), lambda value: value in choices)
        return found

    def command(self, key: str) -> tuple[str, ...]:
        if not self.has(key):
            self.problem(key, "is missing: expected a command as a list of texts")
        words = self._read(
            key,
            [],
            "a command as a list of texts",
            lambda v: isinstance(v, list) and bool(v) and all(map(_is_text, v)),
        )
        return tuple(words)

    def addresses(self, key: str) -> tuple[tuple[str, int], ...]:
        found: list[tuple[str, int]] = []
        for value in self._read(key, [], "a list of addresses", lambda v: isinstance(v, list)):
            scheme, _, rest = value.partition(":") if isinstance(value, str) else ("", "", "")
            host, _, port = rest.rpartition(":")
            if scheme != "tcp" or not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
                self.problem(key, f"expected 'tcp:HOST:PORT', got {value!r}")
            else:
                found.append((host.strip("[]"), int(port)))
        return tuple(found)

    def requirements(self, key: str) -> tuple[Requirement, ...]:
        found: list[Requirement] = []
        for value in self._read(key, [], "a list of texts", lambda v: isinstance(v, list)):
            service, _, stage = value.rpartition(".") if isinstance(value, str) else ("", "", "")
            if not service or stage not in tuple(Stage):
                self.problem(key, f"expected 'SERVICE.STAGE' such as 'squeezed.relay', got {value!r}")
            else:
                found.append(Requirement(service, Stage(stage)))
        return tuple(found)

    def count(self, key: str, default: int) -> int:
        return int(self._read(key, default, "a whole number, 1 or more", _is_count))

    def hours(self, key: str, default: float) -> float:
        return float(self._read(key, default, "a number of hours, 0 or more", _is_hours))

    def refuse_the_rest(self) -> None:
        for key in self._left:
            if key in _LATER:
                self.problem(key, f"{_LATER[key]} is not available in this version; remove the key")
            else:
                known = ", ".join(sorted(set(self._data) - set(self._left)))
                self.problem(key, "unknown key" + (f"; known here: {known}" if known else ""))

    def _read(self, key: str, default: Any, expected: str, fits: Callable[[Any], bool]) -> Any:
        value = self._left.pop(key, default)
        if key in self._data and not fits(value):
            self.problem(key, f"expected {expected}, got {value!r}")
            return default
        return value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 1 << 30


def _is_hours(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e6


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value) and "\0" not in value
