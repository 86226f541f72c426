"""A candidate on the bus for any service, whose methods are executed by a legacy daemon of its own behind a socket.

    python tests/live/stand_in.py --bus ADDRESS --service xapi --socket /tmp/x/behind --executions /tmp/x/executions

Without `--socket` the methods do nothing: for services whose methods have no results. What it executes is a line in the
log of executions, side `bus`.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

from bridges import dbus_translation
from bridges.backends import LegacyOverSocket
from bridges.calls import Call, Door, Value
from bridges.candidates import CANDIDATE
from bridges.faults import Fault
from bridges.interfaces import model
from bridges.settings import HttpDoorSettings, ServiceSettings
from bridges.tongues import Tongues
from dbus_side import introspection, names
from dbus_side.bus import Bus
from dbus_side.exported import ObjectTree
from dbus_side.messages import MethodCall


class StandIn:
    """One service on the bus."""

    def __init__(self, bus: Bus, options: argparse.Namespace) -> None:
        self._bus = bus
        self._options = options
        self._epoch = 0
        dialect = options.dialect or model.load(options.service).dialect
        self._service = model.load_dialect(options.service, dialect)
        self._translation = dbus_translation.Translation(self._service)
        self._backend = None
        if options.socket is not None:
            http = HttpDoorSettings(options.socket, Path(f"{options.socket}.legacy"), self._service.http_format)
            tongues = Tongues(ServiceSettings(options.service, http=http, dialect=dialect))
            client = tongues.http_client(str(options.socket))
            self._backend = LegacyOverSocket(lambda: client, *tongues.call())

    def export(self, tree: ObjectTree) -> None:
        """The service's objects, and the candidate's."""
        path = names.service_path(self._service.name)
        tree.add(path, CANDIDATE, self._answer_candidate, {"Epoch": lambda: self._epoch})
        for name in self._service.objects:
            interface = dbus_translation.interface_of(self._translation, name)
            tree.add(names.object_path(self._service.name, name), interface, self._answer)

    async def _answer_candidate(self, call: MethodCall, _method: introspection.Method) -> tuple[Any, ...]:
        (self._epoch,) = call.body
        name = names.service_name(self._service.name)
        if call.member == "Assume":
            await self._bus.request_name(name, allow_replacement=True, queue=True)
        else:
            await self._bus.release_name(name)
        return ()

    async def _answer(self, call: MethodCall, described: introspection.Method) -> tuple[Any, ...]:
        method = self._service.method(dict(described.annotations)[dbus_translation.LEGACY_NAME])
        assert method is not None
        form = self._translation.of(method)
        try:
            arguments = form.read_arguments(call.body)
            self._count(method.name, arguments)
            deadline = None if method.deadline is None else time.monotonic() + method.deadline
            value: Value = None
            if self._backend is not None:
                value = await self._backend.ask(Call(method, arguments, Door.BUS, deadline))
            return form.write_result(value)
        except Fault as fault:
            raise form.write_fault(fault) from None

    def _count(self, name: str, arguments: dict[str, Value]) -> None:
        texts = [value for value in arguments.values() if isinstance(value, str)]
        token = texts[-1].replace(" ", "_") if texts and texts[-1] else "-"
        with self._options.executions.open("a") as log:
            log.write(f"bus {name} {token}\n")


async def serve(options: argparse.Namespace) -> None:
    """Serves until SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    bus = await Bus.connect(options.bus)
    tree = ObjectTree()
    StandIn(bus, options).export(tree)
    bus.serve(tree.answer)
    await bus.request_name(names.candidate_name(options.service))
    sys.stdout.write(f"{options.service} is a candidate\n")
    sys.stdout.flush()
    await stop.wait()
    await bus.close()


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bus", required=True)
    parser.add_argument("--service", required=True)
    parser.add_argument("--dialect")
    parser.add_argument("--socket", type=Path)
    parser.add_argument("--executions", type=Path, required=True)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
