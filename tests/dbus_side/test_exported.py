"""Objects on the bus, seen by our own client and by foreign ones."""

import json
import shutil

import pytest

from dbus_side.bus import MethodCall
from dbus_side.errors import BusRefused, NameInvalid
from dbus_side.exported import ObjectTree
from dbus_side.introspection import Argument, Interface, Method, Property, from_xml
from dbus_side.signatures import Variant

NAME = "org.xen.xcp.storage"
PATH = "/org/xen/xcp/storage/DATA/MIRROR"
MIRROR = Interface(
    "org.xen.xcp.storage.DATA.MIRROR1",
    methods=(
        Method(
            "Start", (Argument("vdi", "s"), Argument("options", "a{sv}")), (Argument("id", "s"), Argument("n", "x"))
        ),
        Method("Refuse"),
    ),
    properties=(Property("Epoch", "t"), Property("Secret", "s", "write")),
)
STAT = Interface("org.xen.xcp.storage.Stat1", methods=(Method("Refuse"), Method("Count", (), (Argument("n", "i"),))))

pytestmark = pytest.mark.usefixtures("bus_library")


async def answer_mirror(call: MethodCall, method: Method):
    """Start gives two results, Refuse refuses."""
    if method.name == "Refuse":
        raise BusRefused("org.xen.xcp.storage.Error.VDI_missing", "ss", ("no such VDI", "vdi-1"))
    return (f"mirror of {call.body[0]}", len(call.body[1]))


async def answer_stat(_call: MethodCall, _method: Method):
    """A number."""
    return (7,)


@pytest.fixture
def tree():
    """One object with two interfaces, deep in the tree."""
    tree = ObjectTree()
    tree.add(PATH, MIRROR, answer_mirror, {"Epoch": lambda: 3, "Secret": lambda: "x"})
    tree.add(PATH, STAT, answer_stat)
    return tree


@pytest.fixture
async def call(connect, tree):
    """A function that calls a method of the object."""
    service, client = await connect(), await connect()
    service.serve(tree.answer)
    await service.request_name(NAME)

    async def call_method(interface, member, signature="", *body, path=PATH):
        return (await client.call(NAME, path, interface, member, signature, body, timeout=10)).body

    return call_method


async def test_a_method_is_answered(call):
    """Several results are several output arguments."""
    assert await call(MIRROR.name, "Start", "sa{sv}", "v", {"a": Variant("x", 1)}) == ("mirror of v", 1)


async def test_an_interface_may_be_left_out_when_it_is_clear(call):
    """The member decides, when one interface has it."""
    assert await call(None, "Count") == (7,)
    with pytest.raises(BusRefused, match=r"UnknownMethod.*DATA\.MIRROR1, org\.xen\.xcp\.storage\.Stat1"):
        await call(None, "Refuse")


async def test_a_refusal_passes_through(call):
    """Name and arguments are the handler's."""
    with pytest.raises(BusRefused) as caught:
        await call(MIRROR.name, "Refuse")
    assert caught.value.name == "org.xen.xcp.storage.Error.VDI_missing"
    assert caught.value.body == ("no such VDI", "vdi-1")


@pytest.mark.parametrize(
    ("path", "interface", "member", "signature", "body", "error"),
    [
        ("/org/xen/xcp/other", MIRROR.name, "Start", "", (), "UnknownObject: there is no object /org/xen/xcp/other"),
        ("/org/xen/xcp/storage/DA", MIRROR.name, "Start", "", (), "UnknownObject"),
        ("/org/xen", MIRROR.name, "Start", "", (), "UnknownInterface"),
        (PATH, "a.b", "Start", "", (), f"UnknownInterface: {PATH} has no interface a.b"),
        (PATH, MIRROR.name, "Stop", "", (), f"UnknownMethod: {MIRROR.name} has no method Stop"),
        (PATH, None, "Stop", "", (), "UnknownMethod"),
        (PATH, MIRROR.name, "Start", "s", ("v",), r"InvalidArgs: .*expected \(vdi: s, options: a\{sv\}\), got 's'"),
        (PATH, MIRROR.name, "Refuse", "s", ("v",), "InvalidArgs: .*expected no arguments, got 's'"),
        (PATH, "org.freedesktop.DBus.Properties", "Get", "ss", (MIRROR.name, "X"), "UnknownProperty"),
        (PATH, "org.freedesktop.DBus.Properties", "Get", "ss", ("a.b", "Epoch"), "UnknownInterface"),
        (
            PATH,
            "org.freedesktop.DBus.Properties",
            "Set",
            "ssv",
            (MIRROR.name, "Epoch", Variant("t", 1)),
            "PropertyReadOnly",
        ),
    ],
)
async def test_what_is_not_there(call, path, interface, member, signature, body, error):
    """The standard error names, with what was looked for."""
    with pytest.raises(BusRefused, match=rf"org\.freedesktop\.DBus\.Error\.{error}"):
        await call(interface, member, signature, *body, path=path)


