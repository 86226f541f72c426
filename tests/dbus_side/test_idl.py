"""The published interfaces: what is in dbus_side/idl, and how the usual D-Bus tools read them from a live object."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bridges.dbus_translation import LEGACY_NAME, Translation, interface_of
from bridges.interfaces import model
from dbus_side import introspection, names
from dbus_side.bus import Bus
from dbus_side.exported import ObjectTree
from dbus_side.messages import MethodCall

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "dbus_side" / "idl").glob("*.xml"))
TRANSLATIONS = {stem: Translation(model.load(stem)) for stem in model.available()}
XAPI = TRANSLATIONS["xapi"].service
VM = "/org/xen/xcp/xapi/VM"
VM1 = "org.xen.xcp.xapi.VM1"

Tool = Callable[..., Awaitable[str]]


def need(program: str, package: str) -> str:
    """The program; without it nothing here would be known."""
    found = shutil.which(program)
    assert found is not None, f"{program} is missing: install {package}"
    return found


@pytest.fixture(scope="module")
def published() -> list[introspection.Interface]:
    """The interfaces in the files, as our own reader has them."""
    return [interface for path in FILES for interface in introspection.from_xml(path.read_text()).interfaces]


def test_a_file_for_every_interface(published: list[introspection.Interface]) -> None:
    """Every object of every service, and the three of the bridge itself; each in the file of its name."""
    expected = {
        names.interface_name(translation.service.name, name, translation.service.version)
        for translation in TRANSLATIONS.values()
        for name in translation.service.objects
    }
    own = {f"org.xen.xcp.{name}1" for name in ("Bridge", "Candidate", "Sandbox")}
    assert {interface.name for interface in published} == expected | own
    assert [f"{interface.name}.xml" for interface in published] == [path.name for path in FILES]


def test_valid_by_the_dtd() -> None:
    """xmllint takes every file."""
    dtd = ROOT / "tests" / "golden" / "introspect.dtd"
    command = [need("xmllint", "libxml2-utils"), "--noout", "--nonet", "--dtdvalid", dtd, *FILES]
    subprocess.run(command, check=True, timeout=60)


def test_accepted_by_gdbus_codegen(tmp_path: Path) -> None:
    """GLib's generator takes all of them in one run, and each is in what it makes."""
    made = tmp_path / "all.c"
    codegen = need("gdbus-codegen", "libglib2.0-dev-bin")
    subprocess.run([codegen, "--interface-info-body", "--output", made, *FILES], check=True, timeout=60)
    text = made.read_text()
    assert [path.stem for path in FILES if f'"{path.stem}"' not in text] == []


def test_members_are_unique(published: list[introspection.Interface]) -> None:
    """No interface has a method, signal or property name twice."""
    for interface in published:
        members = [item.name for item in (*interface.methods, *interface.signals, *interface.properties)]
        assert [name for name, count in Counter(members).items() if count > 1] == [], interface.name


def test_legacy_names_and_members_are_one_to_one(published: list[introspection.Interface]) -> None:
    """Interface and member give one legacy name, and that of a service gives one interface and member."""
    in_files = {
        (interface.name, method.name): dict(method.annotations)[LEGACY_NAME]
        for interface in published
        for method in interface.methods
        if method.annotations
    }
    in_data: dict[tuple[str, str], str] = {}
    for translation in TRANSLATIONS.values():
        back: dict[str, tuple[str, str]] = {}
        for method in translation.service.methods():
            form = translation.of(method)
            assert (form.interface, form.member) not in in_data, method.name
            in_data[form.interface, form.member] = method.name
            assert method.name not in back
            back[method.name] = (form.interface, form.member)
    assert in_files == in_data


