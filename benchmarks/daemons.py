"""Daemons that answer the measured calls at once with canned answers, so that what stands before them is measured.

    daemons.py legacy --http PATH [--store SOCKET --tree NAME] --pidfile FILE [--background]
    daemons.py bus --bus ADDRESS

Run with the checkout in PYTHONPATH. The example daemons take longer than the bridge for most calls and would hide it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
from pathlib import Path
from typing import Any, Final

from benchmarks.calls import CALLS, RESERVATION
from bridges import dbus_translation, xmlrpc_translation
from bridges.interfaces import model
from dbus_side import names
from dbus_side.bus import Bus, MethodCall
from dbus_side.exported import ObjectTree
from dbus_side.introspection import Argument, Interface, Method, Property
from examples.legacy_process import add_options, enter
from xenstore_rpc.connection import Store
from xenstore_rpc.records import Request, Response
from xenstore_rpc.rpc import Server
from xmlrpc_gateway import dialects, xmlrpc_codec

CANDIDATE: Final = Interface(
    "org.xen.xcp.Candidate1",
    (Method("Assume", (Argument("epoch", "t"),)), Method("Yield", (Argument("epoch", "t"),))),
    properties=(Property("Epoch", "t"),),
)
_LENGTH: Final = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_METHOD: Final = re.compile(rb"<methodName>([^<]*)<")


class CannedHttp(asyncio.Protocol):
    """One connection: a request, its canned reply, the end."""

    def __init__(self, replies: dict[bytes, bytes]) -> None:
        self._replies = replies
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not separator or length is None or len(body) < int(length[1]):
            return
        method = _METHOD.search(body)
        if method is not None and method[1] in self._replies:
            self._transport.write(self._replies[method[1]])
        self._transport.close()


async def serve_legacy(options: argparse.Namespace, serving: Any) -> None:
    """Answers at the HTTP socket and, when asked to, in the tree, until SIGTERM."""
    replies = {}
    for call in CALLS.values():
        body = call.reply()
        head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nuser-agent: canned\r\n\r\n" % len(body)
        replies[call.method.encode()] = head + body
    options.http.unlink(missing_ok=True)
    loop = asyncio.get_running_loop()
    async with await loop.create_unix_server(lambda: CannedHttp(replies), str(options.http), backlog=1024):
        if options.store is None:
            serving("canned legacy daemon")
            await until_told()
        else:
            await _serve_tree(options, serving)


async def _serve_tree(options: argparse.Namespace, serving: Any) -> None:
    store = Store(options.store)
    await store.connect()
    server = Server(store, options.tree, _reserve, pid=os.getpid())
    await server.register()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        serving("canned legacy daemon")
        await until_told()
        await server.stop()
    await store.close()


async def _reserve(request: Request) -> Response:
    assert request.function == "reserve-memory"
    return Response((("reservation_id", RESERVATION.encode()),))


async def serve_bus(options: argparse.Namespace) -> None:
    """Answers as the candidate of both services, in charge or not, until SIGTERM."""
    buses = [await _serve_service(options.bus, service) for service in ("squeezed", "xenopsd")]
    print("serving", flush=True)
    await until_told()
    for bus in buses:
        await bus.close()


async def _serve_service(address: str, service: str) -> Bus:
    bus = await Bus.connect(address)
    translation = dbus_translation.Translation(model.load(service))
    answers = _bus_answers(service, translation)
    objects = ObjectTree()

    async def answer(call: MethodCall, _method: Method) -> tuple[Any, ...]:
        return answers[call.member]

    async def answer_candidate(call: MethodCall, _method: Method) -> tuple[Any, ...]:
        name = names.service_name(service)
        if call.member == "Assume":
            await bus.request_name(name, allow_replacement=True, queue=True)
        else:
            await bus.release_name(name)
        return ()

    objects.add(f"/org/xen/xcp/{service}", CANDIDATE, answer_candidate, {"Epoch": lambda: 0})
    for name, interface in dbus_translation.interfaces(translation).items():
        objects.add(names.object_path(service, name), interface, answer)
    bus.serve(objects.answer)
    await bus.request_name(names.candidate_name(service))
    return bus


def _bus_answers(service: str, translation: dbus_translation.Translation) -> dict[str, tuple[Any, ...]]:
    """The same answers as the legacy daemon's, by member."""
    xml = xmlrpc_translation.Translation(dialects.DIALECTS["rpclib"])
    answers = {}
    for call in CALLS.values():
        method = translation.service.method(call.method) if call.service == service else None
        if method is not None:
            opened = dialects.open_envelope(xmlrpc_codec.decode_response(call.reply()))
            assert isinstance(opened, dialects.Success)
            value = xml.of(method).read_result(opened.value)
            answers[call.member] = translation.of(method).write_result(value)
    return answers


async def until_told() -> None:
    """Returns at SIGTERM."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


def run(work: Any) -> Any:
    """What the work gives, on uvloop when it is there, as the bridge."""
    try:
        import uvloop  # noqa: PLC0415 -- an extra
    except ImportError:
        return asyncio.run(work)
    else:
        return uvloop.run(work)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Daemons with canned answers.")
    commands = parser.add_subparsers(dest="command", required=True)
    legacy = commands.add_parser("legacy")
    legacy.add_argument("--http", type=Path, required=True)
    legacy.add_argument("--store")
    legacy.add_argument("--tree", default="squeezed")
    add_options(legacy)
    commands.add_parser("bus").add_argument("--bus", required=True)
    options = parser.parse_args()
    if options.command == "bus":
        run(serve_bus(options))
    else:
        run(serve_legacy(options, enter(options)))


if __name__ == "__main__":
    main()
