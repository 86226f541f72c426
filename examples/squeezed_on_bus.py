"""A squeezed that lives on the bus: what the author of a migrated daemon starts from.

    python examples/squeezed_on_bus.py --bus unix:path=/run/xcp/bus --xenstore /var/run/xenstored/socket

Three parts. `Memory` is the service itself: plain asynchronous functions. `Charge` is the protocol between a daemon
under migration and the bridge: until it is told `Assume` the daemon neither asks for the service's name nor executes a
write; told `Yield` it refuses further writes, finishes those it has, and leaves the name. `serve` puts both on the bus.
With `--settled` it is no candidate: it owns the service's name from its start, as a daemon does whose migration is
complete. With `--sandbox` it says of itself that it may be driven with writes of a capture (`xcp-bridge replay`).

State that must survive a move is kept where both daemons see it: reservations stay in the store, as decimal KiB under
/squeezed/state/SESSION/RESERVATION, ids unchanged.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path
from typing import Any, Final

from executions import Executions

from dbus_side import names
from dbus_side.bus import Bus, MethodCall, NameOutcome
from dbus_side.errors import BusError, BusRefused
from dbus_side.exported import ObjectTree
from dbus_side.introspection import Interface, Method, from_xml
from dbus_side.signatures import Variant
from xenstore_rpc.connection import Store, Transaction
from xenstore_rpc.errors import StoreLost, StoreRefused, XenstoreError

SERVICE: Final = "squeezed"
HOST_RESERVE_KIB: Final = 73728
NO_LIMIT_KIB: Final = 1 << 30
# Offered by a daemon that may be tried out: what it does harms nobody.


class Fault(Exception):
    """An error of the service: its code, and typed arguments after a text for people."""

    def __init__(self, code: str, text: str, signature: str = "", *arguments: Any) -> None:
        super().__init__(text)
        self.refusal = BusRefused(names.error_name(SERVICE, code), "s" + signature, (text, *arguments))


class Memory:
    """The service. A method's arguments and results are those of its D-Bus signature; amounts are KiB."""

    def __init__(self, store: Store, host_kib: int | None) -> None:
        self._store = store
        self._state = f"/{SERVICE}/state"
        self._host_kib = host_kib

    async def login(self, _debug_info: str, service_name: str) -> tuple[Any, ...]:
        """Drops every reservation that this service made under its name."""
        await self._store.rm(f"{self._state}/{service_name}")
        return (service_name,)

    async def reserve_memory(self, _debug_info: str, session_id: str, kib: int) -> tuple[Any, ...]:
        """Records a reservation of exactly that much."""
        await self._check_free(kib, kib)
        return (await self._reserve(session_id, kib),)

    async def reserve_memory_range(
        self, _debug_info: str, session_id: str, minimum: int, maximum: int
    ) -> tuple[Any, ...]:
        """Records a reservation of as much as there is, between both amounts."""
        if maximum < minimum:
            raise _invalid(minimum)
        free = await self._check_free(minimum, maximum)
        kib = min(maximum, free)
        return (await self._reserve(session_id, kib), kib)

    async def delete_reservation(self, _debug_info: str, session_id: str, reservation_id: str) -> tuple[Any, ...]:
        """Succeeds also when there is no such reservation."""
        await self._store.rm(f"{self._state}/{session_id}/{reservation_id}")
        return ()

    async def transfer_reservation_to_domain(
        self, _debug_info: str, session_id: str, reservation_id: str, domid: int
    ) -> tuple[Any, ...]:
        """The reservation becomes the domain's memory, in one step."""
        reservation = f"{self._state}/{session_id}/{reservation_id}"
        memory = f"/local/domain/{domid}/memory"

        async def transfer(tx: Transaction) -> None:
            kib = await tx.read(reservation)
            await tx.write(f"{memory}/initial-reservation", kib)
            await tx.write(f"{memory}/reservation-id", reservation_id.encode())
            await tx.rm(reservation)

        try:
            await self._store.transact(transfer)
        except StoreRefused as refused:
            if refused.error != "ENOENT":
                raise
            raise Fault(
                "Unknown_reservation", f"there is no reservation {reservation_id}", "s", reservation_id
            ) from None
        return ()

    async def query_reservation_of_domain(self, _debug_info: str, _session_id: str, domid: int) -> tuple[Any, ...]:
        """The reservation that a domain was given."""
        try:
            return ((await self._store.read(f"/local/domain/{domid}/memory/reservation-id")).decode(),)
        except StoreRefused:
            raise Fault("No_reservation", f"domain {domid} was given no reservation") from None

    async def balance_memory(self, _debug_info: str) -> tuple[Any, ...]:
        """There is nothing to balance on a made-up host."""
        return ()

    async def get_diagnostics(self, _debug_info: str) -> tuple[Any, ...]:
        """Text for people."""
        return (f"squeezed on the bus, pid {os.getpid()}",)

    async def get_host_reserved_memory(self, _debug_info: str) -> tuple[Any, ...]:
        """KiB."""
        return (HOST_RESERVE_KIB,)

    async def get_host_initial_free_memory(self, _debug_info: str) -> tuple[Any, ...]:
        """Bytes."""
        return ((self._host_kib or NO_LIMIT_KIB) * 1024,)

    async def get_domain_zero_policy(self, _debug_info: str) -> tuple[Any, ...]:
        """Bytes."""
        return (("Auto_balloon", Variant("(xx)", (512 << 20, 4 << 30))),)

    async def echo(self, arguments: dict[str, str]) -> tuple[Any, ...]:
        """What came."""
        return (arguments,)

    async def _check_free(self, *amounts: int) -> int:
        """What is free, at least the first amount. Raises Fault."""
        for kib in amounts:
            if kib < 0:
                raise _invalid(kib)
        if self._host_kib is None:
            return NO_LIMIT_KIB
        reserved = 0
        for session in await self._store.directory_or_empty(self._state):
            for reservation in await self._store.directory_or_empty(f"{self._state}/{session}"):
                reserved += int(await self._store.read(f"{self._state}/{session}/{reservation}"))
        free = self._host_kib - reserved
        if amounts[0] > free:
            text = f"{amounts[0]} KiB are needed, {free} are free"
            raise Fault("Cannot_free_this_much_memory", text, "xx", amounts[0], free)
        return free

    async def _reserve(self, session_id: str, kib: int) -> str:
        reservation_id = str(uuid.uuid4())
        await self._store.write(f"{self._state}/{session_id}/{reservation_id}", b"%d" % kib)
        return reservation_id


