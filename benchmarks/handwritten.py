"""What one would write by hand in an hour: five shims on the standard library, dbus-fast and pyxs.

    handwritten.py http-to-bus  --socket PATH --bus ADDRESS
    handwritten.py http-relay   --socket PATH --legacy PATH
    handwritten.py bus-to-http  --bus ADDRESS --legacy PATH
    handwritten.py bus-to-store --bus ADDRESS --store SOCKET --tree NAME
    handwritten.py store-to-bus --bus ADDRESS --store SOCKET --tree NAME

They do what the measured calls need and no more: no deadlines, no reconnecting, no exactly-once, types guessed by the
value's looks, integers that do not fit XML-RPC's 32 bits as text. That is less work per call than the bridge does.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import http.client
import os
import queue
import socket
import socketserver
import sys
import threading
import uuid
import xmlrpc.client
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler

import pyxs
from dbus_fast import Message, MessageType, Variant
from dbus_fast.aio import MessageBus

SERVICES = {
    "reserve_memory": ("squeezed", "Memory", "ReserveMemory", "ssx"),
    "query": ("xenopsd", "Xenops", "Query", "s"),
    "VM.stat": ("xenopsd", "VM", "Stat", "ss"),
    "VM.list": ("xenopsd", "VM", "List", "s"),
    "VM.export_metadata": ("xenopsd", "VM", "ExportMetadata", "ss"),
}
BY_MEMBER = {member: (method, signature) for method, (_, _, member, signature) in SERVICES.items()}


class BusThread:
    """A connection to the bus on an event loop of its own thread, for threads that call and wait."""

    def __init__(self, address: str) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self._bus = self.run(self._connect(address)).result()

    async def _connect(self, address: str) -> MessageBus:
        return await MessageBus(bus_address=address).connect()

    def run(self, work: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def call(self, method: str, arguments: list[Any]) -> list[Any]:
        service, name, member, signature = SERVICES[method]
        message = Message(
            destination=f"org.xen.xcp.{service}.Candidate",
            path=f"/org/xen/xcp/{service}/{name}",
            interface=f"org.xen.xcp.{service}.{name}1",
            member=member,
            signature=signature,
            # A method without arguments has a nil in the end that the bus does not have.
            body=[int(value) if code == "x" else value for value, code in zip(arguments, signature, strict=False)],
        )
        reply = self.run(self._bus.call(message)).result()
        if reply.message_type is MessageType.ERROR:
            raise RuntimeError(f"{reply.error_name}: {reply.body}")
        return reply.body


def from_bus(value: Any) -> Any:
    """Variants opened; integers as text, since XML-RPC has 32 bits for them."""
    match value:
        case Variant():
            return from_bus(value.value)
        case dict():
            return {key: from_bus(item) for key, item in value.items()}
        case list() | tuple():
            return [from_bus(item) for item in value]
        case bool():
            return value
        case int():
            return str(value)
    return value


def to_bus(value: Any) -> Any:
    """A value as a variant, its type guessed."""
    match value:
        case bool():
            return Variant("b", value)
        case int():
            return Variant("x", value)
        case float():
            return Variant("d", value)
        case dict():
            return Variant("a{sv}", {key: to_bus(item) for key, item in value.items()})
        case list():
            return Variant("av", [to_bus(item) for item in value])
    return Variant("s", str(value))


class Handler(SimpleXMLRPCRequestHandler):
    """XML-RPC on a Unix socket, at any path."""

    rpc_paths = ()
    disable_nagle_algorithm = False

    def log_message(self, *_: Any) -> None:
        """A Unix client has no address to log."""


class XmlRpcServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer, SimpleXMLRPCDispatcher):
    """xmlrpc.server on a Unix socket, a thread per connection."""

    request_queue_size = 128
    daemon_threads = True
    logRequests = False  # noqa: N815 -- the name that xmlrpc.server reads
    _send_traceback_header = False

    def __init__(self, path: str, bus: BusThread) -> None:
        SimpleXMLRPCDispatcher.__init__(self, allow_none=True)
        socketserver.UnixStreamServer.__init__(self, path, Handler)
        self._bus = bus

    def _dispatch(self, method: str, params: Any) -> Any:
        arguments = list(params[0].values()) if isinstance(params[0], dict) else list(params)
        results = [from_bus(value) for value in self._bus.call(method, arguments)]
        return {"Status": "Success", "Value": results[0] if len(results) == 1 else results}


class Relay(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Bytes to the legacy daemon and back, a thread per connection."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self, path: str, legacy: str) -> None:
        super().__init__(path, RelayHandler)
        self.legacy = legacy


class RelayHandler(socketserver.StreamRequestHandler):
    """One request."""

    def handle(self) -> None:
        head = b""
        length = 0
        while (line := self.rfile.readline()) not in (b"\r\n", b""):
            head += line
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        assert isinstance(self.server, Relay)
        with socket.socket(socket.AF_UNIX) as legacy:
            legacy.connect(self.server.legacy)
            legacy.sendall(head + b"\r\n" + self.rfile.read(length))
            while block := legacy.recv(1 << 18):
                self.connection.sendall(block)


class UnixConnection(http.client.HTTPConnection):
    """http.client on a Unix socket."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.host)


