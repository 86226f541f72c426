"""From logs alone: a host where the bridge never was tells by xenstored's access log what a move would meet."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.live.conftest import Callers
from tests.stories.test_rehearsal import ROOT, keep

if TYPE_CHECKING:
    from tests.fixtures_host import Host
    from xenstore_rpc.connection import Transaction

ROUNDS = 8
LONG = b"toolstack-of-the-second-data-centre-" * 6  # the log cuts lines of 179 characters
NEVER_ASKED = frozenset({"XCP_BRIDGE_SETTINGS", "XCP_BRIDGE_CANARY"})


async def command(directory: Path, *arguments: str) -> tuple[int, str, str]:
    """`xcp-bridge ARGUMENTS` in a directory of a host without settings, a bridge or anything else of ours."""
    environment = {name: value for name, value in os.environ.items() if name not in NEVER_ASKED}
    environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bridges", *arguments,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=environment, cwd=directory,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def a_day(host: Host) -> None:
    """Two callers at the tree of squeezed, and one at a tree that nobody wrote an interface down for."""

    async def reserving(name: str, session: bytes) -> None:
        callers, numbers = Callers(host), itertools.count()

        async def ask(function: str, arguments: dict[str, bytes]) -> dict[str, bytes]:
            request_id = f"{name}{next(numbers)}"
            await callers.request(function, request_id, arguments)
            return await callers.response(function, request_id)

        try:
            await ask("login", {"service_name": session})
            for domid in range(ROUNDS):
                kib = b"%d" % (1024 << domid)
                reserved = await ask("reserve-memory", {"session_id": session, "kib": kib})
                where = {"session_id": session, **reserved}
                await ask("transfer-reservation-to-domain", {**where, "domid": b"%d" % domid})
            lost = {"session_id": session, "reservation_id": b"nosuch", "domid": b"1"}
            refused = await ask("transfer-reservation-to-domain", lost)
            assert refused["code"] == b"1002", refused
            assert (await ask("defragment-memory", {}))["code"] == b"1"
        finally:
            await callers.close()

    await asyncio.gather(reserving("a", b"xenopsd"), reserving("b", LONG))


async def freeze(transaction: Transaction) -> None:
    """A request at the tree of the daemon that we know nothing of."""
    await transaction.mkdir("/guestagent/rpc/request/freeze/last")
    await transaction.write("/guestagent/rpc/request/freeze/last/timeout", b"30")


async def until_logged(log: Path, text: str) -> None:
    """Waits until that stands in the log."""
    async with asyncio.timeout(30):
        while text not in log.read_text():  # noqa: ASYNC240, ASYNC110 -- another process's file
            await asyncio.sleep(0.02)


@pytest.fixture
async def host_of_old(host: Host) -> Host:
    """A store, squeezed and another daemon of its convention; no bridge, no settings of one."""
    host.settings.unlink()
    other = ["--xenstore", host.store.socket, "--tree", "guestagent"]
    host.legacy = {
        "squeezed": host.legacy["squeezed"],
        "guestagent": host.example("guestagent", "legacy_squeezed.py", *other),
    }
    for name in host.legacy:
        await host.start_legacy(name)
    return host


async def test_a_log_says_what_a_move_would_meet(host_of_old: Host) -> None:
    host, directory = host_of_old, host_of_old.directory
    await a_day(host)
    callers = Callers(host)
    try:
        await callers.connect_store()
        await callers.store.transact(freeze)
        await callers.until_exists("/guestagent/rpc/response/freeze/last/code")
    finally:
        await callers.close()
    log = Path(host.store.socket).with_name("access")
    await until_logged(log, "/guestagent/rpc/response/freeze/last/description")
    (directory / "xenstored-access.log").write_bytes(log.read_bytes())

    code, output, errors = await command(directory, "capture", "import", "xenstored-access.log")
    assert (code, errors) == (0, ""), errors
    assert output.endswith(" records in xenstored-access.log.capture\n")
    code, output, errors = await command(directory, "capture", "verify", "xenstored-access.log.capture", "--secrets")
    assert (code, errors) == (0, ""), output

    lint = ("replay", "lint", "xenstored-access.log.capture", "--html", "report.html")
    code, output, errors = await command(directory, *lint, "--json")
    assert (code, errors) == (1, ""), errors
    check_report(json.loads(output))
    code, output, errors = await command(directory, *lint)
    assert (code, errors) == (1, ""), errors
    page = directory / "report.html"
    for text in ("SOMETHING WRONG", "reserve_memory", "defragment-memory", "guestagent", "a process at xenstored"):
        assert text in output, output
        assert text in page.read_text().replace("&#x27;", "'")
    assert max(map(len, output.splitlines())) <= 100, output
    assert str(directory) not in page.read_text()
    keep(page, "migration-report.html")


def check_report(report: dict[str, Any]) -> None:
    """Services, callers, methods, rates, sizes, and what the bridge could and could not carry."""
    services = {row["service"]: row for row in report["services"]}
    assert set(services) == {"squeezed", "guestagent"}
    assert services["squeezed"]["interface"] == "today's"
    assert services["guestagent"]["interface"] == "unknown"
    assert services["squeezed"]["traffic"]["per_second"] > 0
    assert [(row["caller"], row["connections"]) for row in report["callers"]] == [
        ("a process at xenstored's socket", 3)
    ]
    methods = {row["method"]: row for row in report["methods"]}
    calls = {name: row["traffic"]["calls"] for name, row in methods.items()}
    assert calls == {
        "login": 2,
        "reserve_memory": 2 * ROUNDS,
        "transfer_reservation_to_domain": 2 * ROUNDS + 2,
        "defragment-memory": 2,
        "freeze": 1,
    }
    reserve = methods["reserve_memory"]
    assert (reserve["carried"], reserve["untold"]) == (ROUNDS, ROUNDS)  # the log has cut the long session
    assert len(LONG) > reserve["request"]["most"] > 64 > reserve["reply"]["most"] > 36  # at least, where it was cut
    assert reserve["took"]["count"] == 2 * ROUNDS
    assert methods["transfer_reservation_to_domain"]["faults"] == {"Unknown_reservation": 2}
    assert methods["freeze"]["not_carried"] == 1
    found = {(row["kind"], row["service"], row["method"]): row["count"] for row in report["findings"]}
    assert found.pop(("unknown service", "guestagent", "")) == 1
    assert found.pop(("refused by the daemon too", "squeezed", "defragment-memory")) == 2
    assert {kind for kind, _, _ in found} == {"cut"}, found
    assert found["cut", "squeezed", "login"] == 1
