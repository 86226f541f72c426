"""`xcp-bridge idl`: the interfaces as a person on a terminal of 80 columns and a script see them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import CliRunner

from bridges.cli import app
from bridges.interfaces import model
from dbus_side import introspection

Idl = Callable[..., tuple[int, str, str]]


@pytest.fixture
def idl() -> Idl:
    """A function that runs `xcp-bridge idl` with arguments and gives exit code, output and errors."""
    runner = CliRunner()

    def run(*arguments: str) -> tuple[int, str, str]:
        result = runner.invoke(app, ["idl", *arguments], catch_exceptions=False)
        return result.exit_code, result.stdout, result.stderr

    return run


def test_the_list_of_interfaces(idl: Idl) -> None:
    """One line for each under a heading, within 80 columns; every method is counted."""
    code, output, _ = idl("list")
    heading, *lines = output.splitlines()
    assert (code, heading.split()) == (0, ["methods", "service", "object", "interface"])
    assert max(map(len, output.splitlines())) <= 80
    assert "     12 squeezed      Memory            org.xen.xcp.squeezed.Memory1" in lines
    assert "     26 xenopsd-2012  VM                org.xen.xcp.xenopsd.VM0" in lines
    assert sum(int(line.split()[0]) for line in lines) == sum(
        len(model.load(s).method_names) for s in model.available()
    )
    rows = json.loads(idl("list", "--json")[1])
    assert [row["interface"] for row in rows] == [line.split()[-1] for line in lines]
    assert {
        "service": "storage",
        "object": "DATA.MIRROR",
        "interface": "org.xen.xcp.storage.DATA.MIRROR1",
        "path": "/org/xen/xcp/storage/DATA/MIRROR",
        "methods": 13,
    } in rows


@pytest.mark.parametrize("service", model.available())
def test_the_methods_of_a_service(idl: Idl, service: str) -> None:
    """By interface, with their effect, within 80 columns."""
    code, output, _ = idl("list", service)
    assert code == 0
    assert max(map(len, output.splitlines())) <= 80
    methods = [line.split() for line in output.splitlines() if line.startswith("  ")]
    interface = model.load(service)
    assert sorted(methods) == sorted([method.effect, method.name] for method in interface.methods())
    rows = json.loads(idl("list", service, "--json")[1])
    assert [[row["effect"], row["method"]] for row in rows] == methods


LOGIN = """\
session.login_with_password of xapi
  bus       /org/xen/xcp/xapi/session
            org.xen.xcp.xapi.session1.LoginWithPassword(ssa{sv}) -> (s)
  in        uname       s
            pwd         s      secret
            version     s      in options, may be left out, default "1.1"
            originator  s      in options, may be left out, default ""
  out       result  s      gives a session
  effect    write
  deadline  3600 s
  errors    605 codes: see --json
"""
RESERVE = """\
reserve_memory_range of squeezed
  bus       /org/xen/xcp/squeezed/Memory
            org.xen.xcp.squeezed.Memory1.ReserveMemoryRange(ssxx) -> (sx)
  in        debug_info  s
            session_id  s      takes a session
            min         x
            max         x
  out       result0  s      gives a reservation
            result1  x
  effect    write
  deadline  300 s
  errors    Cannot_free_this_much_memory, Domains_refused_to_cooperate,
            Unknown_reservation, No_reservation, Invalid_memory_value,
            Internal_error, Unknown_error, Missing_argument
  xenstore  reserve-memory-range(session_id, min, max)
"""
REFRESH = """\
refresh of perfmon
  bus       /org/xen/xcp/perfmon/Perfmon
            org.xen.xcp.perfmon.Perfmon1.Refresh() -> ()
  in        nothing
  out       nothing
  effect    write
  deadline  300 s
  doors     datagram only
