"""The verbs of the bridge itself: on the control socket, which works without the bus, and as org.xen.xcp.Bridge1 on it.

The control socket (0600) speaks one JSON object a line and answers one a line: `{"verb": "status"}`,
`{"verb": "stage", "service": ..., "stage": ..., "reason": ..., "skip"?, "dry_run"?, "accept_in_doubt"?}`. The answer is
`{"ok": true, ...}` or `{"ok": false, "error": TEXT, "refused": BOOL}`; refused means: understood, and not done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from bridges import cutover
from bridges.cutover import IllegalMove, Stage
from bridges.endpoints import Endpoints
from bridges.flip import FlipRefused, Receipt, move
from bridges.state import Order, State
from dbus_side import introspection
from dbus_side.bus import Bus
from dbus_side.errors import BusRefused
from dbus_side.exported import ObjectTree
from dbus_side.messages import MethodCall
from dbus_side.signatures import Variant

LOG: Final = logging.getLogger("bridges.control")

BUS_NAME: Final = "org.xen.xcp.bridge"
BUS_PATH: Final = "/org/xen/xcp/bridge"
LINE_LIMIT: Final = 64 * 1024

_arg = introspection.Argument
INTERFACE: Final = introspection.Interface(
    name="org.xen.xcp.Bridge1",
    methods=(
        introspection.Method("Status", (), (_arg("services", "a{sa{sv}}"),)),
        introspection.Method(
            "SetStage",
            (_arg("service", "s"), _arg("stage", "s"), _arg("reason", "s"), _arg("options", "a{sv}")),
            (_arg("epoch", "t"), _arg("held_seconds", "d")),
        ),
        introspection.Method("Plan", (_arg("service", "s"), _arg("stage", "s")), (_arg("steps", "as"),)),
    ),
    signals=(
        introspection.Signal(
            "StageChanged", (_arg("service", "s"), _arg("origin", "s"), _arg("target", "s"), _arg("epoch", "t"))
        ),
    ),
)


class WrongRequest(Exception):
    """A request that names something that does not exist, or lacks what its verb needs."""


class Control:
    """What the verbs do, whichever way they came."""

    def __init__(self, services: Mapping[str, Endpoints], state: State) -> None:
        self._services = services
        self._state = state
        self.on_change: Callable[[Receipt], None] | None = None

    def status(self) -> dict[str, dict[str, object]]:
        return {name: endpoints.status() for name, endpoints in self._services.items()}

    def flips(self, service: str | None) -> list[dict[str, object]]:
        return self._state.flips(service)

    def plan(self, service: str, stage: str) -> list[str]:
        """What SetStage would do. Raises WrongRequest or IllegalMove."""
        endpoints, target = self._find(service, stage)
        settings = endpoints.settings
        steps: list[str] = []
        here = endpoints.situation.standing.stage
        for there in cutover.moves(here, target):
            parts = cutover.plan(
                here,
                there,
                sockets=bool(settings.http or settings.framed),
                tree=settings.xenstore is not None,
                datagrams=settings.datagram is not None,
            )
            steps += [f"{here} to {there}: {part}" for part in parts]
            here = there
        return steps

    async def set_stage(
        self, service: str, stage: str, order: Order, *, accept_in_doubt: bool = False
    ) -> list[Receipt]:
        """Moves a service. Raises WrongRequest, IllegalMove or FlipRefused."""
        endpoints, target = self._find(service, stage)
        if not order.reason.strip():
            raise WrongRequest("a move needs a reason")
        receipts = await move(endpoints, self._state, target, order, accept_in_doubt=accept_in_doubt)
        for receipt in receipts:
            if self.on_change is not None:
                self.on_change(receipt)
        return receipts

    def _find(self, service: str, stage: str) -> tuple[Endpoints, Stage]:
        endpoints = self._services.get(service)
        if endpoints is None:
            raise WrongRequest(f"no service {service!r} in the settings; known: {', '.join(self._services) or 'none'}")
        try:
            return endpoints, Stage(stage)
        except ValueError:
            raise WrongRequest(f"no stage {stage!r}; stages: {', '.join(cutover.LADDER)}") from None


class ControlSocket:
    """The control socket of this daemon: only root and the daemon's own user are heard (SO_PEERCRED)."""

    def __init__(self, path: Path, control: Control) -> None:
        self._path = path
        self._control = control
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listens. Raises OSError; a socket left by a dead bridge is replaced, one that answers is not."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(ConnectionRefusedError, FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self._path))
            raise OSError(f"{self._path}: another bridge answers there")
        self._path.unlink(missing_ok=True)
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, str(self._path), limit=LINE_LIMIT)
        finally:
            os.umask(mask)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection: socket.socket = writer.get_extra_info("socket")
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            while line := await reader.readline():
                answer = await self._answer(line, uid)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (OSError, ValueError) as error:
            LOG.info("control connection of uid %d: %s", uid, error)
        finally:
            writer.close()

    async def _answer(self, line: bytes, uid: int) -> dict[str, Any]:
        if uid not in (0, os.getuid()):
            return {"ok": False, "error": f"uid {uid} may not control the bridge", "refused": True}
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise WrongRequest("expected a JSON object with a member 'verb'")
            return {"ok": True, **await self._perform(request, uid)}
        except (IllegalMove, FlipRefused) as error:
            return {"ok": False, "error": str(error), "refused": True}
        except (WrongRequest, ValueError) as error:
            return {"ok": False, "error": str(error), "refused": False}
        except Exception:
            LOG.exception("control request")
            return {"ok": False, "error": "internal error; the bridge's log has the details", "refused": False}

    async def _perform(self, request: dict[str, Any], uid: int) -> dict[str, Any]:
        match request.get("verb"):
            case "status":
                return {"services": self._control.status()}
            case "flips":
                return {"flips": self._control.flips(_text_or_none(request, "service"))}
            case "stage":
                service, stage = _text(request, "service"), _text(request, "stage")
                if request.get("dry_run"):
                    return {"plan": self._control.plan(service, stage)}
                order = Order(f"uid {uid}", _text(request, "reason"), _text_or_none(request, "skip"))
                receipts = await self._control.set_stage(
                    service, stage, order, accept_in_doubt=bool(request.get("accept_in_doubt"))
                )
                return {"receipts": [_receipt(receipt) for receipt in receipts]}
            case verb:
                raise WrongRequest(f"unknown verb {verb!r}; known: status, stage, flips")


