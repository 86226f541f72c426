"""Both ends of the RPC convention, with each other and with peers written by hand as the old ones were."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import pytest
import pyxs

from tests.fixtures_xenstored import StoreProcess
from xenstore_rpc.connection import Store
from xenstore_rpc.embedded import EmbeddedStore
from xenstore_rpc.errors import CallTimedOut, InvalidPath, ServerNotRegistered, StoreLost, ValueTooLong
from xenstore_rpc.records import EXCEPTION, UNKNOWN_FUNCTION, Request, Response, error_response
from xenstore_rpc.rpc import Caller, Server

ROOT = "/squeezed/rpc"


async def echo(request: Request) -> Response:
    """Answers with the arguments; knows no other function."""
    if request.function != "echo":
        return error_response(UNKNOWN_FUNCTION, request.function)
    return Response(request.arguments)


@asynccontextmanager
async def serving(server: Server, *, register: bool = True) -> AsyncIterator[Server]:
    """The server running for the length of the block."""
    if register:
        await server.register()
    task = asyncio.create_task(server.run())
    try:
        yield server
    finally:
        await server.stop()
        await task


def squeezed(store: Store, answer: Callable[[Request], Awaitable[Response]] = echo, **options: object) -> Server:
    return Server(store, "squeezed", answer, pid=os.getpid(), **options)  # type: ignore[arg-type]


async def until(store: Store, path: str, *, exists: bool) -> None:
    """Waits for a node to appear or to go."""
    watch = await store.watch(path)
    async with asyncio.timeout(20):
        async for _ in watch:
            names = await store.directory_or_empty(path.rpartition("/")[0])
            if (path.rpartition("/")[2] in names) is exists:
                break
    await watch.cancel()


async def left_behind(store: Store) -> dict[str, list[str]]:
    """What calls left in the tree, by directory."""
    found = {}
    for kind in ("request", "response"):
        for function in await store.directory_or_empty(f"{ROOT}/{kind}"):
            found[f"{kind}/{function}"] = await store.directory(f"{ROOT}/{kind}/{function}")
    return {path: names for path, names in found.items() if names}


ARGUMENTS = [
    pytest.param((), id="none"),
    pytest.param((("a", b""), ("b", b"\0\xff\n"), ("c", "é".encode())), id="any bytes"),
    pytest.param(tuple((f"argument-{number:030d}", b"v" * 3000) for number in range(200)), id="over 4096 bytes"),
]


@pytest.mark.parametrize("arguments", ARGUMENTS)
async def test_call_comes_back(store: Store, arguments: tuple[tuple[str, bytes], ...]) -> None:
    """Arguments and results of any bytes and number cross both ways, and nothing stays behind."""
    async with serving(squeezed(store)):
        response = await Caller(store, "squeezed").call("echo", arguments, timeout=30)
    assert sorted(response.results) == sorted(arguments)
    assert await left_behind(store) == {}


async def test_errors_of_the_service_are_responses(store: Store) -> None:
    """An unknown function comes back as code 1 with its name, not as an exception."""
    async with serving(squeezed(store)):
        response = await Caller(store, "squeezed").call("reopen-logs", (), timeout=10)
    assert (response.is_error, response.code, response.description) == (True, "1", "reopen-logs")


async def test_handler_failure_is_code_2_without_internals(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets the request id to look for in the log, where the exception is."""

    async def fail(request: Request) -> Response:
        raise RuntimeError("secret detail")

    with caplog.at_level(logging.ERROR):
        async with serving(squeezed(store, fail)):
            response = await Caller(store, "squeezed").call("echo", (), timeout=10, request_id="id-1")
    assert response.code == EXCEPTION
    assert "id-1" in response.description
    assert "secret" not in response.description
    assert "secret detail" in caplog.text


@pytest.mark.parametrize("result", [Response((("value", bytes(4096)),)), error_response(EXCEPTION, "x" * 4096)])
async def test_result_that_does_not_fit_is_code_2(store: Store, result: Response) -> None:
    """A result that the store cannot hold is answered as an error instead of leaving the caller waiting."""

    async def big(request: Request) -> Response:
        return result

    async with serving(squeezed(store, big)):
        response = await Caller(store, "squeezed").call("echo", (), timeout=10)
    assert response.code == EXCEPTION
    assert "4096 bytes is too long" in response.description


