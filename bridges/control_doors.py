"""The verbs of the bridge itself: on the control socket, which works without the bus, and as org.xen.xcp.Bridge1 on it.

The control socket (0600) speaks one JSON object a line and answers one a line: `{"verb": "status"}`,
`{"verb": "stage", "service": ..., "stage": ..., "reason": ..., "skip"?, "override"?, "dry_run"?, "accept_in_doubt"?}`.
The answer is `{"ok": true, ...}` or `{"ok": false, "error": TEXT, "refused": BOOL}`; refused means: understood, and not
done. `no_data` beside it means that nothing speaks against a move, but nothing for it either; `gates` says what.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from bridges.calls import Door
from bridges.control import Control, NotNow, WrongRequest
from bridges.cutover import IllegalMove
from bridges.flip import KILL, FlipRefused, Receipt
from bridges.gates import Gate
from bridges.state import Order
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
VERBS: Final = ("status", "stage", "kill", "acknowledge", "explain", "audit", "handles", "doctor", "capture")

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
        introspection.Method(
            "Kill",
            (_arg("service", "s"), _arg("reason", "s"), _arg("options", "a{sv}")),
            (_arg("epoch", "t"), _arg("held_seconds", "d")),
        ),
        introspection.Method("Plan", (_arg("service", "s"), _arg("stage", "s")), (_arg("steps", "as"),)),
        introspection.Method(
            "Explain",
            (_arg("service", "s"), _arg("method", "s"), _arg("door", "s")),
            (_arg("rules", "a(sss)"), _arg("result", "s")),
        ),
    ),
    signals=(
        introspection.Signal(
            "StageChanged", (_arg("service", "s"), _arg("origin", "s"), _arg("target", "s"), _arg("epoch", "t"))
        ),
    ),
)


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
        except FlipRefused as error:
            found = {"no_data": error.is_for_want_of_data, "gates": _gates(error.gates)} if error.gates else {}
            return {"ok": False, "error": str(error), "refused": True, **found}
        except (IllegalMove, NotNow) as error:
            return {"ok": False, "error": str(error), "refused": True}
        except (WrongRequest, ValueError) as error:
            return {"ok": False, "error": str(error), "refused": False}
        except Exception:
            LOG.exception("control request")
            return {"ok": False, "error": "internal error; the bridge's log has the details", "refused": False}

    async def _perform(self, request: dict[str, Any], uid: int) -> dict[str, Any]:
        control, who = self._control, f"uid {uid}"
        match request.get("verb"):
            case "status":
                return {"services": control.status()}
            case "audit":
                return {"entries": control.audit(_text_or_none(request, "service"), _number(request, "limit", 50))}
            case "stage":
                service, stage = _text(request, "service"), _text(request, "stage")
                skip, override = _text_or_none(request, "skip"), _text_or_none(request, "override")
                order = Order(who, _text_or_none(request, "reason") or "", skip, override)
                if request.get("dry_run"):
                    plan = await control.plan(service, stage, order)
                    return {**plan, "gates": _gates(plan["gates"])}
                in_doubt = request.get("accept_in_doubt") is True
                receipts = await control.set_stage(service, stage, order, accept_in_doubt=in_doubt)
                return {"receipts": [_receipt(each) for each in receipts], **control.farewell(service)}
            case "kill":
                order = Order(who, _text(request, "reason"), verb=KILL)
                in_doubt = request.get("accept_in_doubt") is True
                receipts, text = await control.kill(_text(request, "service"), order, accept_in_doubt=in_doubt)
                return {"receipts": [_receipt(each) for each in receipts], "text": text}
            case "acknowledge":
                order = Order(who, _text(request, "reason"), verb="acknowledge")
                return await control.acknowledge(_text(request, "service"), order)
            case "explain":
                return await self._explain(request)
            case "handles":
                return await control.handles(_text(request, "service"))
            case "capture":
                services = request.get("services", [])
                if not isinstance(services, list) or not all(isinstance(each, str) for each in services):
                    raise WrongRequest(f"services: expected a list of texts, got {services!r}")
                return await control.capture(_text(request, "action"), services, _name(request))
            case "doctor":
                return {"findings": await control.doctor()}
            case verb:
                raise WrongRequest(f"unknown verb {verb!r}; known: {', '.join(VERBS)}")

    async def _explain(self, request: dict[str, Any]) -> dict[str, Any]:
        service = _text(request, "service")
        if request.get("call") is not None:
            return await self._control.explain_recorded(service, _number(request, "call", 0))
        arguments = request.get("arguments")
        if arguments is not None and not isinstance(arguments, dict):
            raise WrongRequest(f"arguments: expected an object, got {arguments!r}")
        door = _text_or_none(request, "door") or str(Door.BUS)
        return self._control.explain(service, _text(request, "method"), door, arguments or {})


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
                return (self._control.steps(*call.body),)
            if method.name == "Explain":
                service, name, door = call.body
                found = self._control.explain(service, name, door, {})
                return ([(rule["rule"], rule["verdict"], rule["text"]) for rule in found["rules"]], found["result"])
            service, stage, reason, options = (
                call.body if method.name == "SetStage" else (call.body[0], "", *call.body[1:])
            )
            in_doubt = options.get("accept_in_doubt", Variant("b", False)).value is True  # noqa: FBT003 -- a D-Bus boolean
            if method.name == "Kill":
                order = Order(f"uid {uid}", reason, verb=KILL)
                receipts, _ = await self._control.kill(service, order, accept_in_doubt=in_doubt)
            else:
                order = Order(f"uid {uid}", reason, _option(options, "skip"), _option(options, "override"))
                receipts = await self._control.set_stage(service, stage, order, accept_in_doubt=in_doubt)
        except (IllegalMove, FlipRefused, NotNow) as error:
            raise BusRefused("org.xen.xcp.bridge.Error.Refused", "s", (str(error),)) from None
        except WrongRequest as error:
            raise BusRefused("org.xen.xcp.Error.InvalidArgument", "s", (str(error),)) from None
        return (self._control.epoch(service), sum(receipt.held_seconds for receipt in receipts))


def _receipt(receipt: Receipt) -> dict[str, object]:
    return {
        "service": receipt.service,
        "origin": receipt.origin,
        "target": receipt.target,
        "epoch": receipt.epoch,
        "held_seconds": round(receipt.held_seconds, 4),
        "held_limit_seconds": receipt.held_limit_seconds,
    }


def _gates(found: list[Gate]) -> list[dict[str, str]]:
    return [{"gate": g.gate, "verdict": g.verdict, "text": g.text, "mend": g.mend} for g in found]


def _option(options: Mapping[str, Variant], name: str) -> str | None:
    return None if name not in options else str(options[name].value)


def _number(request: dict[str, Any], key: str, default: int) -> int:
    value = request.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise WrongRequest(f"{key}: expected a number, 0 or more, got {value!r}")
    return value


def _name(request: dict[str, Any]) -> str | None:
    """The name of a capture: one step of a path."""
    name = _text_or_none(request, "name")
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise WrongRequest(f"name: expected up to 100 letters, digits, dots, dashes or underscores, got {name[:60]!r}")
    return name


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
