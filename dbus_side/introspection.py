"""Interfaces as data, and their introspection XML both ways.

Source: the D-Bus specification, "Introspection Data Format", and its DTD. What is written is valid by the DTD and
always the same for the same data; what is read may hold elements of other vocabularies, which are left aside.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from typing import Final
from xml.parsers import expat

from dbus_side.errors import IntrospectionInvalid
from dbus_side.names import is_interface, is_member
from dbus_side.signatures import single

DOCTYPE: Final = (
    '<!DOCTYPE node PUBLIC "-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"\n'
    ' "http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd">\n'
)
_LONGEST: Final = 8 * 1024 * 1024  # characters; the largest interface published here is 1 MiB
_DEEPEST: Final = 32
_ACCESS: Final = ("read", "write", "readwrite")

Annotations = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Argument:
    """An argument: its name (may be empty) and one complete type."""

    name: str
    signature: str
    annotations: Annotations = ()


@dataclass(frozen=True, slots=True)
class Method:
    """A method; `inputs` and `outputs` in the order of the wire."""

    name: str
    inputs: tuple[Argument, ...] = ()
    outputs: tuple[Argument, ...] = ()
    annotations: Annotations = ()


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal."""

    name: str
    arguments: tuple[Argument, ...] = ()
    annotations: Annotations = ()


