"""`xcp-bridge check`: what is wrong on this host, and how to mend it.

Every probe is harmless: a GET on an XML-RPC socket (which such a daemon answers 404 or with a page), a connect, a read
of a pid. squeezed's `login` is never used as a probe: it destroys that service's reservations.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from xml.parsers import expat

import httpx

from bridges.findings import Finding, Verdict
from bridges.interfaces import model
from bridges.settings import LegacyCommands, LegacyUnit, ServiceSettings, Settings
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.errors import BusError
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import StoreRefused, XenstoreError

MESSAGE_SWITCH: Final = Path("/var/run/message-switch/sock")
PROBE_SECONDS: Final = 5.0
# As in deploy/xcp-bus.conf, far above what the bridge has in flight.
REPLIES_WANTED: Final = 50_000
_REPLIES: Final = "max_replies_per_connection"
_MEND_LIMITS: Final = "run the bus with deploy/xcp-bus.conf, as deploy/xcp-bus.service does"
_DRIVER: Final = "org.freedesktop.DBus"


async def check(settings: Settings, message_switch: Path = MESSAGE_SWITCH) -> list[Finding]:
    """Looks at everything that the settings name."""
    findings = await _bus(settings)
    if any(service.xenstore for service in settings.services.values()):
        findings.append(await _xenstore(settings))
    findings += _state(settings)
    for service in settings.services.values():
        findings += [*_sockets(service), *_legacy(service)]
    findings += _message_switch(settings, message_switch)
    return findings


async def _bus(settings: Settings) -> list[Finding]:
    place = f"bus {settings.bus_address}"
    try:
        bus = await Bus.connect(settings.bus_address)
    except (BusError, OSError) as error:
        text = str(error).removeprefix(f"{place}: ")
        return [Finding(place, Verdict.BAD, text, "start it: systemctl start xcp-bus.service")]
    try:
        owned = []
        for name in settings.services:
            await bus.track_owner(names.candidate_name(name), lambda _owner: None)
            owned += [name] if bus.owner(names.candidate_name(name)) else []
        pid = await bus.process_of(_DRIVER, timeout=PROBE_SECONDS)
    except BusError as error:
        return [Finding(place, Verdict.BAD, str(error), "look into the bus daemon's log")]
    finally:
        await bus.close()
    return [Finding(place, Verdict.GOOD, f"answers; candidates: {', '.join(owned) or 'none'}"), _limits(pid)]


def _limits(pid: int) -> Finding:
    """How many calls one connection may have open, by the configuration that the bus daemon was started with."""
    place = f"bus limits (pid {pid})"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        configuration = _configuration(command)
        if configuration is None:
            return Finding(place, Verdict.UNKNOWN, f"{command[0]!r} was started without --config-file", _MEND_LIMITS)
        limit = limits_of(Path(f"/proc/{pid}/cwd", configuration)).get(_REPLIES)
    except (OSError, ValueError) as error:
        return Finding(place, Verdict.UNKNOWN, f"its configuration cannot be read: {error}", _MEND_LIMITS)
    if limit is None:
        text = f"{configuration} does not set {_REPLIES}: of a burst of calls all but the built-in 128 fail"
        return Finding(place, Verdict.WARNING, text, _MEND_LIMITS)
    if limit < REPLIES_WANTED:
        text = f"{configuration} sets {_REPLIES} {limit}, {REPLIES_WANTED} are wanted: a burst of calls fails"
        return Finding(place, Verdict.WARNING, text, _MEND_LIMITS)
    return Finding(place, Verdict.GOOD, f"{_REPLIES} {limit}")


def _configuration(command: list[str]) -> str | None:
    """The file that a dbus-daemon was told to read."""
    for word, following in zip(command, [*command[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option == "--config-file":
            return value or following
    return None


def limits_of(configuration: Path) -> dict[str, int]:
    """The limits in a bus daemon's configuration by name, those of the files that it includes too; the last one counts.

    Raises OSError, or ValueError for what is no such file. Source: dbus-daemon(1).
    """
    found: dict[str, int] = {}
    attributes: dict[str, str] = {}
    text: list[str] = []

    def begin(_element: str, given: dict[str, str]) -> None:
        attributes.update(given)
        text.clear()

    def end(element: str) -> None:
        content = "".join(text).strip()
        if element == "limit":
            found[attributes["name"]] = int(content)
        elif element in ("include", "includedir"):
            place = configuration.parent / content
            for included in sorted(place.glob("*.conf")) if place.is_dir() else filter(Path.exists, [place]):
                found.update(limits_of(included))
        text.clear()

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = begin, end, text.append
    try:
        parser.Parse(configuration.read_bytes(), True)  # noqa: FBT003 -- expat's own signature
    except (expat.ExpatError, KeyError) as error:
        raise ValueError(f"{configuration}: {error}") from None
    return found


async def _xenstore(settings: Settings) -> Finding:
    place = "xenstored"
    store = Store(settings.xenstore_socket)
    try:
        await store.connect()
        trees = [service.xenstore for service in settings.services.values() if service.xenstore is not None]
        registered = [f"/{tree}/pid {await _pid(store, tree)}" for tree in trees]
    except (XenstoreError, OSError) as error:
        return Finding(place, Verdict.BAD, str(error), "start xenstored, or set [xenstore] socket")
    finally:
        await store.close()
    return Finding(place, Verdict.GOOD, f"answers at {settings.xenstore_socket}; {'; '.join(registered)}")


async def _pid(store: Store, tree: str) -> str:
    try:
        text = (await store.read(f"/{tree}/pid")).decode("ascii", "replace")
    except StoreRefused:
        return "is not there: no daemon serves the tree"
    try:
        os.kill(int(text), 0)
    except (ValueError, ProcessLookupError):
        return f"is {text}, which does not run"
    except PermissionError:
        pass
    return f"is {text}"


def _state(settings: Settings) -> Iterator[Finding]:
    directory = settings.state_directory
    place = f"state {directory}"
    if not directory.exists():
        yield Finding(place, Verdict.WARNING, "is not there yet; it is made at the first start")
    elif not directory.is_dir() or not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(place, Verdict.BAD, "is no directory we can write", "correct its owner, or set [state] directory")
    else:
        yield Finding(place, Verdict.GOOD, "can be written")


def _sockets(service: ServiceSettings) -> Iterator[Finding]:
    if service.http is not None:
        place = f"services.{service.name}.http {service.http.socket}"
        if "_" in str(service.http.socket):
            yield Finding(
                place, Verdict.WARNING, "XenAPI.py turns every _ of a socket path into /", "choose a path without _"
            )
        yield probe(place, service.http.socket)
        if service.http.listen and service.dialect == "xenapi":
            text = "whoever reaches it is root for xapi, whose Unix socket asks for no credentials"
            yield Finding(f"services.{service.name}.http.listen", Verdict.WARNING, text, "guard the address")
    if service.framed is not None:
        yield _connect(f"services.{service.name}.framed {service.framed.socket}", service.framed.socket)


def _connect(place: str, path: Path) -> Finding:
    """Connects and leaves: a daemon of frames reads nothing, and does nothing."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PROBE_SECONDS)
        try:
            connection.connect(str(path))
        except OSError as error:
            return Finding(place, Verdict.BAD, f"{error.strerror}", "start the legacy daemon, or correct the path")
    return Finding(place, Verdict.GOOD, "accepts connections")