async def test_many_calls_at_once(store: Store, store_server: str) -> None:
    """Three hundred calls through a server that runs eight at a time: each executed once and answered."""
    executed: list[str] = []
    running = most = 0

    async def answer(request: Request) -> Response:
        nonlocal running, most
        running += 1
        most = max(most, running)
        executed.append(request.request_id)
        await asyncio.sleep(0)
        running -= 1
        return Response(request.arguments)

    callers = Store(store_server)
    await callers.connect()
    caller = Caller(callers, "squeezed")
    async with serving(squeezed(store, answer, limit=8)):
        calls = [caller.call("echo", (("n", b"%d" % n),), timeout=50, request_id=f"id-{n}") for n in range(300)]
        responses = await asyncio.gather(*calls)
    await callers.close()
    assert [response.results for response in responses] == [(("n", b"%d" % n),) for n in range(300)]
    assert sorted(executed) == sorted(f"id-{n}" for n in range(300))
    assert most <= 8
    assert await left_behind(store) == {}


# ---- the caller's side


@pytest.mark.parametrize(
    "pid", [None, b"", b"no number", b"0", b"-1", b"4194304000", b"9" * 40], ids=lambda pid: repr(pid)[:14]
)
async def test_no_server(store: Store, pid: bytes | None) -> None:
    """Without a living process in the pid node nothing is sent."""
    if pid is not None:
        await store.write("/squeezed/pid", pid)
    with pytest.raises(ServerNotRegistered, match="no server is registered for squeezed"):
        await Caller(store, "squeezed").call("echo", (), timeout=10)
    assert await left_behind(store) == {}


@pytest.mark.parametrize(
    ("function", "arguments", "request_id", "error"),
    [
        ("a/b", (), None, InvalidPath),
        ("echo", (("a b", b""),), None, InvalidPath),
        ("echo", (), "a/b", InvalidPath),
        ("echo", (("a", bytes(4096)),), None, ValueTooLong),
    ],
)
async def test_bad_arguments_never_reach_the_store(
    store: Store,
    function: str,
    arguments: tuple[tuple[str, bytes], ...],
    request_id: str | None,
    error: type[Exception],
) -> None:
    """Names and values are checked before the first operation."""
    await store.write("/squeezed/pid", b"%d" % os.getpid())
    with pytest.raises(error):
        await Caller(store, "squeezed").call(function, arguments, timeout=10, request_id=request_id)
    assert await left_behind(store) == {}


async def test_timeout_leaves_the_request(store: Store) -> None:
    """A call that times out stays in the store and is executed by whoever serves it later."""
    await store.write("/squeezed/pid", b"%d" % os.getpid())
    with pytest.raises(CallTimedOut) as caught:
        await Caller(store, "squeezed").call("echo", (("a", b"1"),), timeout=0.05, request_id="late")
    assert caught.value.request_id == "late"
    assert await left_behind(store) == {"request/echo": ["late"]}
    assert store._watches == {}
    async with serving(squeezed(store)):
        await until(store, f"{ROOT}/response/echo/late", exists=True)
    assert await store.read(f"{ROOT}/response/echo/late/a") == b"1"


async def test_cancelled_call_leaves_the_request(store: Store) -> None:
    """Cancelling the caller takes its watch back and nothing else."""
    await store.write("/squeezed/pid", b"%d" % os.getpid())
    task = asyncio.create_task(Caller(store, "squeezed").call("echo", (), timeout=50, request_id="left"))
    await until(store, f"{ROOT}/request/echo/left", exists=True)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await left_behind(store) == {"request/echo": ["left"]}
    assert store._watches == {}


async def test_lost_while_waiting_is_in_doubt(store_process: StoreProcess, store: Store) -> None:
    """Once the request is committed, a lost store leaves the outcome open; before, it does not."""
    await store.write("/squeezed/pid", b"%d" % os.getpid())
    task = asyncio.create_task(Caller(store, "squeezed").call("echo", (), timeout=50, request_id="u"))
    await until(store, f"{ROOT}/request/echo/u", exists=True)
    await store_process.kill()
    with pytest.raises(StoreLost) as caught:
        await task
    assert caught.value.sent is True
    with pytest.raises(StoreLost) as caught:
        await Caller(store, "squeezed").call("echo", (), timeout=50)
    assert caught.value.sent is False


