"""Watching the calls between others in a service's tree, without taking part: nothing is ever written.

A call leaves its two records in the store only for as long as it runs, and a quick caller removes them before we have
read them. So each look is a snapshot, begun as soon as something changed: on oxenstored what a snapshot holds can be
read whole although it is removed meanwhile, on Xen's C daemon it can not. What was not read is told as not read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from xenstore_rpc.connection import Store, Transaction, Watch
from xenstore_rpc.errors import InvalidPath, StoreLost, StoreRefused, XenstoreError
from xenstore_rpc.packets import Op, path_payload
from xenstore_rpc.records import Request, Response, Tree

OPEN_LIMIT = 4096
"""Exchanges followed at once; beyond, the oldest is given up and counted as lost."""

TOLD_LIMIT = 8192
"""Exchanges known to have been told, so that their removal is not taken for another one."""

PATIENCE = 1200.0
"""Seconds after which nobody waits for a response any more: callers gave up after 300 s, until 2011 after 1200 s."""

BATCH = 64
"""Exchanges looked at in one snapshot."""

_log = logging.getLogger(__name__)

Key = tuple[str, str]
Nodes = tuple[tuple[str, bytes], ...]


class Completeness(StrEnum):
    """How much of an exchange was read."""

    COMPLETE = "complete"
    NO_ARGUMENTS = "no arguments"  # the response was read, the request had gone before
    NO_RESPONSE = "no response"  # the request was read; the response had gone before, or never came
    IDENTITY = "identity"  # function and id, from the path


@dataclass(frozen=True, slots=True)
class Exchange:
    """One call that was seen. A request or response that is here was read whole; None: it was not read."""

    function: str
    request_id: str
    request: Request | None
    response: Response | None

    @property
    def completeness(self) -> Completeness:
        if self.request is None:
            return Completeness.IDENTITY if self.response is None else Completeness.NO_ARGUMENTS
        return Completeness.NO_RESPONSE if self.response is None else Completeness.COMPLETE


@dataclass(slots=True)
class _Open:
    """What is known of an exchange that is not over; `since` on the loop's clock."""

    since: float
    request: Request | None = None
    response: Response | None = None


