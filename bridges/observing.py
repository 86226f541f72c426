"""What is seen at the doors of a legacy daemon while they are its own: its tree is watched, its sockets are looked at.

Of the tree most exchanges are read whole, and those that were not are told so; of a socket who is connected is all
that can be seen. Nothing here is in anybody's way.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from bridges.backends import is_own_request
from bridges.calls import Door
from bridges.capture.messages import StoreAnswer, StoreCall
from bridges.capture.records import Leg
from bridges.capture.taps import Tap, Trail
from bridges.interfaces.model import Method, Service
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import XenstoreError
from xenstore_rpc.observer import Completeness, Exchange, Observer
from xenstore_rpc.records import Request, Response
from xmlrpc_gateway.callers import Callers, Connection

LOG: Final = logging.getLogger("bridges.observing")

SAMPLE_SECONDS: Final = 0.2
CALLERS_KEPT: Final = 50

UNKNOWN_FUNCTIONS: Final = "(unknown functions)"
UNKNOWN: Final = "unknown"
OTHERS: Final = "others"

INCOMPLETE: Final = tuple(kind for kind in Completeness if kind is not Completeness.COMPLETE)


class _Socket:
    """A socket of the legacy daemon: how many connections were seen there, and whose they were."""

    def __init__(self, path: Path) -> None:
        self.callers = Callers(path)
        self._open: dict[int, Connection] = {}
        self._seen = 0
        self._closed: Counter[str] = Counter()

    def note(self, found: Iterable[Connection]) -> None:
        """One look at it."""
        now = {connection.inode: connection for connection in found}
        self._seen += len(now.keys() - self._open.keys())
        for inode in self._open.keys() - now.keys():
            self._count(self._closed, self._open[inode])
        self._open = now

    @staticmethod
    def _count(counts: Counter[str], connection: Connection) -> None:
        name = UNKNOWN if connection.pid is None else f"{connection.command} ({connection.pid})"
        counts[name if name in counts or len(counts) < CALLERS_KEPT else OTHERS] += 1

    def status(self) -> dict[str, Any]:
        callers = self._closed.copy()
        for connection in self._open.values():
            self._count(callers, connection)
        return {"connections": self._seen, "open": len(self._open), "payloads": 0, "callers": dict(callers)}


@dataclass(slots=True)
class _Seen:
    """What was seen since nothing was watched."""

    sockets: list[_Socket]
    told: int = 0
    kinds: Counter[Completeness] = field(default_factory=Counter)
    methods: dict[str, Counter[str]] = field(default_factory=dict)
    observers: list[Observer] = field(default_factory=list)


class Observation:
    """One service, watched at its legacy daemon's own doors; `arrange` says at which.

    `on_complete` is told of each exchange of the tree that was read whole, with its trail in the capture.
    """

    def __init__(
        self,
        service: Service,
        store: Store | None,
        tree: str | None,
        paths: Iterable[Path],
        on_complete: Callable[[Request, Response, Trail | None], None],
        tap: Tap,
    ) -> None:
        self._service = service
        self._store = store
        self._tree = tree
        self._paths = tuple(paths)
        self._on_complete = on_complete
        self._tap = tap
        self._running: dict[str, asyncio.Task[None]] = {}
        self._seen = self._anew()

    def _anew(self) -> _Seen:
        return _Seen([_Socket(path) for path in self._paths])

    def arrange(self, tasks: asyncio.TaskGroup, *, tree: bool, sockets: bool) -> None:
        """Watches these from now on, and nothing else; counts anew when nothing was watched before."""
        if not self._running:
            self._seen = self._anew()
        seen = self._seen
        if self._store is not None and self._tree is not None:
            watch_tree = partial(self._watch_tree, self._store, self._tree, seen)
            self._set(tasks, "tree", watch_tree, wanted=tree)
        if self._paths:
            self._set(tasks, "sockets", partial(self._watch_sockets, seen), wanted=sockets)

    def _set(
        self, tasks: asyncio.TaskGroup, what: str, watch: Callable[[], Coroutine[Any, Any, None]], *, wanted: bool
    ) -> None:
        if wanted and what not in self._running:
            self._running[what] = tasks.create_task(watch(), name=f"observing the {what} of {self._service.name}")
        elif not wanted and (task := self._running.pop(what, None)) is not None:
            task.cancel()

    async def stop(self) -> None:
        """Watches nothing any more; what was seen stays to be asked for."""
        running = list(self._running.values())
        self._running.clear()
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)

    # ---- the tree

    async def _watch_tree(self, store: Store, tree: str, seen: _Seen) -> None:
        observer = Observer(store, tree, lambda exchange: self._note(seen, exchange), ignores=is_own_request)
        seen.observers.append(observer)
        try:
            await observer.run()
        except XenstoreError as error:
            LOG.error("%s: its tree cannot be observed: %s", self._service.name, error)

    def _note(self, seen: _Seen, exchange: Exchange) -> None:
        completeness = exchange.completeness
        method = self._service.by_xenstore_function.get(exchange.function)
        trail = self._capture(exchange, method) if self._tap.is_on else None
        seen.told += 1
        seen.kinds[completeness] += 1
        counts = seen.methods.setdefault(UNKNOWN_FUNCTIONS if method is None else method.name, Counter())
        counts.update(("seen", str(completeness)))
        if exchange.request is not None and exchange.response is not None:
            try:
                self._on_complete(exchange.request, exchange.response, trail)
            except Exception:
                LOG.exception("%s: what was observed could not be passed on", self._service.name)

    def _capture(self, exchange: Exchange, method: Method | None) -> Trail | None:
        message = StoreCall(exchange.request, exchange.function, exchange.request_id)
        trail = self._tap.came(Door.XENSTORE, message, method, leg=Leg.OBSERVED)
        if trail is not None:
            trail.heard(Leg.OBSERVED, StoreAnswer(exchange.response))
        return trail

    # ---- the sockets

    async def _watch_sockets(self, seen: _Seen) -> None:
        while True:
            for each in seen.sockets:
                try:
                    each.note(await asyncio.to_thread(each.callers.connections))
                except OSError as error:
                    LOG.error("%s: %s cannot be looked at: %s", self._service.name, each.callers.path, error)
                    return
            await asyncio.sleep(SAMPLE_SECONDS)

    # ---- what was seen

    def counts(self) -> tuple[int, int]:
        """How many exchanges of the tree were seen, and how many of them whole."""
        seen = self._seen
        untold = sum(observer.open + observer.lost for observer in seen.observers)
        return seen.told + untold, seen.kinds[Completeness.COMPLETE]

    def status(self) -> dict[str, Any]:
        """JSON-ready, for the operator: seen = complete + all that is incomplete + open + lost.

        `gaps` counts the times in which exchanges may have come and gone unseen. Of a socket no payload is seen.
        """
        seen = self._seen
        total, complete = self.counts()
        return {
            "exchanges": {
                "seen": total,
                "complete": complete,
                "incomplete": {str(kind): seen.kinds[kind] for kind in INCOMPLETE},
                "open": sum(observer.open for observer in seen.observers),
                "lost": sum(observer.lost for observer in seen.observers),
                "gaps": sum(observer.gaps for observer in seen.observers),
            },
            "methods": {name: dict(counts) for name, counts in seen.methods.items()},
            "sockets": {str(each.callers.path): each.status() for each in seen.sockets},
        }
