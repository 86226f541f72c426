"""Watching others' calls on real stores: each is seen once, and none is called complete that was not read whole."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest

from tests.fixtures_xenstored import StoreProcess
from xenstore_rpc import observer as module
from xenstore_rpc.connection import Store, Transaction
from xenstore_rpc.errors import StoreRefused
from xenstore_rpc.observer import Completeness, Exchange, Observer
from xenstore_rpc.packets import Op, PacketReader, encode, path_payload
from xenstore_rpc.records import Request, Response, error_response
from xenstore_rpc.rpc import Caller, Server

ROOT = "/squeezed/rpc"
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
READING = {Op.DIRECTORY, Op.DIRECTORY_PART, Op.READ, Op.TRANSACTION_START, Op.TRANSACTION_END}

ARGUMENTS = [
    pytest.param((), id="none"),
    pytest.param((("a", b""), ("b", b"\0\xff\n"), ("c", "é".encode())), id="any bytes"),
    pytest.param(tuple((f"argument-{number:030d}", b"v" * 3000) for number in range(150)), id="over 4096 bytes"),
]


class ReadingStore(Store):
    """A Store that notes what it is asked to do."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.asked: list[tuple[Op, bytes]] = []

    def submit(self, op: Op, payload: bytes, tx: Transaction | None = None) -> asyncio.Future[bytes]:
        self.asked.append((op, payload))
        return super().submit(op, payload, tx)


class Watching:
    """An observer at work, and what it has told."""

    def __init__(self, store: ReadingStore, **options: float) -> None:
        self.store = store
        self.told: list[Exchange] = []
        self.observer = Observer(store, "squeezed", self.told.append, **options)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Waits for a condition, twenty seconds at most."""
        async with asyncio.timeout(20):
            while not holds():  # noqa: ASYNC110 - it has no event for every one of these
                await asyncio.sleep(0.002)

    async def until_told(self, count: int) -> None:
        await self.until(lambda: len(self.told) >= count and self.observer.open == 0)

    async def until_read(self) -> None:
        """Waits until the request of an open exchange has been read."""
        await self.until(lambda: any(found.request for found in self.observer._open.values()))

    def kinds(self) -> list[Completeness]:
        return [exchange.completeness for exchange in self.told]


@asynccontextmanager
async def observing(address: str, **options: float) -> AsyncIterator[Watching]:
    """An observer with a connection of its own; at the end nothing but reads was asked of the store."""
    store = ReadingStore(address)
    await store.connect()
    watching = Watching(store, **options)
    task = asyncio.create_task(watching.observer.run())
    try:
        await watching.until(lambda: watching.observer._surveyed or task.done())
        yield watching
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert watching.observer.open == 0
        assert {op for op, _ in store.asked} <= READING | {Op.UNWATCH}
        assert {payload for op, payload in store.asked if op is Op.TRANSACTION_END} <= {b"F\0"}
    finally:
        task.cancel()
        await store.close()


@asynccontextmanager
async def serving(store: Store, **options: int) -> AsyncIterator[None]:
    """A squeezed that answers echo with its arguments, and all else with an error."""

    async def answer(request: Request) -> Response:
        if request.function != "echo":
            return error_response("1", request.function)
        return Response(request.arguments)

    server = Server(store, "squeezed", answer, pid=os.getpid(), **options)
    await server.register()
    task = asyncio.create_task(server.run())
    try:
        yield
    finally:
        await server.stop()
        await task


def at_once(address: str, *operations: tuple[Op, str]) -> None:
    """Has the store do all of it while our own loop, and so the observer, stands still."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        connection.connect(address)
        reader = PacketReader()
        for number, (op, path) in enumerate(operations, 1):
            connection.sendall(encode(op, number, 0, path_payload(path)))
            packets = []
            while not packets:
                packets = reader.feed(connection.recv(4096))
            assert [packet.op for packet in packets] == [op]


async def everything(store: Store, path: str = "/squeezed") -> dict[str, bytes]:
    """All nodes below a path with their values."""
    found = {path: await store.read(path)}
    for name in await store.directory(path):
        found |= await everything(store, f"{path}/{name}")
    return found