def _invalid(kib: int) -> Fault:
    return Fault("Invalid_memory_value", f"{kib} KiB is no amount of memory", "x", kib)


class Charge:
    """Whether this daemon is in charge, and the way in and out of it (org.xen.xcp.Candidate1)."""

    def __init__(self, bus: Bus, *, is_settled: bool) -> None:
        self._bus = bus
        self._in_charge = is_settled
        self.epoch = 0
        # Writes run one at a time, in the order they came: who holds this lock knows that none is running.
        self._writing = asyncio.Lock()

    async def write(self, work: Callable[[], Awaitable[tuple[Any, ...]]]) -> tuple[Any, ...]:
        """Runs a write to its end, if we are in charge when it comes. Raises BusRefused."""
        if not self._in_charge:
            raise BusRefused(names.bridge_error("Unavailable"), "s", (f"{SERVICE} on the bus is not in charge",))
        async with self._writing:
            return await work()

    async def answer(self, call: MethodCall, method: Method) -> tuple[Any, ...]:
        """Assume and Yield. Raises BusRefused for an epoch that is over."""
        (epoch,) = call.body
        if epoch < self.epoch:
            text = f"epoch: expected at least {self.epoch}, got {epoch}"
            raise BusRefused(names.bridge_error("InvalidArgument"), "s", (text,))
        self.epoch = epoch
        if method.name == "Assume":
            await self._assume()
        else:
            await self.leave()
        return ()

    async def _assume(self) -> None:
        async with self._writing:
            # Owner or queued, both are fine: the bridge hands the name over when it is ready.
            await self._bus.request_name(names.service_name(SERVICE), allow_replacement=True, queue=True)
            self._in_charge = True

    async def leave(self) -> None:
        """No write begins from now on; when this returns none is running and the name is another's."""
        self._in_charge = False
        async with self._writing:
            await self._bus.release_name(names.service_name(SERVICE))


