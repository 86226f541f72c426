"""The callers of the soak: at every door, reads and writes, a token of its own for each call, each with its patience.

A caller never repeats a call. What became of each is one of `Outcome`; `judge` knows the words of the doors.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import xmlrpc.client
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from bridges.faults import FROM_DBUS, OURS, Kind
from dbus_side.bus import Bus
from dbus_side.errors import BusError, BusLost, BusRefused, BusTimedOut
from xenstore_rpc.connection import Store, Transaction

PATIENCE: Final = 90.0
PAUSE: Final = 0.01
MEMORY: Final = ("org.xen.xcp.squeezed", "/org/xen/xcp/squeezed/Memory", "org.xen.xcp.squeezed.Memory1")
XENOPS: Final = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/Xenops", "org.xen.xcp.xenopsd.Xenops1")
VM: Final = ("org.xen.xcp.xenopsd", "/org/xen/xcp/xenopsd/VM", "org.xen.xcp.xenopsd.VM1")
# What says that nothing was executed.
NOT_EXECUTED: Final = frozenset({Kind.UNAVAILABLE, Kind.BUSY, Kind.TIMED_OUT, Kind.RETIRED})
WRITES: Final = frozenset({"reserve_memory", "login", "VM.start"})


class Outcome(StrEnum):
    """What became of a call, as its caller saw it."""

    ANSWERED = "answered"  # by the service, be it with an error of its own
    REFUSED = "refused"  # told that it was not executed
    IN_DOUBT = "in doubt"
    CUT = "cut"  # the connection ended without an answer
    LEFT = "left"  # the caller went away with the call made
    HALF = "half"  # the caller went away in the middle of the call
    UNSENT = "unsent"  # nobody was there to take it
    HUNG = "hung"
    WRONG = "wrong"  # an answer that nobody may give


class Ended(Exception):
    """A call is over; the outcome is not an answer."""

    def __init__(self, outcome: Outcome, text: str = "") -> None:
        super().__init__(text)
        self.outcome = outcome


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is over. Times are those of time.monotonic."""

    door: str
    service: str
    function: str
    token: str
    begun: float
    ended: float
    outcome: Outcome
    text: str

    @property
    def is_write(self) -> bool:
        return self.function in WRITES


def judge(text: str) -> str:
    """The service's own answer, a failure, as it is. Raises Ended when it is a fault of the bridge."""
    name = text.partition(":")[0]
    if name in NOT_EXECUTED:
        raise Ended(Outcome.REFUSED, text)
    if name == Kind.IN_DOUBT:
        raise Ended(Outcome.IN_DOUBT, text)
    if name in OURS:
        raise Ended(Outcome.WRONG, text)
    return text


class Caller:
    """Somebody who calls one service at one door until told to stop; `place` is the socket's path or address."""

    door = ""

    def __init__(self, name: str, service: str, place: str, calls: list[Call], rng: random.Random) -> None:
        self.name = name
        self.service = service
        self.place = place
        self.rng = rng
        self._calls = calls

    def functions(self) -> tuple[str, ...]:
        """What it calls, one after the other, with one token: a login drops what the token reserved."""
        if self.service == "xenopsd":
            return self.rng.choice((("query",), ("VM.start",)))
        return self.rng.choice((("reserve_memory", "login"), ("reserve_memory", "login"), ("get_diagnostics",)))

    async def run(self, stop: asyncio.Event) -> None:
        """Calls until `stop`, each call once."""
        number = 0
        try:
            while not stop.is_set():
                number += 1
                for function in self.functions():
                    call = await self._timed(function, f"{self.name}-{number}")
                    self._calls.append(call)
                    await asyncio.sleep(PAUSE if call.outcome is not Outcome.UNSENT else 5 * PAUSE)
        finally:
            await self.close()

    async def _timed(self, function: str, token: str) -> Call:
        begun, outcome, text = time.monotonic(), Outcome.ANSWERED, ""
        try:
            async with asyncio.timeout(PATIENCE):
                text = await self.call(function, token)
        except Ended as ended:
            outcome, text = ended.outcome, str(ended)
        except TimeoutError:
            outcome = Outcome.HUNG
        return Call(self.door, self.service, function, token, begun, time.monotonic(), outcome, text)

    async def call(self, function: str, token: str) -> str:
        """One call; what the service said if that was an error of its own. Raises Ended."""
        raise NotImplementedError

    async def close(self) -> None:
        """Lets go of what outlives a call."""

    def leaves(self) -> Outcome | None:
        """Whether the caller cuts this call off, and when."""
        return self.rng.choices((None, Outcome.LEFT, Outcome.HALF), (94, 4, 2))[0]