@pytest.mark.parametrize("arguments", ARGUMENTS)
async def test_a_call_is_told_whole_once(
    store: Store, store_server: str, arguments: tuple[tuple[str, bytes], ...]
) -> None:
    """Arguments and results are those that crossed, none at all included; a removal does not count as another call."""
    async with observing(store_server) as watching:
        # A slow caller: it collects its answer when we have read it.
        where = f"{ROOT}/request/echo/id-1"
        async with store.transaction() as tx:
            await tx.mkdir(where)
            for name, value in arguments:
                await tx.write(f"{where}/{name}", value)
        async with serving(store):
            await watching.until_told(1)
        await store.rm(where)
        await store.rm(f"{ROOT}/response/echo/id-1")
        async with serving(store):
            await Caller(store, "squeezed").call("echo", (), timeout=20, request_id="id-2")
        await watching.until_told(2)
        assert (watching.observer.seen, watching.observer.lost, watching.observer.gaps) == (2, 0, 0)
    told = watching.told[0]
    assert told.request is not None
    assert told.response is not None
    assert (told.function, told.request_id, told.completeness) == ("echo", "id-1", Completeness.COMPLETE)
    assert sorted(told.request.arguments) == sorted(told.response.results) == sorted(arguments)


async def test_an_error_is_a_response(store: Store, store_server: str) -> None:
    """An unknown function's exchange is told with its error."""
    async with observing(store_server) as watching, serving(store):
        await Caller(store, "squeezed").call("reopen-logs", (), timeout=20, request_id="id-1")
        await watching.until_told(1)
    assert [(told.function, told.request_id) for told in watching.told] == [("reopen-logs", "id-1")]
    for response in (told.response for told in watching.told if told.response is not None):
        assert (response.code, response.description) == ("1", "reopen-logs")


@pytest.mark.parametrize("at_a_time", [1, 8])
async def test_many_tight_calls(store: Store, store_server: str, at_a_time: int) -> None:
    """Callers without a pause: each call is seen once, and what is called read is what was sent."""
    callers = Store(store_server)
    await callers.connect()
    caller = Caller(callers, "squeezed")

    def arguments(number: int) -> tuple[tuple[str, bytes], ...]:
        return tuple((f"a{place}", b"%d" % number) for place in range(number % 4))

    async def call(first: int) -> None:
        for number in range(first, 320, at_a_time):
            await caller.call("echo", arguments(number), timeout=40, request_id=f"id-{number}")

    async with observing(store_server) as watching, serving(store):
        await asyncio.gather(*(call(first) for first in range(at_a_time)))
        await watching.until_told(320)
    assert sorted(told.request_id for told in watching.told) == sorted(f"id-{number}" for number in range(320))
    assert (watching.observer.seen, watching.observer.lost, watching.observer.gaps) == (320, 0, 0)
    for told in watching.told:
        sent = list(arguments(int(told.request_id[3:])))
        assert told.request is None or sorted(told.request.arguments) == sent
        assert told.response is None or sorted(told.response.results) == sent
    # Most of them; under a heavy load, and without oxenstored's snapshots, fewer.
    assert watching.kinds().count(Completeness.COMPLETE) >= 32
    assert [path for path in await everything(callers) if path.count("/") > 4] == []
    await callers.close()


async def test_what_came_and_went_unread_is_told_as_such(store: Store, store_server: str) -> None:
    """Only its function and id are known of a request that was gone before we looked; and it is one, not two."""
    async with observing(store_server) as watching:
        where = f"{ROOT}/request/echo/id-1"
        at_once(store_server, (Op.MKDIR, where), (Op.RM, where))
        await watching.until_told(1)
    assert watching.told == [Exchange("echo", "id-1", None, None)]
    assert watching.kinds() == [Completeness.IDENTITY]


async def test_a_response_whose_request_has_gone_unread_has_no_arguments(store: Store, store_server: str) -> None:
    """A request that was removed before we looked, with its response in place: the empty response was read."""
    async with observing(store_server) as watching:
        where, answer = f"{ROOT}/request/echo/id-1", f"{ROOT}/response/echo/id-1"
        at_once(store_server, (Op.MKDIR, where), (Op.MKDIR, answer), (Op.RM, where))
        await watching.until_told(1)
        at_once(store_server, (Op.RM, answer))
        await store.mkdir(f"{ROOT}/request/echo/id-2")
        await watching.until_read()
    assert watching.told[0] == Exchange("echo", "id-1", None, Response(()))
    assert watching.kinds() == [Completeness.NO_ARGUMENTS, Completeness.NO_RESPONSE]


async def test_an_abandoned_request_is_told_once(store: Store, store_server: str) -> None:
    """Nobody answers it in time: told with its arguments; an answer that comes after all is no second exchange."""
    where = f"{ROOT}/request/balance-memory/id-1"
    async with observing(store_server, patience=0.2) as watching:
        await store.write(f"{where}/a", b"1")
        await watching.until_told(1)
        await store.mkdir(f"{ROOT}/response/balance-memory/id-1")
        await store.rm(where)
        await store.rm(f"{ROOT}/response/balance-memory/id-1")
        await store.mkdir(f"{ROOT}/request/echo/id-2")
        await watching.until_told(2)
    assert watching.told[0] == Exchange(
        "balance-memory", "id-1", Request("balance-memory", "id-1", (("a", b"1"),)), None
    )
    assert [told.request_id for told in watching.told] == ["id-1", "id-2"]