def over_http(path: str, method: str, arguments: list[Any]) -> Any:
    """One call to the legacy daemon."""
    named = dict(zip(("debug_info", "id"), arguments, strict=False))
    connection = UnixConnection(path)
    try:
        connection.request("POST", "/", xmlrpc.client.dumps((named,), method))
        (envelope,), _ = xmlrpc.client.loads(connection.getresponse().read())
    finally:
        connection.close()
    if envelope["Status"] != "Success":
        raise RuntimeError(envelope["ErrorDescription"])
    return envelope["Value"]


class StoreCaller:
    """Calls through the tree over pyxs, a client a thread."""

    def __init__(self, path: str, tree: str) -> None:
        self._path = path
        self._tree = tree
        self._local = threading.local()

    def call(self, arguments: dict[str, str]) -> str:
        """The reservation."""
        if not hasattr(self._local, "client"):
            self._local.client = pyxs.Client(unix_socket_path=self._path)
            self._local.client.connect()
        client = self._local.client
        identity = str(uuid.uuid4())
        request = f"/{self._tree}/rpc/request/reserve-memory/{identity}".encode()
        response = f"/{self._tree}/rpc/response/reserve-memory/{identity}".encode()
        while True:
            client.transaction()
            client.mkdir(request)
            for name, value in arguments.items():
                client.write(request + b"/" + name.encode(), value.encode())
            if client.commit():
                break
        with client.monitor() as monitor:
            monitor.watch(response, b"X")
            while not client.exists(response):
                monitor.events.get(timeout=30)
        result = client.read(response + b"/reservation_id").decode()
        client.delete(request)
        client.delete(response)
        return str(result)


async def serve_bus(options: argparse.Namespace) -> None:
    """Answers on the bus by calling the legacy daemon in threads."""
    bus = await MessageBus(bus_address=options.bus).connect()
    loop = asyncio.get_running_loop()
    threads = ThreadPoolExecutor(16)
    store = StoreCaller(options.store, options.tree) if options.store else None

    def ask(member: str, body: list[Any]) -> tuple[str, list[Any]]:
        if store is not None:
            return "s", [store.call({"session_id": body[1], "kib": str(body[2])})]
        result = over_http(options.legacy, BY_MEMBER[member][0], body)
        if isinstance(result, str):
            return "s", [result]
        return "v", [to_bus(result)]

    async def answer(message: Message) -> None:
        try:
            reply = Message.new_method_return(
                message, *await loop.run_in_executor(threads, ask, message.member, message.body)
            )
        except Exception as error:
            reply = Message.new_error(message, "org.xen.xcp.Error.Internal", str(error))
        await bus.send(reply)

    running: set[asyncio.Task[None]] = set()

    def handle(message: Message) -> bool:
        if message.message_type is not MessageType.METHOD_CALL or message.member not in BY_MEMBER:
            return False
        task = loop.create_task(answer(message))
        running.add(task)
        task.add_done_callback(running.discard)
        return True

    bus.add_message_handler(handle)
    await bus.request_name("org.xen.xcp.byhand.squeezed" if store else "org.xen.xcp.byhand.xenopsd")
    print("serving", flush=True)
    await bus.wait_for_disconnect()


def serve_store(options: argparse.Namespace) -> None:
    """Serves the tree: events say what is asked, one request at a time is answered from the bus."""
    bus = BusThread(options.bus)
    client = pyxs.Client(unix_socket_path=options.store)
    client.connect()
    monitor = client.monitor()
    work = copy.copy(client)
    root = f"/{options.tree}/rpc/request"
    work.write(f"/{options.tree}/pid".encode(), str(os.getpid()).encode())
    monitor.watch(root.encode(), b"X")
    print("serving", flush=True)
    done: OrderedDict[str, None] = OrderedDict()
    while True:
        try:
            parts = monitor.events.get(timeout=60).path.decode().removeprefix(root).split("/")
        except queue.Empty:
            continue
        if len(parts) < 3 or parts[2] in done:
            continue
        done[parts[2]] = None
        if len(done) > 10000:
            done.popitem(last=False)
        request = f"{root}/{parts[1]}/{parts[2]}"
        response = f"/{options.tree}/rpc/response/{parts[1]}/{parts[2]}"
        session, kib = (work.read(f"{request}/{name}".encode()).decode() for name in ("session_id", "kib"))
        (reservation,) = bus.call("reserve_memory", ["", session, kib])
        while True:
            work.transaction()
            work.mkdir(response.encode())
            work.write(f"{response}/reservation_id".encode(), reservation.encode())
            if work.commit():
                break


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Shims as one would write them by hand.")
    parser.add_argument("shim", choices=("http-to-bus", "http-relay", "bus-to-http", "bus-to-store", "store-to-bus"))
    for option in ("--socket", "--bus", "--legacy", "--store", "--tree"):
        parser.add_argument(option)
    options = parser.parse_args()
    match options.shim:
        case "http-to-bus" | "http-relay":
            relays = options.shim == "http-relay"
            server = (Relay if relays else XmlRpcServer)(
                options.socket, options.legacy if relays else BusThread(options.bus)
            )
            print("serving", flush=True)
            server.serve_forever()
        case "store-to-bus":
            serve_store(options)
        case _:
            asyncio.run(serve_bus(options))
    sys.exit("the connection to the bus is lost")


if __name__ == "__main__":
    main()