async def exchange(place: str, sent: bytes, leaves: Outcome | None) -> bytes:
    """What comes back at a Unix socket up to the end of the connection. Raises Ended."""
    try:
        reader, writer = await asyncio.open_unix_connection(place)
    except OSError as error:
        raise Ended(Outcome.UNSENT, str(error)) from None
    try:
        writer.write(sent if leaves is not Outcome.HALF else sent[: len(sent) // 2])
        await writer.drain()
        if leaves is not None:
            raise Ended(leaves)
        reply = await reader.read()
    except ConnectionError as error:
        raise Ended(Outcome.CUT, str(error)) from None
    finally:
        writer.close()
    if not reply:
        raise Ended(Outcome.CUT, "the connection was closed without a byte")
    return reply


class HttpCaller(Caller):
    """XML-RPC, a connection a call."""

    door = "http"

    async def call(self, function: str, token: str) -> str:
        """As legacy clients call."""
        body = xmlrpc.client.dumps(self._parameters(function, token), function, allow_none=True).encode()
        head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body)
        reply = await exchange(self.place, head + body, self.leaves())
        try:
            (envelope,), _ = xmlrpc.client.loads(reply.partition(b"\r\n\r\n")[2])
            assert isinstance(envelope, dict)
        except Exception as error:  # an answer cut short
            raise Ended(Outcome.CUT, f"{error!r}: {reply[:200]!r}") from None
        return "" if envelope["Status"] == "Success" else _judge_rpclib(envelope["ErrorDescription"])

    def _parameters(self, function: str, token: str) -> tuple[Any, ...]:
        if self.service == "xenopsd":
            more = {"id": "nobody", "paused": False} if function == "VM.start" else {"unit": None}
            return ({"debug_info": token, **more},)
        return {"reserve_memory": ("d", token, "1"), "login": ("d", token)}.get(function, (token,))


class FramedCaller(Caller):
    """JSON in frames, a connection a call."""

    door = "framed"

    async def call(self, function: str, token: str) -> str:
        """As legacy clients call."""
        params = {"reserve_memory": ["d", token, 1], "login": ["d", token]}.get(function, [token])
        body = json.dumps({"method": function, "params": params, "id": 1}).encode()
        reply = await exchange(self.place, b"%016d%s" % (len(body), body), self.leaves())
        if len(reply) < 16 or int(reply[:16]) != len(reply) - 16:
            raise Ended(Outcome.CUT, f"{reply[:200]!r}")
        error = json.loads(reply[16:])["error"]
        return "" if error is None else _judge_rpclib(error)


def _judge_rpclib(description: object) -> str:
    match description:
        case ["Internal_error", str(text)]:
            return judge(text)
        case _:
            return str(description)


class BusCaller(Caller):
    """A caller on the bus, connected for as long as the bus lives or until it leaves with a call in flight."""

    door = "bus"
    _bus: Bus | None = None

    async def call(self, function: str, token: str) -> str:
        """As any program on the bus calls."""
        if self._bus is None or self._bus.closed.is_set():
            await self.close()
            try:
                self._bus = await Bus.connect(self.place)
            except (BusError, OSError) as error:
                raise Ended(Outcome.UNSENT, str(error)) from None
        asked = asyncio.create_task(self._ask(self._bus, function, token), name=token)
        if self.leaves() is not None:
            await asyncio.sleep(0)
            await self.close()
            await asyncio.wait([asked])
            asked.exception()
            raise Ended(Outcome.LEFT)
        try:
            await asked
        except BusRefused as refusal:
            return self._judge(refusal)
        except BusLost as lost:
            raise Ended(Outcome.CUT if lost.sent else Outcome.UNSENT, str(lost)) from None
        except BusTimedOut as error:
            raise Ended(Outcome.HUNG, str(error)) from None
        return ""

    async def _ask(self, bus: Bus, function: str, token: str) -> None:
        target, member, signature, body = {
            "reserve_memory": (MEMORY, "ReserveMemory", "ssx", ("d", token, 1)),
            "login": (MEMORY, "Login", "ss", ("d", token)),
            "get_diagnostics": (MEMORY, "GetDiagnostics", "s", (token,)),
            "query": (XENOPS, "Query", "s", (token,)),
            "VM.start": (VM, "Start", "ssb", (token, "nobody", False)),
        }[function]
        await bus.call(*target, member, signature, body, timeout=PATIENCE)

    @staticmethod
    def _judge(refusal: BusRefused) -> str:
        if refusal.name.startswith("org.xen.xcp.Error."):
            return judge(f"{refusal.name.rpartition('.')[2]}: {refusal}")
        kind = FROM_DBUS.get(refusal.name)
        return str(refusal) if kind is None else judge(f"{kind}: {refusal}")

    async def close(self) -> None:
        bus, self._bus = self._bus, None
        if bus is not None:
            await bus.close()


class TreeCaller(Caller):
    """A caller at the tree in the store. A response must come, whoever dies meanwhile: requests survive the bridge.

    As legacy clients it looks first whether the registered process lives; now and then it does not, as others do not.
    """

    door = "xenstore"
    _store: Store | None = None

    def functions(self) -> tuple[str, ...]:
        return self.rng.choice((("reserve_memory", "login"), ("reserve_memory", "login"), ("echo",)))

    async def call(self, function: str, token: str) -> str:
        """The order of operations of the convention; who leaves takes nothing away."""
        if self._store is None:
            self._store = Store(self.place)
            await self._store.connect()
        store = self._store
        if self.rng.random() > 0.2 and not await self._is_served(store):
            raise Ended(Outcome.UNSENT, "nobody is registered")
        name = function.replace("_", "-")
        # Nobody else has this request's name, whatever function it calls.
        request, response = (f"/{self.service}/rpc/{part}/{name}/{name}-{token}" for part in ("request", "response"))
        arguments = {"login": {"service_name": token}, "reserve_memory": {"session_id": token, "kib": "1"}}

        async def body(tx: Transaction) -> None:
            await tx.mkdir(request)
            for key, value in arguments.get(function, {"session_id": token}).items():
                await tx.write(f"{request}/{key}", value.encode())

        await store.transact(body)
        if self.leaves() is not None:
            raise Ended(Outcome.LEFT)
        watch = await store.watch(response)
        try:
            while name_of(response) not in await store.directory_or_empty(parent_of(response)):
                await watch.next()
        finally:
            await watch.cancel()
        found = {key: await store.read(f"{response}/{key}") for key in await store.directory(response)}
        await store.rm(request)
        await store.rm(response)
        return judge(found["description"].decode()) if "code" in found else ""

    async def _is_served(self, store: Store) -> bool:
        pid = (await store.read(f"/{self.service}/pid")).decode()
        return await asyncio.to_thread(is_running, int(pid))

    async def close(self) -> None:
        if self._store is not None:
            await self._store.close()


def is_running(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123 - one call, often made
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def name_of(path: str) -> str:
    return path.rpartition("/")[2]


def parent_of(path: str) -> str:
    return path.rpartition("/")[0]
