"""Objects with interfaces, answered for a bus: `bus.serve(tree.answer)`.

Beside what is added, every object answers org.freedesktop.DBus.Introspectable, .Peer and .Properties, and so do the
nodes between the root and an object, so that browsers of the bus find their way down. There is no ObjectManager: it
would send everything to everybody. Calls for what is not there get the org.freedesktop.DBus.Error names that the
specification gives them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from dbus_side.errors import BusRefused, NameInvalid
from dbus_side.introspection import Argument, Interface, Method, Property, Signal, signature_of, to_xml
from dbus_side.messages import MethodCall
from dbus_side.names import is_object_path
from dbus_side.signatures import Variant

MethodHandler = Callable[[MethodCall, Method], Awaitable[tuple[Any, ...]]]
Getters = Mapping[str, Callable[[], Any]]

_INTROSPECTABLE: Final = Interface(
    "org.freedesktop.DBus.Introspectable", (Method("Introspect", (), (Argument("xml_data", "s"),)),)
)
_PEER: Final = Interface(
    "org.freedesktop.DBus.Peer", (Method("Ping"), Method("GetMachineId", (), (Argument("machine_uuid", "s"),)))
)
_NAMES: Final = (Argument("interface_name", "s"), Argument("property_name", "s"))
_PROPERTIES: Final = Interface(
    "org.freedesktop.DBus.Properties",
    (
        Method("Get", _NAMES, (Argument("value", "v"),)),
        Method("Set", (*_NAMES, Argument("value", "v"))),
        Method("GetAll", _NAMES[:1], (Argument("props", "a{sv}"),)),
    ),
    (
        Signal(
            "PropertiesChanged",
            (
                Argument("interface_name", "s"),
                Argument("changed_properties", "a{sv}"),
                Argument("invalidated_properties", "as"),
            ),
        ),
    ),
)
_MACHINE_ID: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))


class _Part:
    """One interface of one object, with what answers it; described when it is first asked for."""

    def __init__(self, name: str, describe: Callable[[], Interface], handler: MethodHandler, getters: Getters) -> None:
        self.name = name
        self.handler = handler
        self.getters = getters
        self._describe = describe

    @cached_property
    def interface(self) -> Interface:
        return self._describe()

    @cached_property
    def methods(self) -> dict[str, tuple[Method, str, str]]:
        return {m.name: (m, signature_of(m.inputs), signature_of(m.outputs)) for m in self.interface.methods}

    def find_property(self, name: str) -> Property | None:
        """The declared property."""
        return next((item for item in self.interface.properties if item.name == name), None)

    def value(self, item: Property) -> Variant:
        """What the property is now."""
        return Variant(item.signature, self.getters[item.name]())


def _part(interface: Interface, handler: MethodHandler, getters: Getters | None = None) -> _Part:
    return _Part(interface.name, lambda: interface, handler, getters or {})


class ObjectTree:
    """The objects of one connection."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[str, _Part]] = {}
        self._standard = {
            interface.name: _part(interface, handler)
            for interface, handler in (
                (_INTROSPECTABLE, self._introspect),
                (_PEER, _answer_peer),
                (_PROPERTIES, self._answer_properties),
            )
        }

    def add(self, path: str, interface: Interface, handler: MethodHandler, getters: Getters | None = None) -> None:
        """Answer an interface at a path from now on.

        `handler` gives the output arguments as a tuple, or raises BusRefused. `getters` has one function without
        arguments for every property. Raises NameInvalid for the path, ValueError when the interface is there already
        or a getter is missing.
        """
        found = getters or {}
        missing = [item.name for item in interface.properties if item.name not in found]
        if missing:
            raise ValueError(f"{interface.name}: expected a getter for each property, got none for {missing}")
        self._add(path, _part(interface, handler, found))

    def add_described(
        self, path: str, interface_name: str, describe: Callable[[], Interface], handler: MethodHandler
    ) -> None:
        """As `add`, for an interface without properties that `describe` gives when somebody first asks for it."""
        self._add(path, _Part(interface_name, describe, handler, {}))

    def _add(self, path: str, part: _Part) -> None:
        if not is_object_path(path):
            raise NameInvalid("object path", path)
        parts = self._objects.setdefault(path, {})
        if part.name in parts or part.name in self._standard:
            raise ValueError(f"{path}: has {part.name} already")
        parts[part.name] = part

    def remove(self, path: str, interface_name: str) -> None:
        """Undo one `add`. KeyError when it is not there."""
        del self._objects[path][interface_name]
        if not self._objects[path]:
            del self._objects[path]

    async def answer(self, call: MethodCall) -> tuple[str, tuple[Any, ...]]:
        """The reply to a call, for `bus.serve`. Raises BusRefused."""
        part = self._find_part(call)
        found = part.methods.get(call.member)
        if found is None:
            raise _refused("UnknownMethod", f"{part.name} has no method {call.member}")
        method, inputs, outputs = found
        if call.signature != inputs:
            raise _refused(
                "InvalidArgs",
                f"{part.name}.{call.member}: expected {_described(method)}, got {call.signature!r}",
            )
        return outputs, await part.handler(call, method)

    def _find_part(self, call: MethodCall) -> _Part:
        parts = self._objects.get(call.path)
        if parts is not None and call.interface in parts:
            return parts[call.interface]
        if call.interface == _PEER.name:  # the specification wants it at every path
            return self._standard[call.interface]
        if parts is None and not self._children(call.path):
            raise _refused("UnknownObject", f"there is no object {call.path}")
        there = self._standard | (parts or {})
        if call.interface is not None:
            if call.interface not in there:
                raise _refused("UnknownInterface", f"{call.path} has no interface {call.interface}")
            return there[call.interface]
        candidates = [part for part in there.values() if call.member in part.methods]
        if len(candidates) != 1:
            named = ", ".join(part.name for part in candidates) or "no interface"
            raise _refused("UnknownMethod", f"{call.path}: {call.member} without an interface: it is in {named}")
        return candidates[0]

    def _children(self, path: str) -> tuple[str, ...]:
        prefix = path.rstrip("/") + "/"
        below = (known.removeprefix(prefix) for known in self._objects if known.startswith(prefix))
        return tuple(sorted({rest.partition("/")[0] for rest in below if rest}))

    async def _introspect(self, call: MethodCall, _method: Method) -> tuple[Any, ...]:
        own = self._objects.get(call.path, {})
        parts = (*own.values(), *self._standard.values())
        return (to_xml(tuple(part.interface for part in parts), self._children(call.path), call.path),)

    async def _answer_properties(self, call: MethodCall, method: Method) -> tuple[Any, ...]:
        interface_name = call.body[0]
        part = (self._standard | self._objects.get(call.path, {})).get(interface_name)
        if part is None:
            raise _refused("UnknownInterface", f"{call.path} has no interface {interface_name}")
        if method.name == "GetAll":
            return ({item.name: part.value(item) for item in part.interface.properties if item.access != "write"},)
        item = part.find_property(call.body[1])
        if item is None:
            raise _refused("UnknownProperty", f"{interface_name} has no property {call.body[1]}")
        if method.name == "Set":
            raise _refused("PropertyReadOnly", f"{interface_name}.{item.name} cannot be set: properties are read only")
        return (part.value(item),)


async def _answer_peer(_call: MethodCall, method: Method) -> tuple[Any, ...]:
    if method.name == "Ping":
        return ()
    for path in _MACHINE_ID:
        if path.exists():
            return (path.read_text().strip(),)
    raise _refused("Failed", "this machine has no machine id")


def _described(method: Method) -> str:
    return (
        f"({', '.join(f'{item.name}: {item.signature}' for item in method.inputs)})"
        if method.inputs
        else "no arguments"
    )


def _refused(kind: str, text: str) -> BusRefused:
    return BusRefused(f"org.freedesktop.DBus.Error.{kind}", "s", (text,))
