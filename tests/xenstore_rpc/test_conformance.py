"""The same operations against Xen's two daemons and the embedded store, by our connection, pyxs and Xen's tools."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
import pyxs

from xenstore_rpc.connection import Store, Transaction
from xenstore_rpc.errors import InvalidPath, StoreRefused, TransactionConflict, ValueTooLong
from xenstore_rpc.packets import Op

VALUES = [
    pytest.param(b"", id="empty"),
    pytest.param(b"text", id="text"),
    pytest.param(b"a\nb\tc", id="control"),
    pytest.param(b"nul\0in\0it\0", id="nul"),
    pytest.param("nötig €".encode(), id="utf8"),
    pytest.param(bytes(range(256)), id="binary"),
    pytest.param(b"v" * (4096 - len("/value") - 1), id="longest"),
]


@pytest.mark.parametrize("value", VALUES)
async def test_value_comes_back_as_written(store: Store, value: bytes) -> None:
    """Any bytes up to the protocol's limit survive a write and a read."""
    await store.write("/value", value)
    assert await store.read("/value") == value


async def test_value_above_the_limit_is_refused_here(store: Store) -> None:
    """One byte too many never reaches the store and names the limit."""
    with pytest.raises(ValueTooLong, match="4089 bytes fit"):
        await store.write("/value", b"v" * 4090)


@pytest.mark.parametrize("path", ["", "/a//b", "/a/", "relative", "/a b", "/é", "/a\0b", "/a.b", "/" + "x" * 4000])
async def test_invalid_path_is_refused_here(store: Store, path: str) -> None:
    """Paths that no store accepts never reach it."""
    with pytest.raises(InvalidPath):
        await store.read(path)


async def test_missing_node_is_enoent(store: Store) -> None:
    """Reading, listing and permissions of a missing node say ENOENT with operation and path."""
    for operation in (store.read, store.directory, store.get_perms):
        with pytest.raises(StoreRefused) as caught:
            await operation("/none/here")
        assert (caught.value.error, caught.value.path) == ("ENOENT", "/none/here")
    assert await store.directory_or_empty("/none/here") == []


async def test_writing_creates_parents(store: Store) -> None:
    """A deep write creates empty parents."""
    await store.write("/a/b/c", b"v")
    assert await store.read("/a/b") == b""
    assert await store.directory("/a/b") == ["c"]


async def test_mkdir_keeps_the_value(store: Store) -> None:
    """MKDIR of an existing node is a success without effect."""
    await store.write("/m", b"v")
    await store.mkdir("/m")
    assert await store.read("/m") == b"v"


async def test_rm_removes_the_subtree_and_forgives(store: Store) -> None:
    """RM takes everything below; missing nodes and missing parents are a success."""
    await store.write("/r/s/t", b"v")
    await store.rm("/r/s")
    assert await store.directory("/r") == []
    await store.rm("/r/s")
    await store.rm("/never/was/here")


async def test_permissions_are_n0_set_and_inherited(store: Store) -> None:
    """Nodes of the host start as n0; a child takes its parent's permissions over."""
    await store.mkdir("/p")
    assert await store.get_perms("/p") == ["n0"]
    await store.set_perms("/p", ["n0", "r1"])
    await store.mkdir("/p/child")
    assert await store.get_perms("/p/child") == ["n0", "r1"]
    with pytest.raises(StoreRefused, match="EINVAL"):
        await store.set_perms("/p", ["x0"])


@pytest.mark.parametrize("count", [0, 1, 127, 128, 2000])
async def test_directory_of_any_size(store: Store, count: int) -> None:
    """Lists above 4096 bytes arrive whole, in one long packet or in parts."""
    names = [f"node-{number:026d}" for number in range(count)]
    await store.mkdir("/big")
    await asyncio.gather(*(store.mkdir(f"/big/{name}") for name in names))
    assert sorted(await store.directory("/big")) == names


async def test_directory_in_parts_within_a_transaction(store: Store) -> None:
    """A long listing inside a transaction shows the transaction's own nodes."""
    names = [f"node-{number:060d}" for number in range(300)]
    await asyncio.gather(*(store.mkdir(f"/big/{name}") for name in names))
    async with store.transaction() as tx:
        await tx.mkdir("/big/mine")
        assert sorted(await tx.directory("/big")) == sorted([*names, "mine"])


async def test_transaction_shows_nothing_before_commit(store: Store) -> None:
    """Changes are seen inside at once and outside after the commit."""
    async with store.transaction() as tx:
        await tx.write("/t/a", b"new")
        assert await tx.read("/t/a") == b"new"
        with pytest.raises(StoreRefused):
            await store.read("/t/a")
    assert await store.read("/t/a") == b"new"