async def test_lost_before_the_commit_was_not_sent(
    connected_to: Callable[..., AbstractAsyncContextManager[Store]],
) -> None:
    """A store that goes away with the very first operation has no request of ours."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)

    async with connected_to(handle) as store:
        with pytest.raises(StoreLost) as caught:
            await Caller(store, "squeezed").call("echo", (), timeout=10)
        assert caught.value.sent is False


# ---- the server's side


async def test_requests_before_the_watch_are_served(store: Store) -> None:
    """What waits in the store when the server starts is served; an empty directory is a complete request."""
    await store.write(f"{ROOT}/request/echo/with/a", b"1")
    await store.mkdir(f"{ROOT}/request/echo/without")
    async with serving(squeezed(store)):
        await until(store, f"{ROOT}/response/echo/with", exists=True)
        await until(store, f"{ROOT}/response/echo/without", exists=True)
    assert await store.read(f"{ROOT}/response/echo/with/a") == b"1"
    assert await store.directory(f"{ROOT}/response/echo/without") == []


async def test_outstanding_is_what_has_no_response(store: Store) -> None:
    """Answered requests that nobody cleaned up are not outstanding, nor are answers without a request."""
    await store.mkdir(f"{ROOT}/request/echo/new")
    await store.mkdir(f"{ROOT}/request/echo/done")
    await store.mkdir(f"{ROOT}/response/echo/done")
    await store.mkdir(f"{ROOT}/response/echo/gone")
    assert await squeezed(store).outstanding() == [("echo", "new")]


async def test_vanished_and_answered_requests_are_not_read(store: Store) -> None:
    """A request whose caller went away must not look like one without arguments."""
    server = squeezed(store)
    assert await server.read_request("balance-memory", "gone") is None
    await store.mkdir(f"{ROOT}/request/balance-memory/here")
    assert await server.read_request("balance-memory", "here") == Request("balance-memory", "here", ())
    await store.mkdir(f"{ROOT}/response/balance-memory/here")
    assert await server.read_request("balance-memory", "here") is None


async def test_respond_writes_once_and_only_to_a_request(store: Store) -> None:
    """No response without a request, and none over another."""
    server = squeezed(store)
    request = Request("echo", "u", ())
    assert await server.respond(request, Response((("a", b"1"),))) is False
    assert await left_behind(store) == {}
    await store.mkdir(f"{ROOT}/request/echo/u")
    assert await server.respond(request, Response((("a", b"1"),))) is True
    assert await server.respond(request, Response((("a", b"2"),))) is False
    assert await store.read(f"{ROOT}/response/echo/u/a") == b"1"


async def test_caller_who_left_gets_no_response(store: Store) -> None:
    """When the request is removed while it executes, nothing is written that would stay for ever."""
    started, finish, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Response:
        started.set()
        await finish.wait()
        done.set()
        return Response(())

    await store.mkdir(f"{ROOT}/request/echo/u")
    async with serving(squeezed(store, slow)) as server:
        await started.wait()
        await store.rm(f"{ROOT}/request/echo/u")
        finish.set()
        assert await server.drain(20)
    assert done.is_set()
    assert await left_behind(store) == {}


async def test_removed_response_is_not_executed_again(store: Store) -> None:
    """A caller that cleans up in the wrong order does not cause a second execution."""
    executed: list[str] = []

    async def answer(request: Request) -> Response:
        executed.append(request.request_id)
        return Response(())

    async with serving(squeezed(store, answer)):
        await store.mkdir(f"{ROOT}/request/echo/u")
        await until(store, f"{ROOT}/response/echo/u", exists=True)
        await store.rm(f"{ROOT}/response/echo/u")
        await store.write(f"{ROOT}/request/echo/u", b"touched")
        await store.mkdir(f"{ROOT}/request/echo/next")
        await until(store, f"{ROOT}/response/echo/next", exists=True)
    assert executed == ["u", "next"]


async def test_abandoned_answers_of_ours_are_collected(store: Store) -> None:
    """A sweep removes our answers whose request is gone, and leaves those of others and those still awaited."""
    await store.mkdir(f"{ROOT}/response/echo/foreign")
    async with serving(squeezed(store)):
        for name in ("gone", "kept"):
            await store.mkdir(f"{ROOT}/request/echo/{name}")
            await until(store, f"{ROOT}/response/echo/{name}", exists=True)
        await store.rm(f"{ROOT}/request/echo/gone")
        await store.write(f"{ROOT}/request", b"look at everything")
        await until(store, f"{ROOT}/response/echo/gone", exists=False)
    assert {path: sorted(names) for path, names in (await left_behind(store)).items()} == {
        "request/echo": ["kept"],
        "response/echo": ["foreign", "kept"],
    }


async def test_refused_at_start_is_answered_and_not_executed(store: Store) -> None:
    """A cold start answers what it decides to, without executing it; the rest is executed as what comes later is."""
    await store.mkdir(f"{ROOT}/request/echo/old")
    await store.mkdir(f"{ROOT}/request/echo/wanted")
    await store.mkdir(f"{ROOT}/request/balance-memory/older")
    executed: list[str] = []

    async def answer(request: Request) -> Response:
        executed.append(request.request_id)
        return Response(())

    async def decide(request: Request) -> Response | None:
        return None if request.request_id == "wanted" else error_response(EXCEPTION, request.function)

    server = squeezed(store, answer)
    assert await server.settle_outstanding(decide) == 2
    async with serving(server):
        await store.mkdir(f"{ROOT}/request/echo/new")
        await until(store, f"{ROOT}/response/echo/new", exists=True)
    assert sorted(executed) == ["new", "wanted"]
    assert await store.read(f"{ROOT}/response/echo/old/description") == b"echo"


async def test_drain_finishes_what_runs_and_leaves_the_rest(store: Store) -> None:
    """While draining, started calls are answered and new requests stay in the store."""
    started, finish = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> Response:
        started.set()
        await finish.wait()
        return Response(())

    async with serving(squeezed(store, slow)) as server:
        await store.mkdir(f"{ROOT}/request/echo/first")
        await started.wait()
        assert await server.drain(0.01) is False
        await store.mkdir(f"{ROOT}/request/echo/second")
        finish.set()
        assert await server.drain(20) is True
        assert await server.outstanding() == [("echo", "second")]
    assert await store.directory(f"{ROOT}/response/echo") == ["first"]


async def test_stop_leaves_running_calls_unanswered(store: Store) -> None:
    """stop() cancels what executes; its request stays for the next owner to decide."""
    started = asyncio.Event()

    async def endless(request: Request) -> Response:
        started.set()
        await asyncio.Event().wait()
        return Response(())

    async with serving(squeezed(store, endless)) as server:
        await store.mkdir(f"{ROOT}/request/echo/u")
        await started.wait()
    assert await server.outstanding() == [("echo", "u")]


async def test_cancelled_run_starts_nothing_more(store: Store) -> None:
    """Cancelling run() instead of stop() ends the calls that execute and does not begin those that wait."""
    started: asyncio.Queue[str] = asyncio.Queue()

    async def endless(request: Request) -> Response:
        started.put_nowait(request.request_id)
        await asyncio.Event().wait()
        return Response(())

    for number in range(3):
        await store.mkdir(f"{ROOT}/request/echo/{number}")
    server = squeezed(store, endless, limit=1)
    task = asyncio.create_task(server.run())
    await started.get()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert started.empty()
    assert len(await server.outstanding()) == 3


async def test_foreign_pid_is_reported(store: Store) -> None:
    """Another server's pid is told once it appears; text that is no pid is told as 0."""
    pids: asyncio.Queue[int] = asyncio.Queue()
    async with serving(squeezed(store, on_foreign_pid=pids.put_nowait)) as server:
        assert await server.pid() == os.getpid()
        await store.write("/squeezed/pid", b"1")
        assert await asyncio.wait_for(pids.get(), 20) == 1
        await store.write("/squeezed/pid", b"nonsense")
        assert await asyncio.wait_for(pids.get(), 20) == 0
    assert await server.pid() == 0
    await store.rm("/squeezed/pid")
    assert await server.pid() is None


