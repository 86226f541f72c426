"""Both ends of the xenstore RPC convention, over a Store.

The order of operations is the convention: it was read off squeezed and its client of 2009 to 2012 and is kept as it
was, since a real peer may stand at the other end. Operations are pipelined only where their order stays the same.
"""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
from collections.abc import Awaitable, Callable, Sequence

from xenstore_rpc.connection import Store, Transaction, Watch
from xenstore_rpc.errors import (
    CallTimedOut,
    InvalidPath,
    ServerNotRegistered,
    StoreLost,
    StoreRefused,
    TransactionConflict,
    ValueTooLong,
    XenstoreError,
)
from xenstore_rpc.packets import Op, path_payload, strings
from xenstore_rpc.records import EXCEPTION, Request, Response, Tree, error_response, node_payloads, unanswered

CALL_TOKEN = "X"  # noqa: S105 - a watch token; the convention's own
STORE_PATIENCE = 5.0
"""Seconds beyond a call's own timeout that the store gets for the operations around the waiting."""

BACKLOG = 4096
"""Requests known to wait while the server is full; those beyond stay in the store and are found by listing it."""

SWEEP_AFTER = 1024
"""Calls between two listings that forget what was answered and remove answers that nobody collects."""

_log = logging.getLogger(__name__)

Key = tuple[str, str]


class Caller:
    """Calls functions of the service whose server stands behind /SERVICE/pid."""

    def __init__(self, store: Store, service: str) -> None:
        self._store = store
        self._tree = Tree(service)

    async def call(
        self,
        function: str,
        arguments: Sequence[tuple[str, bytes]],
        *,
        timeout: float,
        request_id: str | None = None,
    ) -> Response:
        """Sends one request and waits for its response, an error of the service included, for `timeout` seconds.

        ServerNotRegistered: nothing was sent. StoreLost: `sent` says whether the request may be in the store.
        CallTimedOut: it is in the store, stays there, and may still be executed; so it is when the task is cancelled.
        InvalidPath, ValueTooLong: a name or value cannot be sent.
        """
        key = (function, request_id or str(uuid.uuid4()))
        writes = node_payloads(self._tree.request(*key), "argument", arguments)
        deadline = asyncio.get_running_loop().time() + timeout
        committed = False

        async def request(tx: Transaction) -> None:
            nonlocal committed
            committed = False
            mkdir = tx.submit(Op.MKDIR, path_payload(self._tree.request(*key)))
            await asyncio.gather(mkdir, *(tx.submit(Op.WRITE, write) for write in writes))
            committed = True

        try:
            async with asyncio.timeout_at(deadline + STORE_PATIENCE):
                await self._check_server()
                await self._store.transact(request)
                return await self._response(key, deadline)
        except StoreLost as lost:
            raise StoreLost(str(lost), sent=committed) from lost
        except TimeoutError:
            raise StoreLost("xenstore does not answer", sent=committed) from None

    async def _check_server(self) -> None:
        """The server must be registered and alive; looked at once, as the convention does."""
        try:
            text = await self._store.read(self._tree.pid)
            pid = int(text)
            if pid <= 0:
                raise ServerNotRegistered(self._tree.service, f"{self._tree.pid} holds {pid}")
            os.kill(pid, 0)
        except (StoreRefused, ValueError, OSError, OverflowError) as error:
            raise ServerNotRegistered(self._tree.service, str(error)) from error

    async def _response(self, key: Key, deadline: float) -> Response:
        where = self._tree.response(*key)
        # Set after the commit: its automatic first event covers an answer that came in between.
        watch = await self._store.watch(where, CALL_TOKEN)
        try:
            answered = await self._answered(watch, deadline)
        finally:
            await watch.cancel()
        if not answered:
            raise CallTimedOut(key[1])
        names = await self._store.directory(where)
        values = await asyncio.gather(*(self._store.submit(Op.READ, path_payload(f"{where}/{name}")) for name in names))
        # Request before response: a request without a response is new work to the server.
        removals = [self._store.submit(Op.RM, path_payload(path)) for path in (self._tree.request(*key), where)]
        for outcome in await asyncio.gather(*removals, return_exceptions=True):
            _is_there(outcome)
        return Response(tuple(zip(names, values, strict=True)))

    async def _answered(self, watch: Watch, deadline: float) -> bool:
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    await watch.next()
                    if await _exists(self._store, watch.path):
                        return True
        except TimeoutError:
            return await _exists(self._store, watch.path)


