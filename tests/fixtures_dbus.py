"""A real, private dbus-daemon for tests, run from the configuration that is shipped."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

_SHIPPED = Path(__file__).parents[1] / "deploy" / "xcp-bus.conf"


class BusDaemon:
    """A running dbus-daemon: its address, the directory of its configuration, and a way to end it early."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        configuration = directory / "bus.conf"
        text = _SHIPPED.read_text()
        replaced = {
            "unix:path=/run/xcp/bus": f"unix:path={directory}/bus",
            'user="root"': f'user="{getpass.getuser()}"',
            "<fork/>": "",
        }
        for old, new in replaced.items():
            assert old in text, old
            text = text.replace(old, new)
        configuration.write_text(text)
        self._configuration = configuration
        self.address = f"unix:path={directory}/bus"
        self.start()

    def start(self) -> None:
        """Run it; again after `kill`, at the same address."""
        directory = self.directory
        self._errors = (directory / "stderr").open("ab")
        self._process = subprocess.Popen(
            ["dbus-daemon", f"--config-file={self._configuration}", "--nofork", "--nopidfile", "--print-address"],
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )
        assert self._process.stdout is not None
        first = self._process.stdout.readline().decode().strip()
        if not first:
            self.kill()
            pytest.fail(f"dbus-daemon did not start: {(directory / 'stderr').read_text()}")

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def kill(self) -> None:
        """End it as a crash would; twice is harmless."""
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._errors.close()


def _directory() -> Path:
    """A directory without `_` in its name, which XenAPI.py would take for a slash."""
    while "_" in (name := tempfile.mkdtemp(prefix="xb", dir="/tmp")):
        Path(name).rmdir()
    return Path(name)


@pytest.fixture
def bus_daemon() -> Iterator[BusDaemon]:
    """A private bus; CI must have a dbus-daemon, other places may go without."""
    if shutil.which("dbus-daemon") is None:
        if os.environ.get("CI") == "true":
            pytest.fail("dbus-daemon is missing: install the package dbus-daemon (or dbus)")
        pytest.skip("needs dbus-daemon (package dbus-daemon or dbus)")
    # Not tmp_path: the path of a Unix socket must stay short.
    directory = _directory()
    try:
        daemon = BusDaemon(directory)
        yield daemon
        daemon.kill()
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def bus_address(bus_daemon: BusDaemon) -> str:
    """The address of a private bus."""
    return bus_daemon.address


@pytest.fixture(params=["dbus-next", "dbus-fast"])
def bus_library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test with it runs through both D-Bus libraries."""
    name: str = request.param
    pytest.importorskip(name.replace("-", "_") + ".message", exc_type=ImportError)
    monkeypatch.setenv("XCP_BUS_LIBRARY", name)
    return name
