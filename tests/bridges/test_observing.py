"""A legacy daemon watched at its own doors: what is counted, what is kept, and what is not shown."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridges import observing
from bridges.capture.taps import Clock, Tap
from bridges.interfaces import model
from bridges.observing import Observation
from tests.fixtures_xenstored import StoreProcess, running_store
from xenstore_rpc.connection import Store
from xenstore_rpc.errors import StoreRefused
from xenstore_rpc.records import Request, Response, error_response
from xenstore_rpc.rpc import Caller, Server

Pair = tuple[Request, Response]
COMMAND = Path("/proc/self/comm").read_text().strip()


@pytest.fixture
async def oxenstored(request: pytest.FixtureRequest) -> AsyncIterator[StoreProcess]:
    async with running_store("oxenstored", lambda: request.getfixturevalue("xenstored_stub")) as store:
        yield store


@pytest.fixture
async def connect(oxenstored: StoreProcess) -> AsyncIterator[Callable[[], Any]]:
    """Gives connections to the store, closed afterwards."""
    stores = []

    async def connected() -> Store:
        stores.append(Store(oxenstored.socket))
        await stores[-1].connect()
        return stores[-1]

    yield connected
    for store in stores:
        await store.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    while "_" in (name := tempfile.mkdtemp(prefix="x", dir="/tmp")):
        Path(name).rmdir()
    yield Path(name)
    shutil.rmtree(name)


def no_tap() -> Tap:
    return Tap("squeezed", Clock(int, int), lambda *_: None)


async def until(holds: Callable[[], bool]) -> None:
    """Waits for a condition, twenty seconds at most."""
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 - it has no event for every one of these
            await asyncio.sleep(0.005)


def squeezed() -> model.Service:
    """The interface, in which the session of reserve_memory is a secret and the result of login is one."""
    service = model.decode((Path(model.__file__).parent / "squeezed.json").read_bytes())
    forms = service.by_xenstore_function
    reserve, login = forms["reserve-memory"], forms["login"]
    parameters = tuple(replace(each, secret=each.name == "session_id") for each in reserve.parameters)
    forms["reserve-memory"] = replace(reserve, parameters=parameters)
    forms["login"] = replace(login, secret_result=True)
    return service


async def answer(request: Request) -> Response:
    """A squeezed that has memory for some."""
    match request.function:
        case "login":
            return Response((("session_id", b"the session"),))
        case "reserve-memory" if dict(request.arguments)["kib"] == b"0":
            return error_response("2", "no session 'the session'")
        case "reserve-memory":
            return Response((("reservation_id", b"\xff1"), ("surplus", b"1")))
        case "balance-memory":
            return Response(())
        case _:
            return error_response("1", request.function)


async def test_the_exchanges_of_the_tree(connect: Callable[[], Any]) -> None:
    """Counted by kind and method; records hold the values, but for secrets and what is not written down."""
    store, watched = await connect(), await connect()
    compared: list[Pair] = []
    observation = Observation(squeezed(), watched, "squeezed", [], lambda *pair: compared.append(pair[:2]), no_tap())
    calls = [
        ("login", (("service_name", b"xenopsd"),)),
        ("reserve-memory", (("kib", b"1024"), ("session_id", b"the session"), ("more", b"2"))),
        ("reserve-memory", (("kib", b"0"), ("session_id", b"the session"))),
        ("balance-memory", ()),
        ("unheard-of", (("password", b"the session"),)),
    ]
    server = Server(store, "squeezed", answer, pid=os.getpid())
    await server.register()
    await store.mkdir("/squeezed/rpc/response")
    async with asyncio.TaskGroup() as tasks:
        observation.arrange(tasks, tree=True, sockets=True)
        # Slow callers, so that all of it is read: nobody removes anything before it was.
        for number, (function, arguments) in enumerate(calls):
            where = f"/squeezed/rpc/request/{function}/id-{number}"
            async with store.transaction() as tx:
                await tx.mkdir(where)
                for name, value in arguments:
                    await tx.write(f"{where}/{name}", value)
        serving = tasks.create_task(server.run())
        await until(lambda: observation.counts() == (5, 5))
        await observation.stop()
        await server.stop()
        await serving
    status = observation.status()
    assert status["exchanges"] == {
        "seen": 5,
        "complete": 5,
        "incomplete": {"no arguments": 0, "no response": 0, "identity": 0},
        "open": 0,
        "lost": 0,
        "gaps": 0,
    }
    assert status["methods"] == {
        "login": {"seen": 1, "complete": 1},
        "reserve_memory": {"seen": 2, "complete": 2},
        "balance_memory": {"seen": 1, "complete": 1},
        "(unknown functions)": {"seen": 1, "complete": 1},
    }
    assert len(compared) == 5
    assert {request.function for request, _ in compared} == {function for function, _ in calls}
    assert "the session" not in json.dumps(status)


async def test_hundreds_of_tight_calls(connect: Callable[[], Any]) -> None:
    """Every call is in the counts and in the methods; what is compared is what crossed."""
    store, callers, watched = await connect(), await connect(), await connect()
    compared: list[Pair] = []
    observation = Observation(squeezed(), watched, "squeezed", [], lambda *pair: compared.append(pair[:2]), no_tap())
    server = Server(store, "squeezed", answer, pid=os.getpid())
    await server.register()
    await store.mkdir("/squeezed/rpc/request/login/first")
    caller = Caller(callers, "squeezed")
    async with asyncio.TaskGroup() as tasks:
        observation.arrange(tasks, tree=True, sockets=False)
        await until(lambda: observation.counts()[0] == 1)
        serving = tasks.create_task(server.run())

        async def call(first: int) -> None:
            for number in range(first, 400, 4):
                await caller.call("login", (("service_name", b"%d" % number),), timeout=40, request_id=f"id-{number}")

        await asyncio.gather(*(call(first) for first in range(4)))
        await until(lambda: observation.counts()[0] == 401 and observation.status()["exchanges"]["open"] == 0)
        await observation.stop()
        await server.stop()
        await serving
    exchanges = observation.status()["exchanges"]
    assert exchanges["seen"] == exchanges["complete"] + sum(exchanges["incomplete"].values()) == 401
    assert observation.status()["methods"]["login"]["seen"] == 401
    assert len(compared) == exchanges["complete"] > 0
    for request, response in compared:
        sent = () if request.request_id == "first" else (("service_name", request.request_id[3:].encode()),)
        assert (request.arguments, response.results) == (sent, (("session_id", b"the session"),))


async def test_what_is_told_of_it_fails(connect: Callable[[], Any], caplog: pytest.LogCaptureFixture) -> None:
    """A failure behind on_complete is logged; the observation goes on."""
    store, watched = await connect(), await connect()

    def fail(*_: object) -> None:
        raise RuntimeError("behind")

    observation = Observation(squeezed(), watched, "squeezed", [], fail, no_tap())
    async with asyncio.TaskGroup() as tasks:
        observation.arrange(tasks, tree=True, sockets=False)
        for number in (1, 2):
            await store.mkdir(f"/squeezed/rpc/request/balance-memory/id-{number}")
            await store.mkdir(f"/squeezed/rpc/response/balance-memory/id-{number}")
            await until(lambda number=number: observation.counts() == (number, number))
        await observation.stop()
    assert "RuntimeError: behind" in caplog.text


async def test_arranged_anew(connect: Callable[[], Any]) -> None:
    """While it goes on the counts go on, and it is not begun twice; stopped and begun again they start from nothing."""
    store, watched = await connect(), await connect()
    observation = Observation(squeezed(), watched, "squeezed", [Path("/nowhere/memory")], lambda *_: None, no_tap())
    async with asyncio.TaskGroup() as tasks:
        observation.arrange(tasks, tree=True, sockets=True)
        await store.mkdir("/squeezed/rpc/request/echo/id-1")
        await until(lambda: observation.counts()[0] == 1)
        observation.arrange(tasks, tree=True, sockets=False)
        await store.mkdir("/squeezed/rpc/request/echo/id-2")
        await until(lambda: observation.counts()[0] == 2)
        observation.arrange(tasks, tree=False, sockets=False)
        await until(lambda: observation.status()["exchanges"]["open"] == 0)
        await store.mkdir("/squeezed/rpc/request/echo/id-3")
        assert sum(observation.status()["exchanges"]["incomplete"].values()) == 2
        observation.arrange(tasks, tree=True, sockets=False)
        assert observation.counts() == (0, 0)
        await until(lambda: observation.counts()[0] == 3)
        await observation.stop()
        await observation.stop()


async def test_a_tree_that_cannot_be_watched(
    connect: Callable[[], Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator reads why; nothing else of the service is touched by it."""
    watched = await connect()
    observation = Observation(squeezed(), watched, "squeezed", [], lambda *_: None, no_tap())

    async def refuse(path: str, token: str | None = None) -> None:
        raise StoreRefused("EQUOTA", "WATCH", path)

    monkeypatch.setattr(watched, "watch", refuse)
    async with asyncio.TaskGroup() as tasks:
        observation.arrange(tasks, tree=True, sockets=False)
    assert "squeezed: its tree cannot be observed: xenstore answered EQUOTA to WATCH /squeezed/rpc" in caplog.text