def test_what_a_client_needs_is_annotated(published: list[introspection.Interface]) -> None:
    """The deadline of every method, its optional arguments, and what must not be shown."""
    annotated = {interface.name: {m.name: m for m in interface.methods} for interface in published}
    for translation in TRANSLATIONS.values():
        for method in translation.service.methods():
            form = translation.of(method)
            found = annotated[form.interface][form.member]
            assert float(dict(found.annotations)["org.xen.xcp.Deadline"]) == (method.deadline or 0)
            assert {"org.xen.xcp.Secret" in dict(each.annotations) for each in found.outputs} <= {method.secret_result}
            notes = [dict(each.annotations) for each in found.inputs]
            options = [p.name for p in method.parameters if p.may_be_absent]
            listed = notes[-1].get("org.xen.xcp.Options", "") if notes else ""
            assert [each.rpartition(" ")[0] for each in filter(None, listed.split(", "))] == options
            secret = [each["org.xen.xcp.Secret"] for each in notes if "org.xen.xcp.Secret" in each]
            assert len(secret) == len({p.may_be_absent or p.name for p in method.parameters if p.secret})
    login = annotated["org.xen.xcp.xapi.session1"]["LoginWithPassword"]
    assert login.inputs[1].annotations == (("org.xen.xcp.Secret", "true"),)
    assert login.inputs[2].annotations == (("org.xen.xcp.Options", "version s, originator s"),)
    updates = annotated["org.xen.xcp.xapi.pool1"]["SyncUpdates"]
    assert updates.inputs[-1].annotations[1] == ("org.xen.xcp.Secret", "password")


@pytest.fixture
async def xapi_on_the_bus(bus_address: str) -> AsyncIterator[None]:
    """All objects of xapi on a private bus, as the bridge exports them; nobody calls them here."""

    async def refuse(_call: MethodCall, _method: introspection.Method) -> tuple[Any, ...]:
        raise AssertionError

    tree = ObjectTree()
    for name in XAPI.objects:
        path, interface = names.object_path("xapi", name), names.interface_name("xapi", name)
        tree.add_described(path, interface, partial(interface_of, TRANSLATIONS["xapi"], name), refuse)
    bus = await Bus.connect(bus_address)
    bus.serve(tree.answer)
    await bus.request_name("org.xen.xcp.xapi")
    yield
    await bus.close()


@pytest.fixture
def tool(foreign: Callable[..., Awaitable[tuple[int, str]]]) -> Tool:
    """A function that runs a D-Bus tool and gives what it prints."""

    async def run(package: str, *command: str) -> str:
        need(command[0], package)
        code, output = await foreign(*command)
        assert code == 0, output
        return output

    return run


MEMBERS = {TRANSLATIONS["xapi"].of(method).member for method in XAPI.object_methods("VM")}


@pytest.mark.usefixtures("xapi_on_the_bus")
async def test_busctl_reads_a_class_of_xapi(tool: Tool, bus_address: str) -> None:
    """sd-bus finds every class, and every method of VM with its signatures."""
    address = f"--address={bus_address}"
    tree = await tool("systemd", "busctl", address, "--list", "tree", "org.xen.xcp.xapi")
    assert {names.object_path("xapi", name) for name in XAPI.objects} <= set(tree.split())
    output = await tool("systemd", "busctl", address, "introspect", "org.xen.xcp.xapi", VM, VM1)
    rows = {name.removeprefix("."): rest for name, *rest in map(str.split, output.splitlines()[1:])}
    assert rows.keys() == MEMBERS
    assert rows["Start"] == ["method", "ssbb", "-", "-"]
    assert rows["GetAllRecords"] == ["method", "s", "a{sa{sv}}", "-"]


@pytest.mark.usefixtures("xapi_on_the_bus")
async def test_gdbus_reads_a_class_of_xapi(tool: Tool, bus_address: str) -> None:
    """GDBus finds every method of VM, with the names of the arguments and the annotations."""
    where = ("--address", bus_address, "--dest", "org.xen.xcp.xapi", "--object-path", VM)
    output = await tool("libglib2.0-bin", "gdbus", "introspect", *where)
    _, _, section = output.partition(f"interface {VM1} {{")
    found = re.findall(r"^ +(\w+)\(", section.partition("interface ")[0], re.MULTILINE)
    assert set(found) - {"in", "out"} == MEMBERS
    assert '@org.xen.xcp.LegacyName("VM.start")' in section
    assert "Start(in  s session_id,\n            in  s vm,\n            in  b start_paused," in section


@pytest.mark.usefixtures("xapi_on_the_bus")
async def test_qdbus_reads_a_class_of_xapi(tool: Tool, bus_address: str) -> None:
    """QtDBus finds every method of VM, with the names of the arguments."""
    output = await tool("qdbus-qt5", "qdbus", "--bus", bus_address, "org.xen.xcp.xapi", VM)
    assert set(re.findall(rf"^method .*{re.escape(VM1)}\.(\w+)\(", output, re.MULTILINE)) == MEMBERS
    assert f"method QString {VM1}.GetNameLabel(QString session_id, QString self)" in output.splitlines()
