"""Real xenstores for the tests: Xen's own two daemons without a hypervisor, and the embedded one.

Each store lives in a short directory of its own below /tmp (socket paths have a limit) that is removed afterwards.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

STUB = Path(__file__).parent / "live" / "oxenstored_stub.c"
XEN_BINARIES = Path("/usr/lib/xen-4.17/bin")


def _need(program: str, package: str) -> str:
    """Path of a program; without it the test is skipped, or fails where everything must be there (CI=true)."""
    beside = XEN_BINARIES / program
    found = str(beside) if beside.exists() else shutil.which(program)
    if found is None:
        text = f"{program} is missing: apt install {package}"
        if os.environ.get("CI") == "true":
            pytest.fail(text)
        pytest.skip(text)
    return found


@pytest.fixture(scope="session")
def xenstored_stub() -> Iterator[Path]:
    """The compiled LD_PRELOAD library that stands for the hypervisor."""
    compiler = _need("gcc", "gcc")
    directory = Path(tempfile.mkdtemp(prefix="xs", dir="/tmp"))
    library = directory / "stub.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(STUB), "-ldl"], check=True, timeout=60)
    yield library
    shutil.rmtree(directory)


class StoreProcess:
    """A store as a child process; it can be killed and started again, and forgets its contents then."""

    def __init__(self, command: list[str], directory: Path, environment: dict[str, str]) -> None:
        self.socket = str(directory / "socket")
        self._command = command
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Returns when the store answers connections."""
        Path(self.socket).unlink(missing_ok=True)  # noqa: ASYNC240 - a local name, in a test
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            env={**os.environ, **self._environment},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_unix_connection(self.socket)
                except OSError:
                    assert self._process.returncode is None, f"{self._command[0]} ended: {self._process.returncode}"
                    await asyncio.sleep(0.01)
                    continue
                writer.close()
                await writer.wait_closed()
                return

    async def kill(self) -> None:
        """SIGKILL, and waits for the end."""
        process = self._process
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()


OXENSTORED_CONF = """
pid-file = {0}/pid
persistent = false
xenstored-log-file = {0}/log
access-log-file = {0}/access
quota-maxsize = 4096
quota-maxentity = 1000000
quota-maxwatch = 100000
quota-transaction = 1000
"""


@asynccontextmanager
async def running_store(kind: str, stub: Callable[[], Path]) -> AsyncIterator[StoreProcess]:
    """A store of one kind: embedded, oxenstored or xenstored (Xen's C daemon)."""
    directory = Path(tempfile.mkdtemp(prefix="xs", dir="/tmp"))
    environment = {"OXENSTORED_DIRECTORY": str(directory), "XENSTORED_RUNDIR": str(directory)}
    try:
        if kind == "embedded":
            command = [sys.executable, "-m", "xenstore_rpc.embedded", "--socket", str(directory / "socket")]
            environment["PYTHONPATH"] = str(Path(__file__).parent.parent)
        elif kind == "oxenstored":
            settings = directory / "conf"
            settings.write_text(OXENSTORED_CONF.format(directory))
            daemon = _need("oxenstored", "xen-utils-4.17")
            command = [daemon, "--no-fork", "--no-domain-init", "--config-file", str(settings)]
            environment["LD_PRELOAD"] = str(stub())
        else:
            (directory / "xsd_port").write_text("1\n")
            (directory / "xsd_kva").write_bytes(bytes(4096))
            daemon = _need("xenstored", "xen-utils-4.17")
            command = [daemon, "--no-fork", "-S", "4096", "-E", "1000000", "-W", "100000", "-t", "1000"]
            environment["LD_PRELOAD"] = str(stub())
        store = StoreProcess(command, directory, environment)
        await store.start()
        try:
            yield store
        finally:
            await store.kill()
    finally:
        shutil.rmtree(directory)


@pytest.fixture(params=["embedded", "oxenstored", "xenstored"])
async def store_process(request: pytest.FixtureRequest) -> AsyncIterator[StoreProcess]:
    """Each kind of store in turn, as a process that the test may kill and start again."""
    async with running_store(request.param, lambda: request.getfixturevalue("xenstored_stub")) as store:
        yield store


@pytest.fixture
def store_server(store_process: StoreProcess) -> str:
    """The socket path of each kind of store in turn."""
    return store_process.socket
