"""The Store when things go wrong: lost connections, full buffers, strange peers; and on a character device."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import tempfile
import tty
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import pytest

from tests.fixtures_xenstored import StoreProcess
from xenstore_rpc.connection import WATCH_QUEUE, Store, Transaction
from xenstore_rpc.errors import InvalidPath, StoreLost, StoreRefused, TransactionConflict
from xenstore_rpc.packets import Op, PacketReader, encode

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ConnectedTo = Callable[[Handler], AbstractAsyncContextManager[Store]]


async def test_lost_store_heals(store_process: StoreProcess, store: Store) -> None:
    """Killed and started again, the store is reconnected to and watches fire again, once for the loss and once set."""
    watch = await store.watch("/w")
    assert await watch.next() == "/w"
    await store_process.kill()
    assert await watch.next() == "/w"
    assert not store.is_connected
    with pytest.raises(StoreLost) as caught:
        await store.read("/w")
    assert caught.value.sent is False
    await store_process.start()
    await store.wait_connected(20)
    assert await watch.next() == "/w"
    await store.write("/w/new", b"v")
    assert await watch.next() == "/w/new"


async def test_transaction_dies_with_its_connection(store_process: StoreProcess, store: Store) -> None:
    """After a reconnection the numbers start again: an old transaction must not act inside a new one."""
    watch = await store.watch("/w")
    await watch.next()
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        async with store.transaction() as tx:
            entered.set()
            await go_on.wait()
            await tx.write("/old", b"v")

    task = asyncio.create_task(work())
    await entered.wait()
    await store_process.kill()
    await watch.next()
    await store_process.start()
    await store.wait_connected(20)
    async with store.transaction() as fresh:
        go_on.set()
        with pytest.raises(StoreLost) as caught:
            await task
        assert caught.value.sent is False
        await fresh.write("/new", b"v")
    assert await store.directory_or_empty("/old") == []
    assert await store.read("/new") == b"v"


async def test_more_than_the_socket_holds(store: Store) -> None:
    """Twenty megabytes of writes asked for in one loop turn all arrive."""
    value = bytes(4000)
    writes = [store.submit(Op.WRITE, b"/n%d\0" % number + value) for number in range(5000)]
    assert set(await asyncio.gather(*writes)) == {b"OK\0"}


async def test_operation_in_flight_may_have_been_executed(connected_to: ConnectedTo) -> None:
    """A connection that ends before the reply leaves the outcome open, and says so."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)

    async with connected_to(handle) as store:
        with pytest.raises(StoreLost) as caught:
            await store.write("/a", b"v")
        assert caught.value.sent is True


@pytest.mark.parametrize("answer", [encode(Op.READ, 77, 0, b""), b"\xff" * 16], ids=["unasked reply", "garbage"])
async def test_strange_bytes_end_the_connection_not_the_store(connected_to: ConnectedTo, answer: bytes) -> None:
    """What is no reply of ours fails the operations in flight; the next connection is a new chance."""
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        packet = PacketReader().feed(await reader.read(100))[0]
        writer.write(answer if connections == 1 else encode(Op.READ, packet.request_id, 0, b"good"))
        await reader.read()

    async with connected_to(handle) as store:
        with pytest.raises(StoreLost, match="operation"):
            await store.read("/a")
        await store.wait_connected(20)
        assert await store.read("/a") == b"good"


async def test_cancelled_operation_leaves_the_stream_in_order(store: Store) -> None:
    """The reply to an operation that nobody awaits any more is dropped, the next one gets its own."""
    await store.write("/a", b"v")
    abandoned = asyncio.create_task(store.read("/none"))
    await asyncio.sleep(0)
    abandoned.cancel()
    assert await store.read("/a") == b"v"
    with pytest.raises(asyncio.CancelledError):
        await abandoned


async def test_transaction_cancelled_at_its_start_is_given_up(store: Store) -> None:
    """No transaction stays open on the store when its task is cancelled before it knows the number."""

    async def work() -> None:
        async with store.transaction():
            pytest.fail("not reached")

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await store.directory("/")
    # The store numbers transactions of a connection from 1 and the abandoned one was ended right behind its start.
    with pytest.raises(StoreRefused, match=r"ENOENT|EIO"):
        await Transaction(store, store._link, 1).read("/")  # type: ignore[arg-type]


