"""A xapi with a large pool, on either side: VM.get_all_records with canned answers, imports and exports of any size.

    pool.py legacy --socket PATH --vms 10,1000 --pidfile FILE [--background]
    pool.py bus --bus ADDRESS --vms 10,1000

Run with the checkout in PYTHONPATH. The session that a caller names is the number of VMs that it wants. The bytes of
every answer are made once, so that the time of the daemon is that of sending them.
"""

from __future__ import annotations

import argparse
import re
import socketserver
import struct
import sys
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[1]
sys.path.append(str(ROOT / "examples"))  # they find each other there

from legacy_process import add_options, enter  # noqa: E402
from legacy_xapi_http import XML, xml_value  # noqa: E402
from legacy_xapi_objects import Database, Model  # noqa: E402
from legacy_xapi_population import populate  # noqa: E402

from benchmarks.daemons import CANDIDATE, run, until_told  # noqa: E402
from bridges import dbus_translation, xmlrpc_translation  # noqa: E402
from bridges.interfaces import model  # noqa: E402
from dbus_side import frames, names  # noqa: E402
from dbus_side.bus import Bus, Reply  # noqa: E402
from dbus_side.exported import ObjectTree  # noqa: E402
from dbus_side.introspection import Method  # noqa: E402
from dbus_side.messages import MethodCall  # noqa: E402
from xmlrpc_gateway import dialects, xmlrpc_codec  # noqa: E402

SERVICE: Final = "xapi"
METHOD: Final = "VM.get_all_records"
BLOCK: Final = 1 << 20
UNLIMITED: Final = xmlrpc_codec.Limits(size=1 << 30, tags=1 << 30)  # where the bridge's end is for a caller to see
_SESSION: Final = re.compile(rb"pool-(\d+)")
_COUNT: Final = re.compile(rb"count=(\d+)")
_MARK: Final = 0x7A7B7C7D  # a serial that is easily found
_UNREAD_ABOVE: Final = 4096


def session(vms: int) -> str:
    """What asks for so many VMs."""
    return f"pool-{vms}"


def records(vms: int) -> int:
    """How many records the answer has: a template and a control domain come with the VMs."""
    return vms + 2


def answer_of(vms: int) -> bytes:
    """The XML-RPC answer of the small legacy xapi with so many VMs."""
    database = Database(Model())
    populate(database, 1, vms)
    found = {ref: row.record for ref, row in database.tables["VM"].items()}
    return XML.format(xml_value({"Status": "Success", "Value": found})).encode()


class Exchange(socketserver.StreamRequestHandler):
    """One connection: a request, its answer, the end."""

    server: LegacyXapi

    def handle(self) -> None:
        first, length = self.rfile.readline(), 0
        while (line := self.rfile.readline()).strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        if first.startswith(b"GET") and (count := _COUNT.search(first)) is not None:
            self._export(int(count[1]))
        elif first.startswith(b"PUT"):
            self._import(length)
        elif (wanted := _SESSION.search(self.rfile.read(length))) is not None:
            body = self.server.answers[int(wanted[1])]
            self._head(len(body))
            self.request.sendall(body)

    def _head(self, length: int) -> None:
        self.request.sendall(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % length)

    def _export(self, count: int) -> None:
        self._head(count)
        block = memoryview(bytes(BLOCK))
        while count > 0:
            self.request.sendall(block[:count])
            count -= BLOCK

    def _import(self, count: int) -> None:
        block = memoryview(bytearray(BLOCK))
        while count > 0 and (received := self.rfile.readinto(block[:count])):
            count -= received
        self._head(0)


class LegacyXapi(socketserver.ThreadingUnixStreamServer):
    """The legacy side."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, path: Path, sizes: list[int]) -> None:
        self.answers = {vms: answer_of(vms) for vms in sizes}
        path.unlink(missing_ok=True)
        super().__init__(str(path), Exchange)

    def handle_error(self, *_of: object) -> None:
        """A caller that leaves is none of ours to report."""


class CannedBus(Bus):
    """A connection that marshals an answer once for each caller; after that only serials are put into its bytes."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._made: dict[tuple[str, int], bytes] = {}

    def _reply(self, call: MethodCall, signature: str, body: tuple[Any, ...]) -> bytes:
        key = (call.sender, id(body))
        if key not in self._made:
            self._made[key] = super()._reply(call._replace(serial=_MARK), signature, body)
        wire = bytearray(self._made[key])
        struct.pack_into("=I", wire, 8, self._next_serial())
        struct.pack_into("=I", wire, wire.index(struct.pack("=I", _MARK), 16), call.serial)
        return bytes(wire)


class UnreadBus(Bus):
    """A caller's connection that leaves large answers as they came: what a caller does with one is its own affair."""

    def _receive(self, frame: bytes) -> None:
        if len(frame) <= _UNREAD_ABOVE or frame[1] != frames.METHOD_RETURN:
            super()._receive(frame)
            return
        serial = self._library.unmarshal(frames.without_body(frame)).reply_serial
        if (future := self._pending.pop(serial, None)) is not None and not future.done():
            future.set_result(Reply("ay", (frame,)))


async def serve_bus(address: str, sizes: list[int]) -> None:
    """Answers as the candidate of xapi, in charge or not, until SIGTERM."""
    service = model.load(SERVICE)
    method = service.method(METHOD)
    assert method is not None
    translation = dbus_translation.Translation(service)
    form = translation.of(method)
    xml = xmlrpc_translation.Translation(dialects.DIALECTS[service.dialect]).of(method)
    answers: dict[str, tuple[Any, ...]] = {}
    for vms in sizes:
        opened = dialects.open_envelope(xmlrpc_codec.decode_response(answer_of(vms), UNLIMITED))
        assert isinstance(opened, dialects.Success)
        answers[session(vms)] = form.write_result(xml.read_result(opened.value))
    bus = await CannedBus.connect(address)

    async def answer(call: MethodCall, _method: Method) -> tuple[Any, ...]:
        return answers[call.body[0]]

    async def answer_candidate(call: MethodCall, _method: Method) -> tuple[Any, ...]:
        name = names.service_name(SERVICE)
        if call.member == "Assume":
            await bus.request_name(name, allow_replacement=True, queue=True)
        else:
            await bus.release_name(name)
        return ()

    objects = ObjectTree()
    objects.add(names.service_path(SERVICE), CANDIDATE, answer_candidate, {"Epoch": lambda: 0})
    objects.add(form.path, dbus_translation.interface_of(translation, method.object), answer)
    bus.serve(objects.answer)
    await bus.request_name(names.candidate_name(SERVICE))
    print("serving", flush=True)
    await until_told()
    await bus.close()


def _sizes(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A xapi with a large pool and canned answers.")
    commands = parser.add_subparsers(dest="command", required=True)
    legacy, bus = commands.add_parser("legacy"), commands.add_parser("bus")
    for command in (legacy, bus):
        command.add_argument("--vms", type=_sizes, required=True)
    legacy.add_argument("--socket", type=Path, required=True)
    add_options(legacy)
    bus.add_argument("--bus", required=True)
    options = parser.parse_args()
    if options.command == "bus":
        run(serve_bus(options.bus, options.vms))
    else:
        serving = enter(options)
        server = LegacyXapi(options.socket, options.vms)
        serving("canned legacy xapi")
        server.serve_forever()


if __name__ == "__main__":
    main()