@pytest.mark.parametrize(
    ("kept", "shown"), [(50, f"{COMMAND} ({os.getpid()})"), (0, "others")], ids=["named", "others"]
)
async def test_who_is_at_the_sockets(directory: Path, monkeypatch: pytest.MonkeyPatch, kept: int, shown: str) -> None:
    """Connections are counted with their callers, those that have gone too; no payload, at most so many names."""
    monkeypatch.setattr(observing, "CALLERS_KEPT", kept)
    path = directory / "memory"
    observation = Observation(squeezed(), None, None, [path], lambda *_: None, no_tap())
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(10)

        def connected() -> tuple[socket.socket, socket.socket]:
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(path))
            return client, listener.accept()[0]

        def status() -> dict[str, Any]:
            return observation.status()["sockets"][str(path)]

        async with asyncio.TaskGroup() as tasks:
            observation.arrange(tasks, tree=True, sockets=True)
            first = connected()
            await until(lambda: status()["open"] == 1)
            second = connected()
            await until(lambda: status()["open"] == 2)
            assert status() == {"connections": 2, "open": 2, "payloads": 0, "callers": {shown: 2}}
            for end in (*first, *second):
                end.close()
            await until(lambda: status()["open"] == 0)
            assert status() == {"connections": 2, "open": 0, "payloads": 0, "callers": {shown: 2}}
            await observation.stop()
    assert json.loads(json.dumps(observation.status())) == observation.status()