async def test_properties(call):
    """Read one, read all that can be read; standard interfaces have none."""
    properties = "org.freedesktop.DBus.Properties"
    assert await call(properties, "Get", "ss", MIRROR.name, "Epoch") == (Variant("t", 3),)
    assert await call(properties, "GetAll", "s", MIRROR.name) == ({"Epoch": Variant("t", 3)},)
    assert await call(properties, "GetAll", "s", "org.freedesktop.DBus.Peer") == ({},)


async def test_peer_at_every_path(call):
    """Ping and the machine id need no object."""
    assert await call("org.freedesktop.DBus.Peer", "Ping", path="/nowhere") == ()
    try:
        (machine,) = await call("org.freedesktop.DBus.Peer", "GetMachineId", path="/nowhere")
    except BusRefused as refusal:
        assert refusal.name == "org.freedesktop.DBus.Error.Failed"  # noqa: PT017 - a container may have no machine id
    else:
        assert len(machine) == 32


async def test_introspection_leads_to_the_object(call):
    """Every node on the way names its children; the object names its interfaces."""
    introspectable = "org.freedesktop.DBus.Introspectable"
    path = ""
    for child in PATH[1:].split("/"):
        (text,) = await call(introspectable, "Introspect", path=path or "/")
        assert from_xml(text).children == (child,)
        path += "/" + child
    (text,) = await call(introspectable, "Introspect")
    node = from_xml(text)
    assert node.children == ()
    assert node.interfaces[:2] == (MIRROR, STAT)
    assert [interface.name.rpartition(".")[2] for interface in node.interfaces[2:]] == [
        "Introspectable",
        "Peer",
        "Properties",
    ]


async def test_what_is_removed_is_gone(call, tree):
    """First the interface, with the last one the object."""
    tree.remove(PATH, STAT.name)
    with pytest.raises(BusRefused, match="UnknownInterface"):
        await call(STAT.name, "Count")
    tree.remove(PATH, MIRROR.name)
    with pytest.raises(BusRefused, match="UnknownObject"):
        await call(MIRROR.name, "Refuse")


def test_wrong_additions_are_refused(tree):
    """A bad path, an interface twice, a property without its getter."""
    with pytest.raises(NameInvalid):
        tree.add("/a-b", STAT, answer_stat)
    with pytest.raises(ValueError, match=r"has org\.xen\.xcp\.storage\.Stat1 already"):
        tree.add(PATH, STAT, answer_stat)
    with pytest.raises(ValueError, match="Secret"):
        tree.add("/a", MIRROR, answer_mirror, {"Epoch": lambda: 3})


async def test_busctl(call, foreign, bus_address):
    """sd-bus lists, introspects and calls."""
    busctl = ("busctl", f"--address={bus_address}")
    code, output = await foreign(*busctl, "--list", "tree", NAME)
    assert (code, output.split()[-1]) == (0, PATH)
    code, output = await foreign(*busctl, "introspect", NAME, PATH)
    assert code == 0
    assert "sa{sv}" in output
    call_start = (*busctl, "--json=short", "call", NAME, PATH, MIRROR.name, "Start", "sa{sv}", "v", "1", "k", "s", "x")
    code, output = await foreign(*call_start)
    assert (code, json.loads(output)) == (0, {"type": "sx", "data": ["mirror of v", 1]})
    code, output = await foreign(*busctl, "get-property", NAME, PATH, MIRROR.name, "Epoch")
    assert (code, output) == (0, "t 3\n")
    code, output = await foreign(*busctl, "call", NAME, PATH, MIRROR.name, "Refuse")
    assert (code, output) == (1, "Call failed: no such VDI\n")


async def test_gdbus(call, foreign, bus_address):
    """GDBus introspects and calls."""
    where = ("--address", bus_address, "--dest", NAME, "--object-path", PATH)
    code, output = await foreign("gdbus", "introspect", *where)
    assert code == 0, output
    assert "Start(in  s vdi" in output
    code, output = await foreign("gdbus", "call", *where, "--method", f"{MIRROR.name}.Start", "v", "{'k': <'x'>}")
    assert (code, output) == (0, "('mirror of v', int64 1)\n")
    code, output = await foreign("gdbus", "call", *where, "--method", f"{MIRROR.name}.Refuse")
    assert code == 1
    assert "org.xen.xcp.storage.Error.VDI_missing" in output


@pytest.mark.skipif(shutil.which("xmllint") is None, reason="needs xmllint (package libxml2-utils)")
async def test_introspection_is_well_formed_for_xmllint(call, tmp_path, foreign):
    """A second parser accepts the document."""
    (text,) = await call("org.freedesktop.DBus.Introspectable", "Introspect")
    (tmp_path / "node.xml").write_text(text)
    assert await foreign("xmllint", "--nonet", "--noout", str(tmp_path / "node.xml")) == (0, "")