async def test_conflict_after_all_attempts(store: Store) -> None:
    """transact() gives up after the attempts it was given."""
    await store.write("/c", b"")
    runs = 0

    async def body(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.read("/c")
        await store.write("/c", b"%d" % runs)
        await tx.write("/d", b"")

    with pytest.raises(TransactionConflict):
        await store.transact(body, attempts=3)
    assert runs == 3


async def test_no_store_at_all() -> None:
    """connect() says what was not reached and within which time; nothing keeps running."""
    store = Store("/tmp/no-such-xenstore/socket")
    with pytest.raises(StoreLost, match=r"no-such-xenstore/socket within 0\.2 s: No such file"):
        await store.connect(timeout=0.2)
    assert not store.is_connected
    with pytest.raises(StoreLost, match="not connected"):
        await store.watch("/a")


@pytest.mark.parametrize("steady_after", [2, None])
async def test_directory_that_changes_while_it_is_listed(connected_to: ConnectedTo, steady_after: int | None) -> None:
    """Parts of different generations are never put together; a directory that never rests is refused in the end."""
    lists = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal lists
        packets = PacketReader()
        while data := await reader.read(100):
            for packet in packets.feed(data):
                offset = packet.payload.split(b"\0")[1]
                if packet.op == Op.DIRECTORY:
                    writer.write(encode(Op.ERROR, packet.request_id, 0, b"E2BIG\0"))
                    continue
                lists += offset == b"0"
                resting = steady_after is not None and lists > steady_after
                generation = b"9" if resting else b"%d" % (2 * lists + (offset != b"0"))
                names = b"a\0" if offset == b"0" else b"b\0\0"
                writer.write(encode(Op.DIRECTORY_PART, packet.request_id, 0, generation + b"\0" + names))

    async with connected_to(handle) as store:
        if steady_after is None:
            with pytest.raises(StoreRefused, match="EBUSY"):
                await store.directory("/d")
        else:
            assert await store.directory("/d") == ["a", "b"]
            assert lists == 3


async def test_full_listener_is_waited_for() -> None:
    """A socket whose queue is full is no connection yet; once there is room, the connection is made and works."""
    directory = tempfile.mkdtemp(prefix="xs", dir="/tmp")
    path = f"{directory}/socket"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(0)
    fillers = []
    with suppress(BlockingIOError):
        while True:
            fillers.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            fillers[-1].connect(path)
    store = Store(path)
    with pytest.raises(StoreLost, match="no connection"):
        await store.connect(timeout=0.1)
    connecting = asyncio.create_task(store.connect(timeout=20))
    await asyncio.sleep(0)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for packet in PacketReader().feed(await reader.read(100)):
            writer.write(encode(Op.READ, packet.request_id, 0, b"good"))
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_unix_server(handle, sock=listener)
    await connecting
    assert await store.read("/a") == b"good"
    await store.close()
    for filler in fillers:
        filler.close()
    server.close()
    await server.wait_closed()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    await asyncio.gather(*others)
    shutil.rmtree(directory)


async def test_close_ends_the_watches(store_server: str) -> None:
    """A reader of a watch learns that the store was closed."""
    store = Store(store_server)
    await store.connect()
    watch = await store.watch("/a")
    await watch.next()
    waiting = asyncio.create_task(watch.next())
    await asyncio.sleep(0)
    await store.close()
    with pytest.raises(StoreLost, match="closed"):
        await waiting


async def test_full_watch_becomes_one_event(store: Store) -> None:
    """A reader that falls behind is told to look at the whole path once; equal paths are one event."""
    watch = await store.watch("/w")
    await watch.next()
    for _ in range(3):
        await store.write("/w/same", b"")
    assert await watch.next() == "/w/same"
    await asyncio.gather(*(store.write(f"/w/n{number}", b"") for number in range(WATCH_QUEUE + 1)))
    await store.directory("/w")
    assert await watch.next() == "/w"
    await watch.cancel()
    await watch.cancel()


async def test_refused_watch_is_not_kept(store: Store) -> None:
    """A path that cannot be watched leaves nothing behind that a reconnection would set again."""
    with pytest.raises(InvalidPath):
        await store.watch("bad path")
    assert store._watches == {}


async def test_character_device(store_server: str) -> None:
    """A character device (here a terminal in raw mode, linked to the socket) works as the socket does."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    reader, writer = await asyncio.open_unix_connection(store_server)
    loop = asyncio.get_running_loop()
    loop.add_reader(master, lambda: writer.write(os.read(master, 4096)))

    async def back() -> None:
        while data := await reader.read(512):
            os.write(master, data)

    pump = asyncio.create_task(back())
    store = Store(os.ttyname(slave))
    try:
        await store.connect()
        watch = await store.watch("/dev")
        assert await watch.next() == "/dev"
        await asyncio.gather(*(store.write(f"/dev/n{number}", b"%d" % number) for number in range(20)))
        assert len(await store.directory("/dev")) == 20
        async with store.transaction() as tx:
            await tx.rm("/dev")
        with pytest.raises(StoreRefused, match="ENOENT"):
            await store.read("/dev/n1")
    finally:
        await store.close()
        loop.remove_reader(master)
        pump.cancel()
        with pytest.raises(asyncio.CancelledError):
            await pump
        writer.close()
        await writer.wait_closed()
        os.close(master)
        os.close(slave)


async def test_a_snapshot_reads_and_leaves_nothing(store_server: str) -> None:
    """What is read in a snapshot is there, and the transaction behind it is given up."""
    store = Store(store_server)
    await store.connect()
    try:
        await store.write("/snapshot/a", b"1")
        async with store.snapshot() as tx:
            assert await store.directory("/snapshot", tx) == ["a"]
            await tx.write("/snapshot/b", b"2")
        assert await store.directory("/snapshot") == ["a"]
    finally:
        await store.close()


async def test_a_cancellation_during_close_is_not_swallowed(tmp_path: Path) -> None:
    """A daemon that is told to end while its store cannot be reached must end, not try again."""
    store = Store(str(tmp_path / "nobody"))
    connecting = asyncio.create_task(store.connect(timeout=0), name="connect")
    while store._keeper is None or not store._keeper.cancelling():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0)
    connecting.cancel()
    await asyncio.wait([connecting])
    assert connecting.cancelled()