"""


@pytest.mark.parametrize(
    ("service", "method", "shown"),
    [
        ("xapi", "session.login_with_password", LOGIN),
        ("squeezed", "reserve_memory_range", RESERVE),
        ("perfmon", "refresh", REFRESH),
    ],
)
def test_a_method(idl: Idl, service: str, method: str, shown: str) -> None:
    """Everything that a caller on the bus needs to know."""
    assert idl("show", service, method) == (0, shown, "")


@pytest.mark.parametrize(
    ("service", "method", "words"),
    [
        ("xenopsd", "UPDATES.get", ["deadline  none: a long poll", "a(sv)  gives a task (result.1.*.Task)"]),
        ("xenopsd", "Task.list", ["result  aa{sv}  gives a task (result.*.id)"]),
        ("xapi", "secret.get_value", ["result  s      secret"]),
        ("xapi", "Async.VM.start", ["VM1.AsyncStart(ssbb) -> (s)", "gives a task", "deadline  300 s"]),
        ("xenopsd-2012", "VM.add", ["org.xen.xcp.xenopsd.VM0.Add(sa{sv}) -> (s)"]),
    ],
)
def test_what_is_special_about_a_method(idl: Idl, service: str, method: str, words: list[str]) -> None:
    """Long polls, handles deep in a result, secret results, tasks, the older dialect."""
    code, output, _ = idl("show", service, method)
    assert code == 0
    assert [each for each in words if each not in output] == []


def test_a_method_for_scripts(idl: Idl) -> None:
    """The same as JSON, with every error's name on the bus."""
    code, output, _ = idl("show", "xapi", "pool.sync_updates", "--json")
    found: dict[str, Any] = json.loads(output)
    assert code == 0
    assert (found["effect"], found["deadline"], found["member"]) == ("write", 86400, "SyncUpdates")
    assert found["in"] == "ssba{sv}"
    arguments = {each["name"]: each for each in found["arguments"]}
    assert arguments["self"]["takes"] == "pool"
    assert arguments["password"] == {
        "name": "password", "signature": "s", "optional": True, "default": "", "secret": True, "takes": None,
    }  # fmt: skip
    assert found["errors"]["HOST_OFFLINE"] == "org.xen.xcp.xapi.Error.HOST_OFFLINE"
    assert json.loads(idl("show", "xenopsd", "UPDATES.get", "--json")[1])["deadline"] is None


def test_all_methods_in_short(idl: Idl) -> None:
    """Without a method's name: two lines for each."""
    code, output, _ = idl("show", "squeezed")
    assert code == 0
    assert "login  write\n  org.xen.xcp.squeezed.Memory1.Login(ss) -> (s)\n" in output
    rows = json.loads(idl("show", "squeezed", "--json")[1])
    assert len(output.splitlines()) == 2 * len(rows)


def test_xml(idl: Idl) -> None:
    """All interfaces of a service in one document, or that of one object."""
    code, output, _ = idl("xml", "storage")
    assert code == 0
    assert [each.name for each in introspection.from_xml(output).interfaces] == [
        f"org.xen.xcp.storage.{name}1" for name in model.load("storage").objects
    ]
    for service, name, interface in (("storage", "DATA.MIRROR", "DATA.MIRROR1"), ("xenopsd-2012", "VM", "VM0")):
        (found,) = introspection.from_xml(idl("xml", service, name)[1]).interfaces
        assert found.name == f"org.xen.xcp.{service.removesuffix('-2012')}.{interface}"
        (row,) = json.loads(idl("xml", service, name, "--json")[1])
        assert row["interface"] == found.name
        assert introspection.from_xml(row["xml"]).interfaces == (found,)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("list", "xap"), "no interface is written down for 'xap'; did you mean xapi?"),
        (("show", "XenOpsD"), "did you mean xenopsd?"),
        (("xml", "qqq"), "no interface is written down for 'qqq'; known: cluster, gpumon, "),
        (("show", "xapi", "VM.star"), "xapi has no method 'VM.star'; did you mean VM.start, "),
        (("show", "xapi", "VM_start"), "did you mean VM.start?"),
        (("show", "xapi", "vm.Start"), "did you mean VM.start?"),
        (("show", "xapi", "LoginWithPassword"), "did you mean session.login_with_password?"),
        (("show", "squeezed", "reserve-memory"), "did you mean reserve_memory?"),
        (("show", "squeezed", "qqq"), "squeezed has no method 'qqq'; see xcp-bridge idl list squeezed"),
        (("xml", "xapi", "vm"), "xapi has no object 'vm'; did you mean VM?"),
        (("xml", "storage", "qqq"), "storage has no object 'qqq'; known: Query, DP, "),
    ],
)
def test_wrong_names(idl: Idl, arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2 and the names that may be meant, or all there are."""
    code, output, errors = idl(*arguments)
    assert (code, output) == (2, "")
    assert errors.startswith("xcp-bridge: ")
    assert said in errors
    assert errors.count("\n") == 1


def test_a_reader_who_leaves() -> None:
    """A long list into a pipe that is closed early ends without a traceback."""
    command = [sys.executable, "-m", "bridges", "idl", "list", "xapi"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"org.xen.xcp.xapi.session1\n"
        process.stdout.close()
        assert process.stderr.read() == b""
