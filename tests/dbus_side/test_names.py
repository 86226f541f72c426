"""Names: what D-Bus allows and how this project names things."""

import pytest

from dbus_side import names
from dbus_side.errors import NameInvalid


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (
            names.is_bus_name,
            ["org.xen.xcp.squeezed", "a-b.c_d", ":1.42", ":1.0-x"],
            ["", "one", ".a.b", "a..b", "a.1b", "a.b.", "a.b c", "a.é", ":", ":1", "a." + "b" * 254],
        ),
        (
            names.is_object_path,
            ["/", "/a", "/a/B_9", "/" + "x" * 500],
            ["", "a", "//", "/a/", "/a//b", "/a-b", "/a\n", "/é"],
        ),
        (
            names.is_interface,
            ["a.b", "org.xen.xcp.storage.DATA.MIRROR1"],
            ["a", "a.b-c", "a.1", "a.b\n", "", "a." + "b" * 254],
        ),
        (names.is_member, ["Get", "_x9", "a" * 255], ["", "9a", "a.b", "a-b", "a b", "a\n", "a" * 256]),
        (names.is_error_name_element, ["HANDLE_INVALID", "_1"], ["", "1", "a.b", "a b"]),
    ],
)
def test_checks_follow_the_specification(check, good, bad):
    """Every rule takes the legal names and refuses the near misses."""
    assert [name for name in good if not check(name)] == []
    assert [name for name in bad if check(name)] == []


def test_services_and_objects():
    """A service, its candidate, its objects and their interfaces."""
    assert names.service_name("squeezed") == "org.xen.xcp.squeezed"
    assert names.candidate_name("squeezed") == "org.xen.xcp.squeezed.Candidate"
    assert names.object_path("storage", "DATA.MIRROR") == "/org/xen/xcp/storage/DATA/MIRROR"
    assert names.interface_name("storage", "DATA.MIRROR") == "org.xen.xcp.storage.DATA.MIRROR1"


@pytest.mark.parametrize("make", [names.object_path, names.interface_name])
@pytest.mark.parametrize("part", ["", "a b", "a..b", "a/b", "a-b"])
def test_an_illegal_part_is_refused(make, part):
    """No illegal name leaves this module."""
    with pytest.raises(NameInvalid, match="not valid in D-Bus"):
        make("squeezed", part)


@pytest.mark.parametrize(
    ("wire", "member"),
    [
        ("get_all_records", "GetAllRecords"),
        ("reserve-memory-range", "ReserveMemoryRange"),
        ("get free memory", "GetFreeMemory"),
        ("get_VIFs", "GetVIFs"),
        ("VM_start", "VMStart"),
        ("login", "Login"),
        ("__x--y", "XY"),
        ("get_2_things", "Get2Things"),
    ],
)
def test_member_names(wire, member):
    """Separators part words, each word begins with a capital, the rest is kept."""
    assert names.member_name(wire) == member


@pytest.mark.parametrize("wire", ["", "_", "2fast", "a.b", "naïve"])
def test_a_wire_name_that_gives_no_member_is_refused(wire):
    """The refusal names the wire name."""
    with pytest.raises(NameInvalid, match="method name"):
        names.member_name(wire)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("Cannot_free_this_much_memory", "org.xen.xcp.squeezed.Error.Cannot_free_this_much_memory"),
        ("1000", "org.xen.xcp.squeezed.Error.Other"),
        ("a b", "org.xen.xcp.squeezed.Error.Other"),
        ("", "org.xen.xcp.squeezed.Error.Other"),
        ("x" * 250, "org.xen.xcp.squeezed.Error.Other"),
    ],
)
def test_error_names(code, name):
    """A code that no name can hold is Other."""
    assert names.error_name("squeezed", code) == name
    assert name.startswith(names.error_prefix("squeezed"))


def test_errors_of_the_bridge():
    """Our own failures have a place of their own."""
    assert names.bridge_error("Busy") == "org.xen.xcp.Error.Busy"
