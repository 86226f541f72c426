"""A small xenstored in Python, for demos and tests on machines without Xen: one host, no guests, no quotas.

It speaks the real wire: pyxs, xenstore-ls -s and our own connection work against it. Where the two daemons of Xen
differ it follows oxenstored, but lists directories above 4096 bytes in parts only (E2BIG, DIRECTORY_PART) as the
C daemon does. Run it with `python -m xenstore_rpc.embedded --socket PATH`.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from xenstore_rpc.embedded_tree import Change, Node, NodePath, Refused, Snapshot, View
from xenstore_rpc.errors import BadRecord, InvalidPath
from xenstore_rpc.packets import PAYLOAD_LIMIT, Op, Packet, PacketReader, encode, path_payload

DOMAIN_DIRECTORY = "/local/domain/0"
"""What relative paths are relative to."""


class EmbeddedStore:
    """The store and its listening socket at `path`; contents live as long as the object."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.tree = View(Node(children={"tool": Node(), "local": Node()}))
        self.clients: set[_Client] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listens. OSError EADDRINUSE when somebody serves this socket already; a dead socket is replaced."""
        with socket.socket(socket.AF_UNIX) as probe, suppress(FileNotFoundError, ConnectionRefusedError):
            probe.connect(self.path)
            raise OSError(errno.EADDRINUSE, "another xenstored serves this socket", self.path)
        self._server = await asyncio.get_running_loop().create_unix_server(lambda: _Client(self), self.path)

    async def stop(self) -> None:
        """Closes the socket and every connection; start() may follow and finds the contents unchanged."""
        if self._server is None:
            return
        self._server.close()
        for client in list(self.clients):
            client.hang_up()
        await self._server.wait_closed()
        self._server = None
        with suppress(FileNotFoundError):
            Path(self.path).unlink()  # noqa: ASYNC240 - one unlink of a local name at the end of a life

    def publish(self) -> None:
        """Tells every watch about the changes made since the last call."""
        for change in self.tree.changes:
            for client in self.clients:
                client.notify(change)
        self.tree.changes.clear()


class _Client(asyncio.Protocol):
    """One connection: its transactions and watches."""

    def __init__(self, store: EmbeddedStore) -> None:
        self._store = store
        self._reader = PacketReader(PAYLOAD_LIMIT)
        self._transport: asyncio.Transport | None = None
        self._outgoing: list[bytes] = []
        self._events: list[bytes] = []
        self._transactions: dict[int, Snapshot] = {}
        self._last_transaction = 0
        self._watches: dict[tuple[str, str], NodePath] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass
        self._transport = transport
        self._store.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._store.clients.discard(self)

    def hang_up(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        try:
            packets = self._reader.feed(data)
        except BadRecord:
            self._send(encode(Op.ERROR, 0, 0, b"E2BIG\0"))
            if self._transport is not None:
                self._flush()
                self._transport.close()
            return
        for packet in packets:
            try:
                op, payload = packet.op, self._answer(packet)
            except Refused as refused:
                op, payload = Op.ERROR, refused.error.encode() + b"\0"
            except InvalidPath:
                op, payload = Op.ERROR, b"EINVAL\0"
            self._send(encode(op, packet.request_id, packet.transaction, payload))
            # Events of an operation follow its reply.
            for event in self._events:
                self._send(event)
            self._events.clear()
            self._store.publish()

    def notify(self, change: Change) -> None:
        """Sends the event of `change` to every watch that it concerns."""
        for (path, token), watched in self._watches.items():
            if change.path[: len(watched)] == watched:
                self._send(_event(_below(path, change.path[len(watched) :]), token))
            elif change.subtree and watched[: len(change.path)] == change.path:
                self._send(_event(path, token))

    def _send(self, packet: bytes) -> None:
        if not self._outgoing:
            asyncio.get_running_loop().call_soon(self._flush)
        self._outgoing.append(packet)

    def _flush(self) -> None:
        if self._outgoing and self._transport is not None:
            self._transport.write(b"".join(self._outgoing))
            self._outgoing.clear()

    # ---- operations: each takes the packet's fields and the view, and returns the reply's payload

    def _answer(self, packet: Packet) -> bytes:
        operation = self._OPERATIONS.get(packet.op)
        if operation is None:
            raise Refused("ENOSYS")
        fields = packet.payload.split(b"\0")
        if packet.op != Op.WRITE:
            # All but WRITE end in NUL; TRANSACTION_START and RESET_WATCHES may have nothing at all.
            if fields.pop() != b"" and packet.payload:
                raise Refused("EINVAL")
        elif len(fields) < 2:
            raise Refused("EINVAL")
        view: View = self._store.tree
        if packet.transaction:
            if packet.transaction not in self._transactions:
                raise Refused("ENOENT")
            view = self._transactions[packet.transaction]
        reply = operation(self, packet, [field.decode("latin-1") for field in fields], view)
        if len(reply) > PAYLOAD_LIMIT:
            raise Refused("E2BIG")
        return reply

    def _read(self, _packet: Packet, fields: list[str], view: View) -> bytes:
        return view.read(_path(_one(fields)))

    def _directory(self, _packet: Packet, fields: list[str], view: View) -> bytes:
        return _joined(view.directory(_path(_one(fields))))

    def _directory_part(self, _packet: Packet, fields: list[str], view: View) -> bytes:
        path, offset = _path(_first(fields, 2)), _number(fields[1])
        generation = b"%d\0" % view.node(path).generation
        rest = _joined(view.directory(path))[offset:] + b"\0"
        room = PAYLOAD_LIMIT - len(generation)
        if len(rest) > room:
            rest = rest[: rest.rindex(b"\0", 0, room) + 1]
        return generation + rest

    def _write(self, packet: Packet, fields: list[str], view: View) -> bytes:
        view.write(_path(fields[0]), packet.payload[len(fields[0]) + 1 :])
        return b"OK\0"

    def _mkdir(self, _packet: Packet, fields: list[str], view: View) -> bytes:
        view.mkdir(_path(_one(fields)))
        return b"OK\0"

    def _rm(self, _packet: Packet, fields: list[str], view: View) -> bytes:
        view.rm(_path(_one(fields)))
        return b"OK\0"

    def _get_perms(self, _packet: Packet, fields: list[str], view: View) -> bytes:
        return _joined(view.perms(_path(_one(fields))))

    def _set_perms(self, _packet: Packet, fields: list[str], view: View) -> bytes:
        path, perms = _path(_first(fields, 2)), tuple(fields[1:])
        for entry in perms:
            if entry[:1] not in {"n", "r", "w", "b"}:
                raise Refused("EINVAL")
            _number(entry[1:])
        view.set_perms(path, perms)
        return b"OK\0"

    def _transaction_start(self, packet: Packet, _fields: list[str], _view: View) -> bytes:
        if packet.transaction:
            raise Refused("EBUSY")
        self._last_transaction += 1
        self._transactions[self._last_transaction] = Snapshot(self._store.tree.root)
        return b"%d\0" % self._last_transaction

    def _transaction_end(self, packet: Packet, fields: list[str], _view: View) -> bytes:
        if not packet.transaction:
            raise Refused("ENOENT")
        if _one(fields) not in {"T", "F"}:
            raise Refused("EINVAL")
        snapshot = self._transactions.pop(packet.transaction)
        if fields[0] == "T":
            snapshot.commit(self._store.tree)
        return b"OK\0"

    def _watch(self, _packet: Packet, fields: list[str], _view: View) -> bytes:
        path, token = _first(fields, 2), fields[1]
        watched = (path,) if path.startswith("@") else _path(path)
        if (path, token) in self._watches:
            raise Refused("EEXIST")
        self._watches[path, token] = watched
        self._events.append(_event(path, token))
        return b"OK\0"

    def _unwatch(self, _packet: Packet, fields: list[str], _view: View) -> bytes:
        if self._watches.pop((_first(fields, 2), fields[1]), None) is None:
            raise Refused("ENOENT")
        return b"OK\0"

    def _reset_watches(self, _packet: Packet, _fields: list[str], _view: View) -> bytes:
        self._watches.clear()
        return b"OK\0"

    def _control(self, _packet: Packet, _fields: list[str], _view: View) -> bytes:
        return b"OK\0"

    def _domain_path(self, _packet: Packet, fields: list[str], _view: View) -> bytes:
        return b"/local/domain/%d\0" % _number(_one(fields))

    def _is_introduced(self, _packet: Packet, fields: list[str], _view: View) -> bytes:
        return b"F\0" if _number(_one(fields)) else b"T\0"

    _OPERATIONS: dict[int, Callable[[_Client, Packet, list[str], View], bytes]] = {  # noqa: RUF012 - never changed
        Op.CONTROL: _control,
        Op.DIRECTORY: _directory,
        Op.DIRECTORY_PART: _directory_part,
        Op.GET_DOMAIN_PATH: _domain_path,
        Op.GET_PERMS: _get_perms,
        Op.IS_DOMAIN_INTRODUCED: _is_introduced,
        Op.MKDIR: _mkdir,
        Op.READ: _read,
        Op.RESET_WATCHES: _reset_watches,
        Op.RM: _rm,
        Op.SET_PERMS: _set_perms,
        Op.TRANSACTION_END: _transaction_end,
        Op.TRANSACTION_START: _transaction_start,
        Op.UNWATCH: _unwatch,
        Op.WATCH: _watch,
        Op.WRITE: _write,
    }


def _one(fields: list[str]) -> str:
    if len(fields) != 1:
        raise Refused("EINVAL")
    return fields[0]


def _first(fields: list[str], at_least: int) -> str:
    if len(fields) < at_least:
        raise Refused("EINVAL")
    return fields[0]


def _number(text: str) -> int:
    if not text.isdecimal():
        raise Refused("EINVAL")
    return int(text)


def _path(text: str) -> NodePath:
    absolute = text if text.startswith("/") else f"{DOMAIN_DIRECTORY}/{text}"
    path_payload(absolute)
    return tuple(absolute[1:].split("/")) if absolute != "/" else ()


def _below(watched: str, rest: NodePath) -> str:
    """The changed path in the form the watch was set with, which may be relative."""
    return "/".join(("" if watched == "/" else watched, *rest)) or "/"


def _joined(texts: Sequence[str]) -> bytes:
    return "".join(text + "\0" for text in texts).encode("ascii")


def _event(path: str, token: str) -> bytes:
    return encode(Op.WATCH_EVENT, 0, 0, f"{path}\0{token}\0".encode("latin-1"))


async def _serve(path: str) -> None:
    store = EmbeddedStore(path)
    await store.start()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    sys.stdout.write(f"ready: xenstore at {path}\n")
    sys.stdout.flush()
    await stopped.wait()
    await store.stop()


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m xenstore_rpc.embedded", description="A small xenstored.")
    parser.add_argument("--socket", required=True, metavar="PATH", help="Unix socket to listen on")
    path: str = parser.parse_args().socket
    try:
        asyncio.run(_serve(path))
    except OSError as error:
        parser.error(f"--socket {path}: {error.strerror or error}")


if __name__ == "__main__":
    _main()
