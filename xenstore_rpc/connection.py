"""The connection to a xenstore: asyncio, pipelined, and healing by itself.

Many tasks may have operations in flight at once; they go out in the order they were asked for, those of one loop turn
in one send. When the connection is lost, operations in flight fail with `StoreLost(sent=True)`, new ones with
`StoreLost(sent=False)`, nothing is ever repeated, and the Store reconnects and sets its watches again.

Memory is bounded by the callers: every operation is awaited by somebody, and a watch holds at most `WATCH_QUEUE` paths.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

from xenstore_rpc.errors import StoreLost, StoreRefused, TransactionConflict
from xenstore_rpc.link import Link, open_link
from xenstore_rpc.packets import Op, path_payload, strings, watch_payload, write_payload
from xenstore_rpc.session import WatchEvent

T = TypeVar("T")

BACKOFF_FIRST, BACKOFF_LONGEST = 0.05, 2.0
"""Seconds between attempts to reconnect: doubled from the first to the longest."""

WATCH_QUEUE = 256
"""Distinct paths a watch keeps for its reader; beyond, they become one event for the watched path: look at it all."""

LISTING_ATTEMPTS = 100
"""How often a listing in parts is begun again because the directory changed meanwhile."""

_log = logging.getLogger(__name__)


class Transaction:
    """A transaction that is open on one connection; it dies with that connection."""

    def __init__(self, store: Store, link: Link, number: int) -> None:
        self._store = store
        self.link = link
        self.number = number

    async def read(self, path: str) -> bytes:
        """As Store.read, within the transaction."""
        return await self._store.read(path, self)

    async def write(self, path: str, value: bytes) -> None:
        """As Store.write, within the transaction."""
        await self._store.write(path, value, self)

    async def mkdir(self, path: str) -> None:
        """As Store.mkdir, within the transaction."""
        await self._store.mkdir(path, self)

    async def rm(self, path: str) -> None:
        """As Store.rm, within the transaction."""
        await self._store.rm(path, self)

    async def directory(self, path: str) -> list[str]:
        """As Store.directory, within the transaction."""
        return await self._store.directory(path, self)

    def submit(self, op: Op, payload: bytes) -> asyncio.Future[bytes]:
        """As Store.submit, within the transaction."""
        return self._store.submit(op, payload, self)


class Watch:
    """A watch that survives reconnection; read it with `next()` or `async for`. One reader.

    An event only says "look again at this path": equal paths that wait are one event. It fires once when set, once
    when the connection is lost and once when it is set again, each time for the watched path itself.
    """

    def __init__(self, store: Store, path: str, token: str) -> None:
        self._store = store
        self.path = path
        self.token = token
        self._paths: dict[str, None] = {}
        self._fired = asyncio.Event()
        self._over: StoreLost | None = None

    async def next(self) -> str:
        """The next path that changed, absolute. StoreLost when the Store is closed, or the watch cancelled."""
        while not self._paths:
            if self._over is not None:
                raise self._over
            self._fired.clear()
            await self._fired.wait()
        path = next(iter(self._paths))
        del self._paths[path]
        return path

    def __aiter__(self) -> Watch:
        return self

    async def __anext__(self) -> str:
        return await self.next()

    async def cancel(self) -> None:
        """Takes the watch back. Its request is sent before anything is awaited, so cancellation cannot prevent it."""
        await self._store.unwatch(self)

    def fire(self, path: str) -> None:
        """Queues an event; the Store calls this."""
        if len(self._paths) >= WATCH_QUEUE and path not in self._paths:
            self._paths.clear()
            path = self.path
        self._paths[path] = None
        self._fired.set()

    def end(self, reason: StoreLost) -> None:
        """Lets the reader fail with `reason`; the Store calls this."""
        self._over = reason
        self._paths.clear()
        self._fired.set()


class Store:
    """A xenstore, reached by the path of its Unix socket or of the character device /dev/xen/xenbus."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._link: Link | None = None
        self._connected = asyncio.Event()
        self._watches: dict[tuple[str, str], Watch] = {}
        self._tokens = 0
        self._keeper: asyncio.Task[None] | None = None
        self._trouble = "not tried yet"
        self._commits = asyncio.Lock()

    # ---- life

    async def connect(self, timeout: float = 5.0) -> None:
        """Connects, trying again until `timeout` seconds have passed; StoreLost then. Later losses heal silently."""
        assert self._keeper is None, "connect() is called once"
        self._keeper = asyncio.create_task(self._keep_connected(), name=f"xenstore {self.address}")
        try:
            await self.wait_connected(timeout)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Ends the connection and every watch; operations in flight fail with StoreLost."""
        for watch in self._watches.values():
            watch.end(StoreLost("the connection to xenstore was closed", sent=False))
        self._watches.clear()
        if self._keeper is not None:
            self._keeper.cancel()
            # Not awaited itself: a cancellation of ours, which comes meanwhile, must not be taken for its own.
            await asyncio.wait([self._keeper])
            self._keeper = None

    @property
    def is_connected(self) -> bool:
        """Whether operations can be sent now."""
        return self._link is not None and not self._link.lost.is_set()

    async def wait_connected(self, timeout: float | None = None) -> None:
        """Returns once connected; StoreLost after `timeout` seconds, None waits as long as it takes."""
        try:
            async with asyncio.timeout(timeout):
                # The loss is known to the link one loop turn before the event is cleared.
                while not self.is_connected:
                    self._connected.clear()
                    await self._connected.wait()
        except TimeoutError:
            text = f"no connection to xenstore at {self.address} within {timeout} s: {self._trouble}"
            raise StoreLost(text, sent=False) from None

    async def _keep_connected(self) -> None:
        delay = BACKOFF_FIRST
        while True:
            try:
                link = await open_link(self.address)
            except OSError as error:
                self._note(error.strerror or str(error))
                await asyncio.sleep(delay)
                delay = min(delay * 2, BACKOFF_LONGEST)
                continue
            try:
                self._up(link)
                await link.lost.wait()
            finally:
                self._down(link)
            self._note(link.reason)
            if link.was_answered:
                delay = BACKOFF_FIRST
            await asyncio.sleep(delay)
            delay = min(delay * 2, BACKOFF_LONGEST)

    def _note(self, trouble: str) -> None:
        """Logs what keeps us from the store, once for each time it changes."""
        if trouble != self._trouble:
            _log.warning("xenstore at %s: %s", self.address, trouble)
        self._trouble = trouble

    def _up(self, link: Link) -> None:
        self._link = link
        self._trouble = "no longer connected"
        link.on_event = self._on_event
        for watch in self._watches.values():
            self._set(link, watch).add_done_callback(_log_refusal)
        self._connected.set()

    def _down(self, link: Link) -> None:
        self._link = None
        self._connected.clear()
        link.close("closed by us")
        for watch in self._watches.values():
            watch.fire(watch.path)

    # ---- operations

    async def read(self, path: str, tx: Transaction | None = None) -> bytes:
        """The node's value; StoreRefused("ENOENT") when there is no such node."""
        return await self.submit(Op.READ, path_payload(path), tx)

    async def write(self, path: str, value: bytes, tx: Transaction | None = None) -> None:
        """Sets the node's value; it and its parents are created when missing."""
        await self.submit(Op.WRITE, write_payload(path, value), tx)

    async def mkdir(self, path: str, tx: Transaction | None = None) -> None:
        """Creates the node and its parents; an existing one keeps its value."""
        await self.submit(Op.MKDIR, path_payload(path), tx)

    async def rm(self, path: str, tx: Transaction | None = None) -> None:
        """Removes the node and all below; a missing one is a success."""
        try:
            await self.submit(Op.RM, path_payload(path), tx)
        except StoreRefused as refused:
            if refused.error != "ENOENT":
                raise

    async def directory(self, path: str, tx: Transaction | None = None) -> list[str]:
        """Names of the node's children, in the store's order; asked for in parts when the store says E2BIG."""
        try:
            return strings(await self.submit(Op.DIRECTORY, path_payload(path), tx))
        except StoreRefused as refused:
            if refused.error != "E2BIG":
                raise
        return await self._directory_in_parts(path, tx)

    async def directory_or_empty(self, path: str, tx: Transaction | None = None) -> list[str]:
        """As directory; a missing node has no children."""
        try:
            return await self.directory(path, tx)
        except StoreRefused as refused:
            if refused.error != "ENOENT":
                raise
            return []

    async def get_perms(self, path: str, tx: Transaction | None = None) -> list[str]:
        """Permissions as the wire has them ("n0", "r5"); the first names the owner."""
        return strings(await self.submit(Op.GET_PERMS, path_payload(path), tx))

    async def set_perms(self, path: str, perms: list[str], tx: Transaction | None = None) -> None:
        """Replaces the permissions; form as in get_perms."""
        text = "".join(entry + "\0" for entry in perms).encode("ascii")
        await self.submit(Op.SET_PERMS, path_payload(path) + text, tx)

    def submit(self, op: Op, payload: bytes, tx: Transaction | None = None) -> asyncio.Future[bytes]:
        """Sends one operation and returns at once; the future gives the reply's payload, StoreRefused or StoreLost.

        The way to pipeline: operations reach the store in the order of submit() calls.
        """
        link = self._link
        if link is None:
            raise StoreLost(f"not connected to xenstore at {self.address}", sent=False)
        if tx is None:
            return link.send(op, payload, 0)
        if tx.link is not link:
            raise StoreLost("the connection that this transaction was opened on is lost", sent=False)
        return link.send(op, payload, tx.number)

    async def _directory_in_parts(self, path: str, tx: Transaction | None) -> list[str]:
        where = path_payload(path)
        for _ in range(LISTING_ATTEMPTS):
            collected = b""
            first_generation = b""
            while True:
                part = await self.submit(Op.DIRECTORY_PART, where + b"%d\0" % len(collected), tx)
                generation, _, names = part.partition(b"\0")
                if collected and generation != first_generation:
                    break
                first_generation = generation
                # The end is marked by one empty name after the last.
                if names in {b"", b"\0"} or names.endswith(b"\0\0"):
                    return strings(collected + names[:-1])
                collected += names
        raise StoreRefused("EBUSY", "DIRECTORY_PART", path)

    # ---- transactions

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        """A transaction, committed at the end of the block and given up when the block raises.

        TransactionConflict when it cannot be committed. StoreLost carries sent=False unless the commit was under way.
        """
        tx = await self._begin()
        try:
            yield tx
        except BaseException as error:
            with suppress(StoreLost):
                self.submit(Op.TRANSACTION_END, b"F\0", tx).add_done_callback(_forget)
            if isinstance(error, StoreLost):
                raise StoreLost(str(error), sent=False) from error
            raise
        try:
            await self.submit(Op.TRANSACTION_END, b"T\0", tx)
        except StoreRefused as refused:
            if refused.error == "EAGAIN":
                raise TransactionConflict from refused
            raise

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Transaction]:
        """A transaction for reading that is always given up. On oxenstored all that is read in it is of one moment."""
        tx = await self._begin()
        try:
            yield tx
        finally:
            with suppress(StoreLost):
                self.submit(Op.TRANSACTION_END, b"F\0", tx).add_done_callback(_forget)

    async def transact(self, body: Callable[[Transaction], Awaitable[T]], attempts: int = 1000) -> T:
        """Runs `body` in a transaction, again from the start on conflict; TransactionConflict after `attempts`.

        After a first conflict our own transactions queue up for each other, so they cannot starve one another.
        """
        try:
            async with self.transaction() as tx:
                return await body(tx)
        except TransactionConflict:
            pass
        async with self._commits:
            for _ in range(attempts - 1):
                with suppress(TransactionConflict):
                    async with self.transaction() as tx:
                        return await body(tx)
        raise TransactionConflict

    async def _begin(self) -> Transaction:
        link = self._link
        started = self.submit(Op.TRANSACTION_START, b"\0")
        assert link is not None
        try:
            number = await asyncio.shield(started)
        except asyncio.CancelledError:
            started.add_done_callback(lambda done: self._give_up(link, done))
            raise
        except StoreLost as lost:
            raise StoreLost(str(lost), sent=False) from lost
        return Transaction(self, link, int(number.rstrip(b"\0")))

    def _give_up(self, link: Link, started: asyncio.Future[bytes]) -> None:
        if not started.cancelled() and started.exception() is None and link is self._link:
            link.send(Op.TRANSACTION_END, b"F\0", int(started.result().rstrip(b"\0"))).add_done_callback(_forget)

    # ---- watches

    async def watch(self, path: str, token: str | None = None) -> Watch:
        """Watches `path` and all below. The token, made up when not given, must be new for this path."""
        if token is None:
            self._tokens += 1
            token = f"w{self._tokens}"
        watch = Watch(self, path, token)
        if (path, token) in self._watches:
            raise StoreRefused("EEXIST", "WATCH", path)
        if self._link is None:
            raise StoreLost(f"not connected to xenstore at {self.address}", sent=False)
        registered = self._set(self._link, watch)
        self._watches[path, token] = watch
        try:
            await registered
        except StoreLost:
            self._watches.pop((path, token), None)
            raise
        except BaseException:
            await self.unwatch(watch)
            raise
        return watch

    def _set(self, link: Link, watch: Watch) -> asyncio.Future[bytes]:
        payload = watch_payload(watch.path, watch.token)
        link.session.watch(watch.path, watch.token)
        return link.send(Op.WATCH, payload, 0)

    async def unwatch(self, watch: Watch) -> None:
        """What Watch.cancel does; twice is harmless."""
        if self._watches.pop((watch.path, watch.token), None) is None:
            return
        watch.end(StoreLost(f"the watch on {watch.path} was cancelled", sent=False))
        if self._link is None:
            return
        self._link.session.unwatch(watch.path, watch.token)
        with suppress(StoreLost):
            await self.submit(Op.UNWATCH, watch_payload(watch.path, watch.token))

    def _on_event(self, event: WatchEvent) -> None:
        watch = self._watches.get(event.watch)
        if watch is not None:
            watch.fire(event.path)


def _forget(reply: asyncio.Future[bytes]) -> None:
    """Retrieves the outcome of an operation that nobody awaits."""
    if not reply.cancelled():
        reply.exception()


def _log_refusal(reply: asyncio.Future[bytes]) -> None:
    if not reply.cancelled() and isinstance(error := reply.exception(), StoreRefused):
        _log.error("a watch could not be set again: %s", error)