@dataclass(frozen=True, slots=True)
class Property:
    """A property; `access` is read, write or readwrite."""

    name: str
    signature: str
    access: str = "read"
    annotations: Annotations = ()


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface."""

    name: str
    methods: tuple[Method, ...] = ()
    signals: tuple[Signal, ...] = ()
    properties: tuple[Property, ...] = ()
    annotations: Annotations = ()


@dataclass(frozen=True, slots=True)
class Node:
    """An object: its interfaces and the names of the nodes right below it."""

    interfaces: tuple[Interface, ...] = ()
    children: tuple[str, ...] = ()


def signature_of(arguments: tuple[Argument, ...]) -> str:
    """The signature of a body with these arguments."""
    return "".join(argument.signature for argument in arguments)


def to_xml(interfaces: tuple[Interface, ...], children: tuple[str, ...] = (), path: str | None = None) -> str:
    """The introspection document of one object; `path` is its absolute path, left out when None."""
    lines = [f"<node{_attributes(name=path)}>"]
    for interface in interfaces:
        lines.append(f"  <interface{_attributes(name=interface.name)}>")
        for method in interface.methods:
            inputs = [line for item in method.inputs for line in _argument(item, "in")]
            outputs = [line for item in method.outputs for line in _argument(item, "out")]
            lines += _element("method", method.name, inputs + outputs + _annotations(method.annotations))
        for signal in interface.signals:
            arguments = [line for item in signal.arguments for line in _argument(item, None)]
            lines += _element("signal", signal.name, arguments + _annotations(signal.annotations))
        for item in interface.properties:
            attributes = _attributes(name=item.name, type=item.signature, access=item.access)
            lines += _wrapped("property", attributes, _annotations(item.annotations))
        lines += ["    " + line for line in _annotations(interface.annotations)]
        lines.append("  </interface>")
    lines += [f"  <node{_attributes(name=child)}/>" for child in children]
    return DOCTYPE + "\n".join([*lines, "</node>", ""])


def from_xml(text: str) -> Node:
    """The root object of an introspection document. Raises IntrospectionInvalid naming the element and the line."""
    if len(text) > _LONGEST:
        raise IntrospectionInvalid(f"introspection XML: expected at most {_LONGEST} characters, got {len(text)}")
    reader = _Reader()
    try:
        reader.parser.Parse(text, True)  # noqa: FBT003 - expat's own signature
    except expat.ExpatError as error:
        raise IntrospectionInvalid(f"introspection XML: {error}") from None
    return Node(tuple(reader.interfaces), tuple(reader.children))


def _argument(argument: Argument, direction: str | None) -> list[str]:
    attributes = _attributes(name=argument.name or None, type=argument.signature, direction=direction)
    if not argument.annotations:
        return [f"<arg{attributes}/>"]
    return [f"<arg{attributes}>", *("  " + line for line in _annotations(argument.annotations)), "</arg>"]


def _annotations(annotations: Annotations) -> list[str]:
    return [f"<annotation{_attributes(name=name, value=value)}/>" for name, value in annotations]


def _element(kind: str, name: str, inner: list[str]) -> list[str]:
    return _wrapped(kind, _attributes(name=name), inner)


def _wrapped(kind: str, attributes: str, inner: list[str]) -> list[str]:
    if not inner:
        return [f"    <{kind}{attributes}/>"]
    return [f"    <{kind}{attributes}>", *("      " + line for line in inner), f"    </{kind}>"]


def _attributes(**values: str | None) -> str:
    # A line break in an attribute would be read back as a space.
    return "".join(
        f' {name}="{escape(value).replace(chr(10), "&#10;")}"' for name, value in values.items() if value is not None
    )


@dataclass(slots=True)
class _Open:
    """An element that has begun: what its children leave in it until it ends."""

    kind: str
    attributes: dict[str, str]
    arguments: list[tuple[str, Argument]] = field(default_factory=list)
    annotations: list[tuple[str, str]] = field(default_factory=list)
    methods: list[Method] = field(default_factory=list)
    signals: list[Signal] = field(default_factory=list)
    properties: list[Property] = field(default_factory=list)


class _Reader:
    """Builds the root node while expat reads."""

    def __init__(self) -> None:
        self.interfaces: list[Interface] = []
        self.children: list[str] = []
        self._stack: list[_Open] = []
        self.parser = expat.ParserCreate()
        self.parser.StartElementHandler = self._begin
        self.parser.EndElementHandler = self._end
        self.parser.EntityDeclHandler = self._refuse_entity

    def _refuse_entity(self, name: str, *_rest: object) -> None:
        raise self._invalid(f"entity {name!r}: declarations of entities are refused")

    def _begin(self, kind: str, attributes: dict[str, str]) -> None:
        if not self._stack and kind != "node":
            raise self._invalid(f"element <{kind}>: expected <node> as the root")
        if len(self._stack) >= _DEEPEST:
            raise self._invalid(f"element <{kind}>: expected at most {_DEEPEST} elements inside each other")
        self._stack.append(_Open(kind, attributes))

    def _end(self, _kind: str) -> None:
        done = self._stack.pop()
        if not self._stack:
            return
        around = self._stack[-1]
        match around.kind, done.kind:
            case "node", "interface" if len(self._stack) == 1:
                self.interfaces.append(self._interface(done))
            case "node", "node" if len(self._stack) == 1:
                self.children.append(self._attribute(done, "name"))
            case "interface", "method":
                inputs = tuple(a for direction, a in done.arguments if direction != "out")
                outputs = tuple(a for direction, a in done.arguments if direction == "out")
                around.methods.append(Method(self._member(done), inputs, outputs, tuple(done.annotations)))
            case "interface", "signal":
                arguments = tuple(argument for _, argument in done.arguments)
                around.signals.append(Signal(self._member(done), arguments, tuple(done.annotations)))
            case "interface", "property":
                around.properties.append(self._property(done))
            case (("method" | "signal"), "arg"):
                argument = Argument(done.attributes.get("name", ""), self._type(done), tuple(done.annotations))
                around.arguments.append((done.attributes.get("direction", "in"), argument))
            case _, "annotation":
                around.annotations.append((self._attribute(done, "name"), self._attribute(done, "value")))

    def _interface(self, done: _Open) -> Interface:
        name = self._attribute(done, "name")
        if not is_interface(name):
            raise self._invalid(f"<interface>: expected an interface name, got {name!r}")
        methods, signals, properties = tuple(done.methods), tuple(done.signals), tuple(done.properties)
        return Interface(name, methods, signals, properties, tuple(done.annotations))

    def _property(self, done: _Open) -> Property:
        access = self._attribute(done, "access")
        if access not in _ACCESS:
            raise self._invalid(f"<property> access: expected one of {', '.join(_ACCESS)}, got {access!r}")
        return Property(self._member(done), self._type(done), access, tuple(done.annotations))

    def _member(self, done: _Open) -> str:
        name = self._attribute(done, "name")
        if not is_member(name):
            raise self._invalid(f"<{done.kind}> name: expected a member name, got {name!r}")
        return name

    def _type(self, done: _Open) -> str:
        signature = self._attribute(done, "type")
        if not single(signature):
            raise self._invalid(f"<{done.kind}> type: expected one complete type, got {signature!r}")
        return signature

    def _attribute(self, done: _Open, name: str) -> str:
        value = done.attributes.get(name)
        if value is None:
            raise self._invalid(f"<{done.kind}>: expected an attribute {name!r}, got none")
        return value

    def _invalid(self, text: str) -> IntrospectionInvalid:
        return IntrospectionInvalid(f"introspection XML, line {self.parser.CurrentLineNumber}: {text}")