async def test_restarted_store_is_served_again(store_process: StoreProcess, store: Store) -> None:
    """A store that comes back empty gets our pid and watches again."""
    watch = await store.watch("/loss")
    await watch.next()
    async with serving(squeezed(store)):
        await Caller(store, "squeezed").call("echo", (), timeout=20)
        await store_process.kill()
        await watch.next()
        await store_process.start()
        await store.wait_connected(20)
        await until(store, "/squeezed/pid", exists=True)
        response = await Caller(store, "squeezed").call("echo", (("a", b"1"),), timeout=20)
    assert response == Response((("a", b"1"),))


async def test_answer_is_written_after_a_lost_connection() -> None:
    """A call whose answer could not be written is answered once the store is back, and executed once."""
    executed: list[str] = []
    started, finish = asyncio.Event(), asyncio.Event()

    async def answer(request: Request) -> Response:
        executed.append(request.request_id)
        started.set()
        await finish.wait()
        return Response((("a", b"late"),))

    directory = tempfile.mkdtemp(prefix="xs", dir="/tmp")
    embedded = EmbeddedStore(f"{directory}/socket")
    await embedded.start()
    store = Store(embedded.path)
    await store.connect()
    watch = await store.watch("/loss")
    await watch.next()
    async with serving(squeezed(store, answer)):
        await store.mkdir(f"{ROOT}/request/echo/u")
        await started.wait()
        await embedded.stop()
        await watch.next()
        finish.set()
        await embedded.start()
        await store.wait_connected(20)
        await until(store, f"{ROOT}/response/echo/u", exists=True)
    assert executed == ["u"]
    assert await store.read(f"{ROOT}/response/echo/u/a") == b"late"
    await store.close()
    await embedded.stop()
    shutil.rmtree(directory)