class Server:
    """Serves one service: executes every request in /SERVICE/rpc at most once and writes the responses.

    `answer` makes the response of one request; what it raises becomes an error with code 2. At most `limit` calls run
    at once, others wait in the store. `pid` is a process that lives as long as the service is served; when somebody
    else's appears in /SERVICE/pid, `on_foreign_pid` is told once (0: it is no number), and this object carries on.
    """

    def __init__(
        self,
        store: Store,
        service: str,
        answer: Callable[[Request], Awaitable[Response]],
        *,
        pid: int,
        limit: int = 256,
        on_foreign_pid: Callable[[int], None] | None = None,
    ) -> None:
        self._store = store
        self._tree = Tree(service)
        self._answer = answer
        self._pid = pid
        self._limit = limit
        self._on_foreign_pid = on_foreign_pid
        self._registered = False
        self._seen_pid = pid
        self._draining = False
        self._watch: Watch | None = None
        self._tasks: asyncio.TaskGroup | None = None
        self._running: dict[Key, asyncio.Task[None]] = {}
        self._waiting: dict[Key, None] = {}
        self._overflowed = False
        # Executed here, response written or not; kept while the request is in the store, so that it never runs again.
        self._executed: set[Key] = set()
        self._sweep_at = SWEEP_AFTER
        self._idle = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()

    # ---- the tree

    async def register(self) -> None:
        """Writes our pid over whatever is there: from now on callers find the service alive."""
        await self._store.write(self._tree.pid, b"%d" % self._pid)
        self._registered = True

    async def pid(self) -> int | None:
        """The registered pid, None when there is none, 0 when the node holds no number."""
        try:
            return int(await self._store.read(self._tree.pid))
        except StoreRefused as refused:
            if refused.error != "ENOENT":
                raise
            return None
        except ValueError:
            return 0

    async def outstanding(self) -> list[Key]:
        """(function, id) of every request that has no response, whoever would execute it."""
        async with self._store.snapshot() as tx:
            requests, responses = await self._listing(tx)
        return unanswered(requests, responses)

    async def read_request(self, function: str, request_id: str) -> Request | None:
        """The request with its arguments; None when nothing is to be executed: it is answered, or has vanished.

        A request without arguments is an empty directory, so a missing directory is always a caller who went away.
        """
        where = self._tree.request(function, request_id)
        response, listed = await asyncio.gather(
            self._store.submit(Op.READ, path_payload(self._tree.response(function, request_id))),
            self._store.submit(Op.DIRECTORY, path_payload(where)),
            return_exceptions=True,
        )
        if _is_there(response):
            return None
        if isinstance(listed, StoreRefused) and listed.error == "E2BIG":
            names = await self._store.directory_or_empty(where)
        elif _is_there(listed):
            assert isinstance(listed, bytes)
            names = strings(listed)
        else:
            return None
        reads = [self._store.submit(Op.READ, path_payload(f"{where}/{name}")) for name in names]
        values: list[bytes] = []
        for value in await asyncio.gather(*reads, return_exceptions=True):
            if not _is_there(value):
                return None
            assert isinstance(value, bytes)
            values.append(value)
        return Request(function, request_id, tuple(zip(names, values, strict=True)))

    async def respond(self, request: Request, response: Response) -> bool:
        """Writes the response in one transaction; False, and nothing written, when the request is gone or answered."""
        where = self._tree.response(*request.key)
        writes = node_payloads(where, "result", response.results)

        async def body(tx: Transaction) -> bool:
            asked, answered = await asyncio.gather(
                tx.submit(Op.READ, path_payload(self._tree.request(*request.key))),
                tx.submit(Op.READ, path_payload(where)),
                return_exceptions=True,
            )
            if not _is_there(asked) or _is_there(answered):
                return False
            mkdir = tx.submit(Op.MKDIR, path_payload(where))
            await asyncio.gather(mkdir, *(tx.submit(Op.WRITE, write) for write in writes))
            return True

        return await self._store.transact(body)

    async def settle_outstanding(self, decide: Callable[[Request], Awaitable[Response | None]]) -> int:
        """Answers what is outstanding and not executing here, without executing it; how many were answered.

        `decide` gives the response, or None for a request that is left to be executed.
        """
        settled = 0
        for key in await self.outstanding():
            if key in self._running or key in self._executed:
                continue
            request = await self.read_request(*key)
            if request is None or (response := await decide(request)) is None:
                continue
            self._executed.add(key)
            settled += await self._publish(request, response)
        return settled

    async def abandon(self, make_response: Callable[[Request], Response]) -> int:
        """Ends the calls that still execute and answers them so; how many there were. What they did is not known."""
        running = dict(self._running)
        for task in running.values():
            task.cancel()
        if running:
            await asyncio.wait(running.values())
        for function, request_id in running:
            request = Request(function, request_id, ())
            await self._publish(request, make_response(request))
        return len(running)

    async def _listing(
        self, tx: Transaction | None = None
    ) -> tuple[dict[str, dict[str, None]], dict[str, dict[str, None]]]:
        """(requests, responses) as {function: {id: None}}; the responses are listed first, see unanswered()."""
        responses = await self._ids(self._tree.responses, tx)
        return await self._ids(self._tree.requests, tx), responses

    async def _ids(self, root: str, tx: Transaction | None) -> dict[str, dict[str, None]]:
        functions = await self._store.directory_or_empty(root, tx)
        lists = await asyncio.gather(*(self._store.directory_or_empty(f"{root}/{name}", tx) for name in functions))
        return {name: dict.fromkeys(ids) for name, ids in zip(functions, lists, strict=True)}

    # ---- serving

    async def run(self) -> None:
        """Serves until stop(): what is outstanding, then what arrives. A lost store is waited for; close it after."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                followers = [
                    tasks.create_task(self._follow(self._tree.requests, self._look)),
                    tasks.create_task(self._follow(self._tree.pid, self._check_pid)),
                ]
                try:
                    await self._stopping.wait()
                finally:
                    self._draining = True
                    self._waiting.clear()
                    for task in (*followers, *self._running.values()):
                        task.cancel()
        finally:
            self._ended.set()

    async def drain(self, timeout: float) -> bool:
        """Starts nothing more; whether everything that was started has its response written within `timeout` s."""
        self._draining = True
        self._waiting.clear()
        try:
            async with asyncio.timeout(timeout):
                while self._running:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Ends run(); calls that still execute are cancelled and their requests stay unanswered. The pid stays."""
        self._stopping.set()
        if self._tasks is not None:
            await self._ended.wait()

    async def _follow(self, path: str, look: Callable[[str], Awaitable[None]]) -> None:
        while True:
            try:
                watch = await self._store.watch(path)
                break
            except StoreLost:
                await self._store.wait_connected()
        if path == self._tree.requests:
            self._watch = watch
        try:
            async for changed in watch:
                try:
                    await look(changed)
                except StoreLost:
                    continue  # the watch fires again once it is set again
        finally:
            await watch.cancel()

    async def _look(self, changed: str) -> None:
        key = self._tree.request_key(changed)
        if key is None or len(self._executed) > self._sweep_at:
            await self._scan()
        else:
            self._start(key)

    async def _scan(self) -> None:
        """Starts all that is unanswered, and forgets what was executed and is gone from the store."""
        self._overflowed = False
        finished = self._executed - self._running.keys()
        requests, responses = await self._listing()
        for key in unanswered(requests, responses):
            self._start(key)
        for function, request_id in finished:
            if request_id in requests.get(function, ()):
                continue
            self._executed.discard((function, request_id))
            if request_id in responses.get(function, ()):
                # Nobody collects it any more: callers remove the request first.
                await self._store.rm(self._tree.response(function, request_id))
        self._sweep_at = 2 * len(self._executed) + SWEEP_AFTER

    def _start(self, key: Key) -> None:
        if self._draining or key in self._running or key in self._executed:
            return
        if len(self._running) < self._limit:
            assert self._tasks is not None
            self._running[key] = self._tasks.create_task(self._execute(key))
        elif len(self._waiting) < BACKLOG:
            self._waiting[key] = None
        else:
            self._overflowed = True

    def _finish(self, key: Key) -> None:
        del self._running[key]
        while self._waiting and len(self._running) < self._limit:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self._start(oldest)
        if self._overflowed and not self._waiting and self._watch is not None:
            self._watch.fire(self._tree.requests)
        if not self._running:
            self._idle.set()

    async def _execute(self, key: Key) -> None:
        try:
            request = await self.read_request(*key)
            if request is not None:
                self._executed.add(key)
                await self._publish(request, await self._answer_to(request))
        except StoreLost:
            pass  # while reading: nothing was executed, and the watch will bring the request up again
        except XenstoreError:
            _log.exception("request %s of %s was left alone", key[1], key[0])
        finally:
            self._finish(key)

    async def _answer_to(self, request: Request) -> Response:
        try:
            return await self._answer(request)
        except Exception:
            _log.exception("request %s of %s failed", request.request_id, request.function)
            return error_response(EXCEPTION, f"internal error, see the log for request {request.request_id}")

    async def _publish(self, request: Request, response: Response) -> bool:
        """Writes the response however long the store is away, since the call never comes up again; see respond()."""
        replaced = False
        while True:
            try:
                return await self.respond(request, response)
            except StoreLost:
                await self._store.wait_connected()
            except TransactionConflict:
                _log.warning("request %s of %s: the store is too busy to commit", request.request_id, request.function)
            except (StoreRefused, InvalidPath, ValueTooLong) as error:
                _log.error("request %s of %s: %s", request.request_id, request.function, error)
                if replaced:
                    return False
                replaced = True
                response = error_response(EXCEPTION, f"the result cannot be written: {error}")

    async def _check_pid(self, _changed: str) -> None:
        pid = await self.pid()
        if pid is None:
            if self._registered:
                await self._store.transact(self._register_again)
        elif pid != self._seen_pid:
            self._seen_pid = pid
            if pid != self._pid and self._on_foreign_pid is not None:
                self._on_foreign_pid(pid)

    async def _register_again(self, tx: Transaction) -> None:
        """A store that came back empty knows us no more; a pid that somebody else wrote meanwhile is left alone."""
        try:
            await tx.read(self._tree.pid)
        except StoreRefused as refused:
            if refused.error != "ENOENT":
                raise
            await tx.write(self._tree.pid, b"%d" % self._pid)


async def _exists(store: Store, path: str) -> bool:
    try:
        await store.read(path)
    except StoreRefused as refused:
        if refused.error != "ENOENT":
            raise
        return False
    return True


def _is_there(outcome: bytes | BaseException) -> bool:
    """Whether an operation found its node; anything but success and ENOENT is raised."""
    if isinstance(outcome, StoreRefused) and outcome.error == "ENOENT":
        return False
    if isinstance(outcome, BaseException):
        raise outcome
    return True
