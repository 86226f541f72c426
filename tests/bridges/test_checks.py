"""The probes of `xcp-bridge check`, on answers that real daemons give and on none."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import respx

from bridges import checks
from bridges.findings import Verdict
from bridges.settings import LegacyCommands, LegacyUnit, ServiceSettings


@pytest.fixture
def listening() -> Iterator[Path]:
    """A Unix socket that somebody listens at."""
    with tempfile.TemporaryDirectory(prefix="xc", dir="/tmp") as directory, socket.socket(socket.AF_UNIX) as listener:
        path = Path(directory) / "memory"
        listener.bind(str(path))
        listener.listen()
        yield path


ANSWERS = {
    "xenopsd": (httpx.Response(404, headers={"user-agent": "xenopsd"}), Verdict.GOOD, "answers (404, xenopsd)"),
    "xapi": (httpx.Response(200, headers={"server": "xapi"}), Verdict.GOOD, "answers (200, xapi)"),
    "nobody we know": (httpx.Response(500), Verdict.GOOD, "answers (500, unnamed)"),
    "refused": (httpx.ConnectError("refused"), Verdict.BAD, "refuses connections: nobody serves it"),
    "closed": (httpx.RemoteProtocolError("closed"), Verdict.WARNING, "closes without an answer to GET"),
    "stuck": (httpx.ReadTimeout("late"), Verdict.UNKNOWN, "gave no answer: ReadTimeout"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_probe_says(name: str, listening: Path) -> None:
    """Each answer to GET has its verdict; the probe asks for nothing else."""
    answer, verdict, text = ANSWERS[name]
    with respx.mock() as router:
        route = router.get("http://localhost/").mock(
            **({"return_value": answer} if isinstance(answer, httpx.Response) else {"side_effect": answer})
        )
        finding = checks.probe("place", listening)
        assert route.call_count == 1
    assert finding.verdict is verdict
    assert text in finding.text


def test_a_probe_of_no_socket(tmp_path: Path) -> None:
    """What is missing or no socket is said without asking anybody."""
    assert checks.probe("p", tmp_path / "nosuch").text == "No such file or directory"
    (tmp_path / "file").touch()
    assert checks.probe("p", tmp_path / "file").text == "is no socket"


def test_a_start_command_that_clears_the_tree(tmp_path: Path) -> None:
    """squeezed's old init script would lose requests and reservations at every move."""
    script = tmp_path / "init"
    script.write_text("#!/bin/sh\nxenstore-rm /squeezed\n")
    script.chmod(0o755)
    commands = {
        str(script): "clears /squeezed",
        str(tmp_path / "nosuch"): "cannot be run",
        "relative": "cannot be run",
        "/bin/true": "can be started and stopped",
    }
    for start, words in commands.items():
        legacy = LegacyCommands((start, "start"), (start, "stop"), tmp_path / "pid")
        (finding,) = checks._legacy(ServiceSettings("squeezed", legacy=legacy, xenstore="squeezed"))
        assert words in finding.text
        assert bool(finding.mend) == (finding.verdict is Verdict.BAD)


def test_a_daemon_that_cannot_be_moved() -> None:
    """Without settings for it the service cannot go live; a unit needs systemd."""
    (finding,) = checks._legacy(ServiceSettings("squeezed", xenstore="squeezed"))
    assert "is not set: the service cannot go live" in finding.text
    findings = list(checks._legacy(ServiceSettings("squeezed", legacy=LegacyUnit("squeezed.service"))))
    assert bool(findings) != Path("/run/systemd/system").exists()