async def test_transaction_is_given_up_on_error(store: Store) -> None:
    """An exception in the block leaves no trace in the store."""

    async def fail() -> None:
        async with store.transaction() as tx:
            await tx.write("/t/b", b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert await store.directory_or_empty("/t") == []


async def test_conflict_surfaces(store: Store) -> None:
    """A transaction that read what somebody else changed cannot commit."""
    await store.write("/c", b"1")

    async def collide() -> None:
        async with store.transaction() as tx:
            await tx.read("/c")
            await store.write("/c", b"2")
            await tx.write("/d", b"1")

    with pytest.raises(TransactionConflict):
        await collide()
    assert "d" not in await store.directory("/")


async def test_transact_counts_right_under_contention(store: Store) -> None:
    """Read-modify-write by many tasks loses no update."""
    await store.write("/counter", b"0")

    async def increment() -> None:
        async def body(tx: Transaction) -> None:
            await tx.write("/counter", b"%d" % (int(await tx.read("/counter")) + 1))

        await store.transact(body)

    await asyncio.gather(*(increment() for _ in range(50)))
    assert await store.read("/counter") == b"50"


async def test_watch_fires_at_once_and_for_everything_below(store: Store) -> None:
    """The first event is the watched path; later ones name what changed, also after a commit."""
    watch = await store.watch("/w")
    assert await watch.next() == "/w"
    await store.write("/w/deep/er", b"v")
    assert await watch.next() == "/w/deep/er"
    async with store.transaction() as tx:
        await tx.write("/w/x", b"v")
        await tx.write("/w/y", b"v")
    assert [await watch.next(), await watch.next()] == ["/w/x", "/w/y"]
    await store.rm("/w")
    assert await watch.next() == "/w"
    await watch.cancel()


async def test_watch_fires_when_a_parent_is_removed(store: Store) -> None:
    """Removing the tree above a watched node fires the watch with its own path."""
    await store.write("/p/q/r", b"v")
    watch = await store.watch("/p/q/r", "X")
    assert await watch.next() == "/p/q/r"
    await store.rm("/p")
    assert await watch.next() == "/p/q/r"


async def test_same_token_on_many_paths(store: Store) -> None:
    """Events find their watch although all carry the token of the RPC convention."""
    watches = [await store.watch(f"/s/{number}", "X") for number in range(5)]
    for watch in watches:
        assert await watch.next() == watch.path
    await store.write("/s/3/inner", b"v")
    assert await watches[3].next() == "/s/3/inner"
    with pytest.raises(StoreRefused, match="EEXIST"):
        await store.watch("/s/3", "X")


async def test_own_events_of_the_store_can_be_watched(store: Store) -> None:
    """The special name @releaseDomain is a watchable path and fires once."""
    watch = await store.watch("@releaseDomain")
    assert await watch.next() == "@releaseDomain"


async def test_domain_path_and_unknown_operation(store: Store) -> None:
    """GET_DOMAIN_PATH answers for any domain, unknown operations are refused with ENOSYS."""
    assert await store.submit(Op.GET_DOMAIN_PATH, b"7\0") == b"/local/domain/7\0"
    with pytest.raises(StoreRefused, match="ENOSYS"):
        await store.submit(Op.WATCH_EVENT, b"\0")


async def test_pipelined_operations_keep_their_order(store: Store) -> None:
    """A thousand writes and reads in flight at once each see the write before them."""
    operations = []
    for number in range(1000):
        operations.append(store.submit(Op.WRITE, b"/n\0%d" % number))
        operations.append(store.submit(Op.READ, b"/n\0"))
    replies = await asyncio.gather(*operations)
    assert replies[1::2] == [b"%d" % number for number in range(1000)]


async def test_pyxs_is_served(store_server: str, store: Store) -> None:
    """The classic Python client reads, writes, lists, commits and watches."""

    def drive() -> tuple[bytes, list[bytes], tuple[bytes, bytes]]:
        with pyxs.Client(unix_socket_path=store_server) as client:
            client.transaction()
            client.write(b"/x/one", b"1")
            assert client.commit()
            monitor = client.monitor()
            monitor.watch(b"/x", b"token")
            event = next(monitor.wait())
            client.mkdir(b"/x/two")
            client.delete(b"/x/one")
            return client.read(b"/x"), client.list(b"/x"), event

    value, names, event = await asyncio.to_thread(drive)
    assert (value, names) == (b"", [b"two"])
    assert tuple(event) == (b"/x", b"token")
    assert await store.directory("/x") == ["two"]


async def test_xen_tools_are_served(store_server: str, store: Store) -> None:
    """xenstore-write, xenstore-read and xenstore-ls of Xen work over the socket."""

    async def run(*command: str) -> str:
        environment = {
            **os.environ,
            "XENSTORED_PATH": store_server,
            "XENSTORED_RUNDIR": str(Path(store_server).parent),
        }
        try:
            process = await asyncio.create_subprocess_exec(
                *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
        except FileNotFoundError:
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
                f"{command[0]}: apt install xenstore-utils"
            )
        output, _ = await asyncio.wait_for(process.communicate(), 20)
        assert process.returncode == 0, output
        return output.decode()

    await run("xenstore-write", "/tool-test/a", "hello", "/tool-test/b", "world")
    assert await run("xenstore-read", "/tool-test/a") == "hello\n"
    assert await run("xenstore-ls", "-s", "/tool-test") == 'a = "hello"\nb = "world"\n'
    assert await store.read("/tool-test/b") == b"world"
