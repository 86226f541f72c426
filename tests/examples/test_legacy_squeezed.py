"""The small legacy squeezed answers as the facts about the real one say, at both of its doors."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from examples.legacy_http import write_call
from tests.fixtures_host import Host
from tests.fixtures_xenstored import running_store
from xenstore_rpc.connection import Store
from xenstore_rpc.rpc import Caller

Ask = Callable[..., Awaitable[object]]
TOKENS = {"session_id": "me"}


@pytest.fixture
async def memory(host: Host) -> Path:
    """A running squeezed on a host of 1000 KiB: the path of its socket."""
    host.legacy["squeezed"] += ["--host-kib", "1000"]
    await host.start_legacy("squeezed")
    return host.path("memory")


@pytest.mark.usefixtures("memory")
async def test_the_tree_answers_with_the_codes_of_the_convention(ask_tree: Ask, store: Store) -> None:
    """Every error code, with the description that its readers expect."""
    reserve = "reserve-memory"
    assert await ask_tree("login", service_name="me") == {"session_id": "me"}
    assert await ask_tree("reopen-logs") == {"code": "1", "description": "reopen-logs"}
    assert await ask_tree(reserve, **TOKENS, kib=" 1") == {"code": "2", "description": 'Failure("Int64.of_string")'}
    assert (await ask_tree("login", service_name=""))["code"] == "2"
    assert await ask_tree(reserve, kib="1") == {"code": "3", "description": "session_id"}
    assert await ask_tree(reserve, **TOKENS, kib="-1") == {"code": "1003", "description": "kib"}
    too_much = await ask_tree("reserve-memory-range", **TOKENS, min="0x7d0", max="3000")
    assert too_much == {"code": "1000", "description": "2000,1000"}
    backwards = await ask_tree("reserve-memory-range", **TOKENS, min="2", max="1")
    assert backwards == {"code": "1003", "description": "min"}
    unknown = await ask_tree("transfer-reservation-to-domain", **TOKENS, reservation_id="none", domid="5")
    assert unknown == {"code": "1002", "description": "none"}
    for domid in ("7", "9"):
        await store.write(f"/local/domain/{domid}/memory/uncooperative", b"")
    unwilling = await ask_tree(reserve, **TOKENS, kib="2000")
    assert unwilling["code"] == "1001"
    assert sorted(unwilling["description"].split(",")) == ["7", "9"]


@pytest.mark.usefixtures("memory")
async def test_the_tree_answers_what_has_no_results_and_what_has_empty_ones(ask_tree: Ask) -> None:
    """balance-memory is an empty directory on the way in and out; echo gives back an empty text."""
    assert await ask_tree("balance-memory") == {}
    assert await ask_tree("delete-reservation", **TOKENS, reservation_id="none") == {}
    assert await ask_tree("echo", a="", b="x y") == {"a": "", "b": "x y"}


async def test_both_doors_share_the_reservations(ask_tree: Ask, ask_http: Ask, memory: Path, store: Store) -> None:
    """What is reserved at one door is in the store, and can be transferred at the other."""
    answer = await ask_tree("reserve-memory-range", **TOKENS, min="100", max="5000")
    reservation = answer["reservation_id"]
    assert answer["kib"] == "1000"
    assert await store.read(f"/squeezed/state/me/{reservation}") == b"1000"
    assert await ask_http(memory, "reserve_memory", "d", "me", 1) == (
        "failure",
        ["Cannot_free_this_much_memory", ["1", "0"]],
    )
    assert await ask_http(memory, "transfer_reservation_to_domain", "d", "me", reservation, 5) is None
    assert await store.read("/local/domain/5/memory/initial-reservation") == b"1000"
    assert await ask_http(memory, "query_reservation_of_domain", "d", "me", 5) == reservation
    assert await ask_tree("login", service_name="me") == {"session_id": "me"}
    assert await store.directory_or_empty("/squeezed/state") == []


async def test_the_socket_answers_in_the_words_of_the_memory_interface(ask_http: Ask, memory: Path) -> None:
    """Results by their types, errors as constructors, what cannot be unmarshalled as Internal_error."""
    range_answer = await ask_http(memory, "reserve_memory_range", "d", "me", 1, 10)
    assert isinstance(range_answer, list)
    assert range_answer[1] == "10"
    assert await ask_http(memory, "get_domain_zero_policy", "d") == ["Auto_balloon", ["536870912", "4294967296"]]
    assert await ask_http(memory, "get_host_initial_free_memory", "d") == str(1000 * 1024)
    invalid = await ask_http(memory, "reserve_memory", "d", "me", -5)
    assert invalid == ("failure", ["Invalid_memory_value", "-5"])
    nobody = await ask_http(memory, "transfer_reservation_to_domain", "d", "me", "none", 5)
    assert nobody == ("failure", ["Unknown_reservation", "none"])
    assert await ask_http(memory, "query_reservation_of_domain", "d", "me", 77) == ("failure", "No_reservation")
    count = 'Idl.MarshalError("Incorrect number of arguments")'
    assert await ask_http(memory, "login", "d") == ("failure", ["Internal_error", count])


async def test_the_socket_has_the_manners_of_a_legacy_daemon(exchange: Ask, memory: Path) -> None:
    """One call a connection, two headers, an empty 404 for other methods, silence for what it cannot read."""
    body = write_call("login", ["d", "me"])
    head = b"POST /whatever HTTP/1.1\r\ncontent-length: %d\r\n\r\n"
    reply = await exchange(memory, head % len(body) + body)
    assert isinstance(reply, bytes)
    headers, _, answer = reply.partition(b"\r\n\r\n")
    assert headers == b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nuser-agent: squeezed" % len(answer)
    other = await exchange(memory, b"GET / HTTP/1.1\r\n\r\n")
    assert other == b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nuser-agent: squeezed\r\n\r\n"
    assert await exchange(memory, b"POST / HTTP/1.1\r\n\r\n" + body) == b""
    assert await exchange(memory, head % 4 + b"junk") == b""
    unknown = write_call("reopen_logs", ["d"])
    assert await exchange(memory, head % len(unknown) + unknown) == b""


async def test_every_execution_is_counted_at_either_door(
    host: Host, ask_tree: Ask, ask_http: Ask, memory: Path
) -> None:
    """One line each, under one name; what is refused before it runs is not counted."""
    await ask_tree("reserve-memory", session_id="t1", kib="1")
    await ask_http(memory, "reserve_memory", "d", "t2", 1)
    await ask_http(memory, "reserve_memory", "d", "t2", "many")
    await ask_tree("reserve-memory", session_id="t3")
    await ask_tree("nothing", session_id="t4")
    assert host.executions() == {("reserve_memory", "t1"): 1, ("reserve_memory", "t2"): 1}
    assert host.sides() == {"legacy": 2}


async def test_requests_older_than_the_daemon_are_served(host: Host, store: Store) -> None:
    """A request that waits in the store when the daemon starts gets its answer."""
    await store.mkdir("/squeezed/rpc/request/balance-memory/old")
    await host.start_legacy("squeezed")
    responses = "/squeezed/rpc/response/balance-memory"
    watch = await store.watch(responses)
    async with asyncio.timeout(20):
        while "old" not in await store.directory_or_empty(responses):
            await watch.next()


@pytest.mark.parametrize("kind", ["oxenstored", "embedded"])
async def test_more_requests_than_a_listing_holds_are_served(
    kind: str, host: Host, request: pytest.FixtureRequest
) -> None:
    """150 names are over 4096 bytes: oxenstored sends them in one long packet, the embedded store says E2BIG."""
    async with running_store(kind, lambda: request.getfixturevalue("xenstored_stub")) as process:
        host.legacy["squeezed"] += ["--xenstore", process.socket]
        await host.start_legacy("squeezed")
        store = Store(process.socket)
        await store.connect()
        try:
            caller = Caller(store, "squeezed")
            calls = (caller.call("login", [("service_name", b"s%d" % n)], timeout=20) for n in range(150))
            answers = await asyncio.gather(*calls)
        finally:
            await store.close()
    assert [answer.results for answer in answers] == [(("session_id", b"s%d" % n),) for n in range(150)]


async def test_it_ends_when_its_store_does(host: Host) -> None:
    """Without xenstored the daemon does not linger."""
    await host.start_legacy("squeezed")
    ended = asyncio.Event()
    pidfd = os.pidfd_open(host.legacy_pid("squeezed"))
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        await host.store.kill()
        async with asyncio.timeout(20):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)


async def test_it_returns_when_it_serves_and_ends_by_sigterm(host: Host, store: Store) -> None:
    """The pid file and the pid in the store name the daemon that was left behind."""
    await host.start_legacy("squeezed")
    pid = host.legacy_pid("squeezed")
    assert await store.read("/squeezed/pid") == str(pid).encode()
    ended = asyncio.Event()
    pidfd = os.pidfd_open(pid)
    asyncio.get_running_loop().add_reader(pidfd, ended.set)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        async with asyncio.timeout(20):
            await ended.wait()
    finally:
        asyncio.get_running_loop().remove_reader(pidfd)
        os.close(pidfd)
