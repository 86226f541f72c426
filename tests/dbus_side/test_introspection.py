"""Introspection XML, both ways."""

import shutil
import subprocess

import pytest

from dbus_side.errors import IntrospectionInvalid
from dbus_side.introspection import (
    DOCTYPE,
    Argument,
    Interface,
    Method,
    Node,
    Property,
    Signal,
    from_xml,
    signature_of,
    to_xml,
)

MEMORY = Interface(
    "org.xen.xcp.squeezed.Memory1",
    methods=(
        Method("Login", (Argument("service_name", "s"),), (Argument("result", "s"),)),
        Method(
            "ReserveMemoryRange",
            (Argument("session_id", "s", (("a.b", "c"),)), Argument("min", "x"), Argument("options", "a{sv}")),
            (Argument("result0", "s"), Argument("result1", "x")),
            (("org.xen.xcp.LegacyName", 'a "quoted" & <odd>\nname'),),
        ),
        Method("GetDiagnostics"),
    ),
    signals=(Signal("Changed", (Argument("", "(sx)", (("a.b", "d"),)),), (("a.b", "c"),)), Signal("Gone")),
    properties=(Property("Epoch", "t"), Property("Mode", "s", "readwrite", (("a.b", "c"),))),
    annotations=(("org.freedesktop.DBus.Deprecated", "true"),),
)

GOLDEN = DOCTYPE + (
    """\
<node name="/a">
  <interface name="a.B1">
    <method name="Do">
      <arg name="x" type="x" direction="in">
        <annotation name="org.xen.xcp.Secret" value="true"/>
      </arg>
      <arg name="result" type="s" direction="out"/>
      <annotation name="org.xen.xcp.LegacyName" value="do"/>
    </method>
    <property name="Epoch" type="t" access="read"/>
  </interface>
  <node name="VM"/>
</node>
"""
)


def test_the_form_is_stable():
    """Published files must not change by themselves."""
    secret = Argument("x", "x", (("org.xen.xcp.Secret", "true"),))
    method = Method("Do", (secret,), (Argument("result", "s"),), (("org.xen.xcp.LegacyName", "do"),))
    interface = Interface("a.B1", (method,), properties=(Property("Epoch", "t"),))
    assert to_xml((interface,), ("VM",), "/a") == GOLDEN


def test_what_is_written_is_read_again():
    """Nothing is lost, odd characters included."""
    assert from_xml(to_xml((MEMORY,), ("VM", "SR"))) == Node((MEMORY,), ("VM", "SR"))


def test_an_empty_object():
    """A node with nothing in it is a document too."""
    assert from_xml(to_xml(())) == Node()


def test_signature_of_arguments():
    """The body's signature is that of its arguments in a row."""
    assert signature_of(MEMORY.methods[1].inputs) == "sxa{sv}"


def test_foreign_documents():
    """A missing direction means in; other vocabularies and nested nodes are left aside."""
    text = """<node xmlns:tp="http://telepathy.freedesktop.org/wiki/DbusSpec#extensions-v0">
      <tp:docstring>Text with <b>marks</b>.</tp:docstring>
      <interface name="a.b"><method name="M"><tp:docstring/><arg type="s"/><arg type="i" direction="out"/></method>
      </interface>
      <node name="child"><interface name="c.d"/><node name="deeper"/></node></node>"""
    assert from_xml(text) == Node(
        (Interface("a.b", (Method("M", (Argument("", "s"),), (Argument("", "i"),)),)),), ("child",)
    )


ENTITY = '<!DOCTYPE node [<!ENTITY a "b">]><node name="&a;"/>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no element found"),
        ("<node>", "no element found"),
        ("<html/>", "expected <node> as the root"),
        (ENTITY, "entity 'a'"),
        ('<!DOCTYPE node [<!ENTITY % a SYSTEM "file:///etc/passwd">]><node/>', "entity 'a'"),
        ("<node>" * 40, "at most 32"),
        ('<node><interface name="a"/></node>', "an interface name, got 'a'"),
        ("<node><interface/></node>", "attribute 'name', got none"),
        ('<node><interface name="a.b"><method name="a-b"/></interface></node>', "a member name"),
        (
            '<node>\n<interface name="a.b"><method name="M"><arg type="()"/></method></interface></node>',
            "line 2: <arg>",
        ),
        ('<node><interface name="a.b"><property name="P" type="s" access="none"/></interface></node>', "access"),
        ('<node><interface name="a.b"><property name="P" access="read"/></interface></node>', "'type', got none"),
    ],
)
def test_bad_documents(text, said):
    """The refusal names the element, and entities are never expanded."""
    with pytest.raises(IntrospectionInvalid) as caught:
        from_xml(text)
    assert said in str(caught.value)


def test_gdbus_codegen_accepts_it(tmp_path):
    """The generator of another implementation reads our document."""
    if shutil.which("gdbus-codegen") is None:
        pytest.skip("needs gdbus-codegen (package libglib2.0-dev-bin)")
    source = tmp_path / "memory.xml"
    source.write_text(to_xml((MEMORY,)))
    command = ["gdbus-codegen", "--body", "--output", str(tmp_path / "memory.c"), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