async def test_what_stands_there_at_the_start(store: Store, store_server: str) -> None:
    """A request that waits is seen; a response that is left over is none, nor is its removal."""
    await store.write(f"{ROOT}/request/echo/id-1/a", b"1")
    await store.write(f"{ROOT}/response/echo/id-0/a", b"0")
    async with observing(store_server) as watching:
        before = await everything(store)
        await store.rm(f"{ROOT}/response/echo/id-0")
        await store.write(f"{ROOT}/response/echo/id-1/a", b"1")
        await watching.until_told(1)
        assert {path: value for path, value in before.items() if "id-0" not in path}.items() <= (
            await everything(store)
        ).items()
    assert watching.told == [
        Exchange("echo", "id-1", Request("echo", "id-1", (("a", b"1"),)), Response((("a", b"1"),)))
    ]
    assert (watching.observer.seen, watching.observer.gaps) == (1, 0)


async def test_all_of_the_tree_is_removed(store: Store, store_server: str) -> None:
    """Somebody clears the tree: what was open is over, and what comes after is seen."""
    async with observing(store_server) as watching:
        await store.mkdir(f"{ROOT}/request/echo/id-1")
        await watching.until(lambda: watching.observer.open == 1)
        await store.rm("/squeezed")
        await watching.until_told(1)
        async with serving(store):
            await Caller(store, "squeezed").call("echo", (), timeout=20, request_id="id-2")
        await watching.until_told(2)
    assert [told.request_id for told in watching.told] == ["id-1", "id-2"]


async def test_more_at_once_than_are_followed(store: Store, store_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest are given up and counted; the others are told."""
    monkeypatch.setattr(module, "OPEN_LIMIT", 4)
    for number in range(10):
        await store.mkdir(f"{ROOT}/request/echo/id-{number}")
    async with observing(store_server) as watching:
        await watching.until(lambda: watching.observer.seen == 10)
        assert (watching.observer.open, watching.observer.lost) == (4, 6)
        for number in range(10):
            await store.rm(f"{ROOT}/request/echo/id-{number}")
        await watching.until_told(4)
    assert watching.observer.seen == len(watching.told) + watching.observer.lost == 10


async def test_a_store_that_is_lost(store_process: StoreProcess) -> None:
    """What was open is told as far as it was read; once it is back calls are seen again, and the gap is known."""
    store = Store(store_process.socket)
    await store.connect()
    async with observing(store_process.socket) as watching:
        await store.write(f"{ROOT}/request/echo/id-1/a", b"1")
        await watching.until_read()
        await store_process.kill()
        await watching.until_told(1)
        await store_process.start()
        await store.wait_connected(20)
        await watching.until(lambda: watching.observer.gaps > 0)
        called = 1
        async with serving(store), asyncio.timeout(20):
            while len(watching.told) < 2:  # the first may be over before the tree is watched again
                called += 1
                await Caller(store, "squeezed").call("echo", (), timeout=20, request_id=f"id-{called}")
        await watching.until_told(2)
    await store.close()
    assert watching.told[0] == Exchange("echo", "id-1", Request("echo", "id-1", (("a", b"1"),)), None)
    assert watching.told[-1].request_id == f"id-{called}"


async def test_stopped_it_tells_what_is_open(store: Store, store_server: str) -> None:
    """Nothing that was seen is left untold, and the requests stay where they are."""
    async with observing(store_server) as watching:
        await store.mkdir(f"{ROOT}/request/echo/id-1")
        await watching.until_read()
        assert watching.told == []
    assert watching.told == [Exchange("echo", "id-1", Request("echo", "id-1", ()), None)]
    assert await store.directory(f"{ROOT}/request/echo") == ["id-1"]


async def test_a_closed_store_ends_it(store_server: str) -> None:
    """The Store that it was given is closed: it returns."""
    store = Store(store_server)
    await store.connect()
    task = asyncio.create_task(Observer(store, "squeezed", print).run())
    await asyncio.sleep(0)
    await store.read("/")
    await store.close()
    async with asyncio.timeout(5):
        await task


async def test_a_store_that_does_not_let_us_watch(
    connected_to: Callable[[Handler], AbstractAsyncContextManager[Store]],
) -> None:
    """StoreRefused comes out as it is."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packets = PacketReader()
        while data := await reader.read(4096):
            for packet in packets.feed(data):
                writer.write(encode(Op.ERROR, packet.request_id, packet.transaction, b"EACCES\0"))

    async with connected_to(refuse) as store:
        with pytest.raises(StoreRefused):
            await Observer(store, "squeezed", print).run()
