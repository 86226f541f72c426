"""The embedded store as a program and as an object."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from xenstore_rpc.connection import Store
from xenstore_rpc.embedded import EmbeddedStore
from xenstore_rpc.packets import encode

ROOT = Path(__file__).parent.parent.parent


def is_gone(path: str) -> bool:
    return not Path(path).exists()


@pytest.fixture
def socket_path() -> Iterator[str]:
    """A short path for a Unix socket."""
    directory = tempfile.mkdtemp(prefix="xs", dir="/tmp")
    yield f"{directory}/socket"
    shutil.rmtree(directory)


async def test_contents_outlive_a_restart(socket_path: str) -> None:
    """stop() removes the socket and drops connections; start() serves the same contents."""
    embedded = EmbeddedStore(socket_path)
    await embedded.start()
    store = Store(socket_path)
    await store.connect()
    await store.write("/a", b"kept")
    watch = await store.watch("/a")
    assert await watch.next() == "/a"
    await embedded.stop()
    assert await watch.next() == "/a"  # the loss
    assert is_gone(socket_path)
    await embedded.start()
    await store.wait_connected(10)
    assert await store.read("/a") == b"kept"
    await store.close()
    await embedded.stop()


async def test_live_socket_is_not_stolen_and_a_dead_one_replaced(socket_path: str) -> None:
    """A socket that somebody serves is refused; one left behind by a killed store is taken."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(socket_path)
    first = EmbeddedStore(socket_path)
    await first.start()
    with pytest.raises(OSError, match="another xenstored"):
        await EmbeddedStore(socket_path).start()
    await first.stop()


async def test_program_prints_one_ready_line_and_ends_on_sigterm(socket_path: str) -> None:
    """The ready line comes when connections are accepted; SIGTERM ends with status 0 and removes the socket."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xenstore_rpc.embedded", "--socket", socket_path, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == f"ready: xenstore at {socket_path}\n".encode()
    store = Store(socket_path)
    await store.connect()
    assert await store.directory("/") == ["tool", "local"]
    await store.close()
    process.send_signal(signal.SIGTERM)
    assert (await process.stdout.read(), await process.wait()) == (b"", 0)
    assert is_gone(socket_path)


@pytest.mark.parametrize("arguments", [[], ["--sock"], ["--nonsense", "x"], ["--socket", "/nowhere/at/all"]])
async def test_wrong_usage_ends_with_status_2(arguments: list[str]) -> None:
    """Wrong flags and an impossible path show the usage and no traceback."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "xenstore_rpc.embedded", *arguments, cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, text = await process.communicate()
    assert process.returncode == 2
    assert text.startswith(b"usage: python -m xenstore_rpc.embedded")
    assert b"Traceback" not in text


async def test_oversized_packet_is_refused_and_the_connection_closed(socket_path: str) -> None:
    """A client that breaks the protocol harms only itself."""
    embedded = EmbeddedStore(socket_path)
    await embedded.start()
    reader, writer = await asyncio.open_unix_connection(socket_path)
    writer.write(encode(11, 1, 0, bytes(4097)))
    assert (await reader.read())[16:] == b"E2BIG\0"
    writer.close()
    await writer.wait_closed()
    await embedded.stop()


@pytest.mark.parametrize(
    ("op", "transaction", "payload", "error"),
    [
        (2, 0, b"/a", b"EINVAL"),
        (2, 0, b"/a\0/b\0", b"EINVAL"),
        (2, 0, b"/\xe9\0", b"EINVAL"),
        (2, 9, b"/a\0", b"ENOENT"),
        (7, 0, b"T\0", b"ENOENT"),
        (11, 0, b"/a", b"EINVAL"),
        (13, 0, b"/\0", b"EINVAL"),
        (13, 0, b"/none/below\0", b"ENOENT"),
        (4, 0, b"/a\0", b"EINVAL"),
        (5, 0, b"/a\0t\0", b"ENOENT"),
        (14, 0, b"/\0n\0", b"EINVAL"),
        (14, 0, b"/\0", b"EINVAL"),
        (22, 0, b"/\0x\0", b"EINVAL"),
        (99, 0, b"\0", b"ENOSYS"),
    ],
)
async def test_malformed_operations(socket_path: str, op: int, transaction: int, payload: bytes, error: bytes) -> None:
    """Broken payloads get the error names of the real daemons."""
    embedded = EmbeddedStore(socket_path)
    await embedded.start()
    reader, writer = await asyncio.open_unix_connection(socket_path)
    writer.write(encode(op, 7, transaction, payload))
    assert await reader.readexactly(16 + len(error) + 1) == encode(16, 7, transaction, error + b"\0")
    writer.close()
    await writer.wait_closed()
    await embedded.stop()


async def test_relative_paths_lie_below_the_host_domain(socket_path: str) -> None:
    """Relative paths read and watch below /local/domain/0, and their events stay relative."""
    embedded = EmbeddedStore(socket_path)
    await embedded.start()
    reader, writer = await asyncio.open_unix_connection(socket_path)
    writer.write(encode(4, 1, 0, b"rel\0t\0") + encode(11, 2, 0, b"/local/domain/0/rel/x\0v"))
    expected = encode(4, 1, 0, b"OK\0") + encode(15, 0, 0, b"rel\0t\0") + encode(11, 2, 0, b"OK\0")
    expected += encode(15, 0, 0, b"rel/x\0t\0")
    received = await reader.readexactly(len(expected))
    writer.close()
    await writer.wait_closed()
    await embedded.stop()
    assert received == expected