class ControlObject:
    """org.xen.xcp.Bridge1 on a bus connection. The caller's uid is asked of the bus and checked here as well."""

    def __init__(self, control: Control) -> None:
        self._control = control
        control.on_change = self._stage_changed
        self._objects = ObjectTree()
        self._objects.add(BUS_PATH, INTERFACE, self._answer)
        self._bus: Bus | None = None

    async def serve(self, bus: Bus) -> None:
        self._bus = bus
        bus.serve(self._objects.answer)

    def _stage_changed(self, receipt: Receipt) -> None:
        """Tells everybody on the bus; without a bus there is nobody to tell."""
        if self._bus is not None and not self._bus.closed.is_set():
            body = (receipt.service, str(receipt.origin), str(receipt.target), receipt.epoch)
            self._bus.emit(BUS_PATH, INTERFACE.name, "StageChanged", "ssst", body)

    async def _answer(self, call: MethodCall, method: introspection.Method) -> tuple[Any, ...]:
        assert self._bus is not None
        uid = await self._bus.sender_uid(call.sender)
        if uid not in (0, os.getuid()):
            raise BusRefused("org.freedesktop.DBus.Error.AccessDenied", "s", (f"uid {uid} may not control the bridge",))
        try:
            if method.name == "Status":
                return ({name: _variants(record) for name, record in self._control.status().items()},)
            if method.name == "Plan":
                return (self._control.plan(*call.body),)
            service, stage, reason, options = call.body
            skip = options.get("skip")
            order = Order(f"uid {uid}", reason, None if skip is None else str(skip.value))
            in_doubt = options.get("accept_in_doubt", Variant("b", False)).value is True  # noqa: FBT003 -- a D-Bus boolean
            receipts = await self._control.set_stage(service, stage, order, accept_in_doubt=in_doubt)
        except (IllegalMove, FlipRefused) as error:
            raise BusRefused("org.xen.xcp.bridge.Error.Refused", "s", (str(error),)) from None
        except WrongRequest as error:
            raise BusRefused("org.xen.xcp.Error.InvalidArgument", "s", (str(error),)) from None
        return (receipts[-1].epoch, sum(receipt.held_seconds for receipt in receipts))


def _receipt(receipt: Receipt) -> dict[str, object]:
    return {
        "service": receipt.service,
        "origin": receipt.origin,
        "target": receipt.target,
        "epoch": receipt.epoch,
        "held_seconds": round(receipt.held_seconds, 4),
    }


def _text(request: dict[str, Any], key: str) -> str:
    value = request.get(key)
    if not isinstance(value, str):
        raise WrongRequest(f"{key}: expected text, got {value!r}")
    return value


def _text_or_none(request: dict[str, Any], key: str) -> str | None:
    return None if request.get(key) is None else _text(request, key)


def _variants(record: Mapping[str, object]) -> dict[str, Variant]:
    """A status record as D-Bus carries it: text s, numbers x, nested records a{sv}; what is None is absent."""
    found: dict[str, Variant] = {}
    for name, value in record.items():
        if isinstance(value, int):
            found[name] = Variant("x", value)
        elif isinstance(value, str):
            found[name] = Variant("s", str(value))
        elif isinstance(value, Mapping):
            found[name] = Variant("a{sv}", _variants(value))
    return found