# ---- with hand-written peers, as the old ones were


def in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """Runs blocking pyxs code in a daemon thread, because pyxs cannot be interrupted."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            loop.call_soon_threadsafe(done.set_exception, error)
        else:
            loop.call_soon_threadsafe(done.set_result, None)

    threading.Thread(target=run, daemon=True).start()
    return done


async def test_old_client_is_served(store: Store, store_server: str) -> None:
    """A client in the order of 2009, written with pyxs, gets its answer from our server."""
    results: dict[bytes, bytes] = {}
    request, response = b"/squeezed/rpc/request/echo/u-1", b"/squeezed/rpc/response/echo/u-1"

    def call() -> None:
        with pyxs.Client(unix_socket_path=store_server) as client:
            os.kill(int(client.read(b"/squeezed/pid")), 0)
            client.transaction()
            client.mkdir(request)
            client.write(request + b"/a", b"one")
            assert client.commit()
            monitor = client.monitor()
            monitor.watch(response, b"X")
            for _ in monitor.wait():
                if client.exists(response):
                    break
            monitor.unwatch(response, b"X")
            for name in client.list(response):
                results[name] = client.read(response + b"/" + name)
            client.delete(request)
            client.delete(response)

    async with serving(squeezed(store)):
        await asyncio.wait_for(in_thread(call), 30)
    assert results == {b"a": b"one"}
    assert await left_behind(store) == {}


async def test_old_server_is_called(store: Store, store_server: str) -> None:
    """Our caller gets its answers from a server in the order of 2009, written with pyxs."""

    def serve() -> None:
        with pyxs.Client(unix_socket_path=store_server) as client:
            client.write(b"/squeezed/pid", b"%d" % os.getpid())
            monitor = client.monitor()
            monitor.watch(b"/squeezed/rpc/request", b"X")
            answered: set[bytes] = set()
            for _ in monitor.wait():
                if not client.exists(b"/squeezed/rpc/request/echo"):
                    continue
                for name in client.list(b"/squeezed/rpc/request/echo"):
                    if name in answered:
                        continue
                    where = b"/squeezed/rpc/request/echo/" + name
                    arguments = [(key, client.read(where + b"/" + key)) for key in client.list(where)]
                    client.transaction()
                    client.mkdir(b"/squeezed/rpc/response/echo/" + name)
                    for key, value in arguments:
                        client.write(b"/squeezed/rpc/response/echo/" + name + b"/" + key, value)
                    assert client.commit()
                    answered.add(name)
                if len(answered) == 3:
                    return

    done = in_thread(serve)
    await until(store, "/squeezed/pid", exists=True)
    caller = Caller(store, "squeezed")
    for number in range(3):
        response = await caller.call("echo", (("n", b"%d" % number),), timeout=20)
        assert response.results == (("n", b"%d" % number),)
    await asyncio.wait_for(done, 20)
    assert await left_behind(store) == {}