def probe(place: str, path: Path) -> Finding:
    """Asks whoever serves the socket for a page: legacy daemons answer 404, and do nothing."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            return Finding(place, Verdict.BAD, "is no socket", "correct the path")
    except OSError as error:
        return Finding(place, Verdict.BAD, f"{error.strerror}", "start the legacy daemon, or correct the path")
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PROBE_SECONDS) as client:
        try:
            reply = client.get("http://localhost/")
        except httpx.ConnectError:
            return Finding(place, Verdict.BAD, "refuses connections: nobody serves it", "start the legacy daemon")
        except httpx.RemoteProtocolError:
            return Finding(place, Verdict.WARNING, "closes without an answer to GET: not the usual daemon")
        except httpx.HTTPError as error:
            return Finding(
                place, Verdict.UNKNOWN, f"gave no answer: {type(error).__name__}", "is the legacy daemon stuck?"
            )
    server = reply.headers.get("user-agent") or reply.headers.get("server") or "unnamed"
    return Finding(place, Verdict.GOOD, f"answers ({reply.status_code}, {server})")


def _legacy(service: ServiceSettings) -> Iterator[Finding]:
    place = f"services.{service.name}.legacy"
    match service.legacy:
        case None:
            yield Finding(
                place, Verdict.WARNING, "is not set: the service cannot go live", "set unit, or start, stop and pidfile"
            )
        case LegacyUnit(unit):
            if not Path("/run/systemd/system").exists():
                yield Finding(
                    place, Verdict.BAD, f"{unit}: this host does not run systemd", "use start, stop and pidfile"
                )
        case LegacyCommands(start=start):
            yield from _start_command(place, start, service.xenstore)


def _start_command(place: str, start: tuple[str, ...], tree: str | None) -> Iterator[Finding]:
    script = Path(start[0])
    if not script.is_absolute() or not os.access(script, os.X_OK):
        yield Finding(place, Verdict.BAD, f"start: {start[0]} cannot be run", "give the absolute path of a program")
        return
    try:
        clears = tree is not None and f"xenstore-rm /{tree}" in script.read_text(errors="replace")[:65536]
    except OSError:
        clears = False
    if clears:
        yield Finding(
            place,
            Verdict.BAD,
            f"start: {script} clears /{tree}: requests and reservations would be lost at every move",
            "start the daemon with a command that leaves the tree alone",
        )
    else:
        yield Finding(place, Verdict.GOOD, "can be started and stopped")


def _message_switch(settings: Settings, path: Path) -> Iterator[Finding]:
    """Services that use message-switch pass our doors by; its diagnostics page lists its queues without a login."""
    if not path.exists():
        return
    place = f"message-switch {path}"
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=PROBE_SECONDS) as client:
        try:
            queues = client.get("http://localhost/").json()["permanent_queues"]
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            yield Finding(place, Verdict.UNKNOWN, f"is there, its queues could not be read: {type(error).__name__}")
            return
    for name in settings.services:
        queue = model.load(name).queue
        if queue is not None and any(found == queue or found.startswith(queue + ".") for found in queues):
            yield Finding(
                place,
                Verdict.WARNING,
                f"{name} has the queue {queue}: calls that go through it pass our doors by; message-switch is no door",
                "set use-switch=false in the legacy daemon's and its callers' configuration",
            )