class Observer:
    """Tells `on_exchange` once of every request that is seen in /SERVICE/rpc, when it is answered, gone or abandoned.

    `seen` counts the requests that were seen, `lost` those among them that had to be given up untold: there were too
    many at once. `gaps` counts how often events may have been missed (the store was lost, or we were too slow): what
    came and went in a gap is in no count. An id stands for one request: the convention's are UUIDs.
    """

    def __init__(
        self,
        store: Store,
        service: str,
        on_exchange: Callable[[Exchange], None],
        *,
        patience: float = PATIENCE,
        ignores: Callable[[str], bool] = lambda _request_id: False,
    ) -> None:
        """`patience`: seconds without a response after which a request is told as abandoned, checked now and then.

        `ignores` says of a request's id that it is nobody else's, and not looked at.
        """
        self.seen = 0
        self.lost = 0
        self.gaps = 0
        self._store = store
        self._tree = Tree(service)
        self._root = f"/{service}/rpc"
        self._on_exchange = on_exchange
        self._patience = patience
        self._ignores = ignores
        self._open: dict[Key, _Open] = {}
        self._told: dict[Key, None] = {}
        self._changed: dict[Key, None] = {}
        self._unsure = False
        self._surveyed = False
        self._trouble = ""
        self._work_to_do = asyncio.Event()

    @property
    def open(self) -> int:
        """Requests that were seen and are not over."""
        return len(self._open)

    async def run(self) -> None:
        """Observes until cancelled, or until the Store is closed; what is open then is told as far as it was read.

        A lost store is waited for. StoreRefused when the store does not let us watch.
        """
        watch = await self._set_watch()
        try:
            async with asyncio.TaskGroup() as tasks:
                workers = [tasks.create_task(self._look_on_and_on()), tasks.create_task(self._give_up_old())]
                try:
                    await self._follow(watch)
                finally:
                    for worker in workers:
                        worker.cancel()
        finally:
            self._tell_all()
            await watch.cancel()

    async def _set_watch(self) -> Watch:
        while True:
            try:
                return await self._store.watch(self._root)
            except StoreLost:
                await self._store.wait_connected()

    # ---- events

    async def _follow(self, watch: Watch) -> None:
        """Only notes what changed and never waits for the store, so that the watch's queue stays short."""
        try:
            async for changed in watch:
                self._note(changed)
                self._work_to_do.set()
        except StoreLost:
            return  # the Store was closed

    def _note(self, changed: str) -> None:
        """One event. Those of an exchange are one until it is looked at; above the exchanges all is looked at."""
        parts = changed.removeprefix(self._root).split("/")
        if not changed.startswith(self._root) or len(parts) < 4:
            self._unsure = True
            return
        _, record, function, request_id, *_ = parts
        key = (function, request_id)
        if key in self._told:
            return
        if key not in self._open:
            if record != "request" or self._ignores(request_id):
                return  # a response whose request had gone before we watched
            self._begin(key)
        self._changed[key] = None

    def _begin(self, key: Key) -> None:
        self.seen += 1
        if len(self._open) >= OPEN_LIMIT:
            self.lost += 1
            self._forget(next(iter(self._open)))
        self._open[key] = _Open(asyncio.get_running_loop().time())

    def _forget(self, key: Key) -> _Open:
        """From open to told."""
        self._changed.pop(key, None)
        if len(self._told) >= TOLD_LIMIT:
            del self._told[next(iter(self._told))]
        self._told[key] = None
        return self._open.pop(key)

    def _tell(self, key: Key) -> None:
        found = self._forget(key)
        self._on_exchange(Exchange(*key, found.request, found.response))

    def _tell_all(self) -> None:
        for key in list(self._open):
            self._tell(key)

    async def _give_up_old(self) -> None:
        while True:
            await asyncio.sleep(self._patience / 4)
            begun_before = asyncio.get_running_loop().time() - self._patience
            for key in [key for key, found in self._open.items() if found.since < begun_before]:
                self._tell(key)

    # ---- looking

    async def _look_on_and_on(self) -> None:
        while True:
            await self._work_to_do.wait()
            self._work_to_do.clear()
            try:
                while self._unsure or self._changed:
                    await self._look_at_all() if self._unsure else await self._look_at_some()
            except StoreLost:
                self._tell_all()
                await self._store.wait_connected()
            except XenstoreError as error:
                # What is open stays so until it changes again, or nobody can be waiting for it.
                if str(error) != self._trouble:
                    _log.warning("%s was not looked at: %s", self._root, error)
                self._trouble = str(error)

    async def _look_at_all(self) -> None:
        """After the start and after every gap: what stands in the tree, and what was open and is there no more."""
        self._unsure = False
        self.gaps += self._surveyed
        async with self._store.snapshot() as tx:
            requests = await self._keys(self._tree.requests, tx)
        self._surveyed = True
        for key in requests:
            self._note(self._tree.request(*key))
        self._changed.update(dict.fromkeys(self._open))

    async def _keys(self, root: str, tx: Transaction) -> Iterable[Key]:
        functions = await self._store.directory_or_empty(root, tx)
        lists = await asyncio.gather(*(self._store.directory_or_empty(f"{root}/{name}", tx) for name in functions))
        return [(name, request_id) for name, ids in zip(functions, lists, strict=True) for request_id in ids]

    async def _look_at_some(self) -> None:
        # Taken before the snapshot begins: in an earlier one a request that has just come would look gone.
        keys = list(self._changed)[:BATCH]
        for key in keys:
            del self._changed[key]
        async with self._store.snapshot() as tx:
            requests = [self._nodes(self._tree.request(*key), tx) for key in keys]
            responses = [self._nodes(self._tree.response(*key), tx) for key in keys]
            read = await asyncio.gather(*requests, *responses)
        for key, request, response in zip(keys, read, read[len(keys) :], strict=False):
            self._learn(key, request, response)

    async def _nodes(self, where: str, tx: Transaction) -> Nodes | None:
        """Names and values; None when it cannot be read whole: mostly it is not there, or went while it was read."""
        try:
            names = await tx.directory(where)
            values = await asyncio.gather(*(tx.submit(Op.READ, path_payload(f"{where}/{name}")) for name in names))
        except (StoreRefused, InvalidPath):
            return None
        return tuple(zip(names, values, strict=True))

    def _learn(self, key: Key, request: Nodes | None, response: Nodes | None) -> None:
        """Each record is written in one transaction, so what stands there is all of it."""
        found = self._open.get(key)
        if found is None:
            return  # given up meanwhile
        if request is not None:
            found.request = Request(*key, request)
        if response is not None:
            found.response = Response(response)
        # Callers remove the request first, having read the response: without a request no response will come.
        if response is not None or request is None:
            self._tell(key)