class Service:
    """Answers the calls of the Memory interface."""

    def __init__(self, memory: Memory, charge: Charge, executions: Executions, slow_ms: int) -> None:
        self._memory = memory
        self._charge = charge
        self._executions = executions
        self._slow_ms = slow_ms

    async def answer(self, call: MethodCall, method: Method) -> tuple[Any, ...]:
        """The reply's arguments. Raises BusRefused."""
        notes = dict(method.annotations)
        wire, is_write = notes["org.xen.xcp.LegacyName"], notes["org.xen.xcp.Effect"] == "write"

        async def work() -> tuple[Any, ...]:
            self._executions.count(wire, _token(call))
            await asyncio.sleep(self._slow_ms / 1000)
            result: tuple[Any, ...] = await getattr(self._memory, wire)(*call.body)
            return result

        try:
            return await (self._charge.write(work) if is_write else work())
        except Fault as fault:
            raise fault.refusal from None
        except StoreLost as lost:
            # Whoever asked must know whether asking again is safe.
            kind = "InDoubt" if lost.sent and is_write else "Unavailable"
            raise BusRefused(names.bridge_error(kind), "s", (str(lost),)) from None
        except XenstoreError as error:
            raise Fault("Internal_error", str(error), "s", str(error)).refusal from None


def _token(call: MethodCall) -> str:
    """The session or service name when there is one, else the debug text: what callers in a demo make unique."""
    if call.member == "Echo":
        return str(call.body[0].get("session_id", "-"))
    return str(call.body[min(1, len(call.body) - 1)])


def published(name: str) -> Interface:
    """An interface as it is written down, for daemons in any language."""
    return from_xml(resources.files("dbus_side.idl").joinpath(f"{name}.xml").read_text()).interfaces[0]


async def serve(options: argparse.Namespace) -> int:
    """Serves until SIGTERM (0) or until the bus is lost (1: a supervisor starts us again)."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    store = Store(options.xenstore)
    await store.connect()
    try:
        bus = await Bus.connect(options.bus)
        try:
            charge = Charge(bus, is_settled=options.settled)
            executions = Executions(options.executions, side="bus")
            service = Service(Memory(store, options.host_kib), charge, executions, options.slow_ms)
            candidate, memory = published("org.xen.xcp.Candidate1"), published("org.xen.xcp.squeezed.Memory1")
            objects = ObjectTree()
            if not options.settled:
                objects.add(f"/org/xen/xcp/{SERVICE}", candidate, charge.answer, {"Epoch": lambda: charge.epoch})
            if options.sandbox:
                sandbox = published("org.xen.xcp.Sandbox1")
                objects.add(f"/org/xen/xcp/{SERVICE}", sandbox, charge.answer, {"Sandbox": lambda: True})
            objects.add(names.object_path(SERVICE, "Memory"), memory, service.answer)
            bus.serve(objects.answer)
            name = names.service_name(SERVICE) if options.settled else names.candidate_name(SERVICE)
            if await bus.request_name(name) is not NameOutcome.OWNER:
                print(f"{name} is owned by another daemon", file=sys.stderr)
                return 1
            what = "owns its name" if options.settled else "is a candidate"
            print(f"squeezed on the bus {what} as {bus.unique_name}", flush=True)
            return await _until(stop, bus, charge)
        finally:
            await bus.close()
    finally:
        await store.close()


async def _until(stop: asyncio.Event, bus: Bus, charge: Charge) -> int:
    stopping = asyncio.create_task(stop.wait(), name="stop")
    lost = asyncio.create_task(bus.wait_lost(), name="lost")
    await asyncio.wait((stopping, lost), return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    lost.cancel()
    if bus.closed.is_set():
        print("squeezed on the bus: the connection to the bus is lost", file=sys.stderr)
        return 1
    await charge.leave()
    return 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A squeezed that lives on the bus.")
    parser.add_argument("--bus", default=os.environ.get("XCP_BUS_ADDRESS", "unix:path=/run/xcp/bus"))
    parser.add_argument("--xenstore", default="/var/run/xenstored/socket")
    parser.add_argument("--host-kib", type=int, help="memory of the made-up host in KiB; without it there is no end")
    parser.add_argument("--settled", action="store_true", help="own the service's name at once: no bridge gives it")
    parser.add_argument("--sandbox", action="store_true", help="say that writes of a capture may be sent here")
    parser.add_argument("--executions", type=Path, help="one line is appended for every call that is executed")
    parser.add_argument("--slow-ms", type=int, default=0, help="milliseconds that every call takes longer")
    try:
        sys.exit(asyncio.run(serve(parser.parse_args())))
    except (BusError, XenstoreError, OSError) as error:
        sys.exit(f"squeezed on the bus: {error}")


if __name__ == "__main__":
    main()
