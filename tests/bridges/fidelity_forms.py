"""The interfaces as they look outside: each one in the encodings of its dialect, and on the bus."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from bridges import dbus_translation
from bridges.interfaces import model
from bridges.xmlrpc_translation import MethodForm, Translation
from xmlrpc_gateway import jsonrpc_codec
from xmlrpc_gateway.dialects import DIALECTS, Success
from xmlrpc_gateway.encodings import JSON_RPC_LIGHT, JSON_RPCLIB, JSON_XAPI, XML, Encoding, JsonEncoding

ENCODINGS: Final[dict[str, tuple[Encoding, Encoding]]] = {
    "rpclib": (XML, JSON_RPCLIB),
    "rpclib-2012": (XML, JSON_RPC_LIGHT),
    "xenapi": (XML, JSON_XAPI),
}


@dataclass(frozen=True)
class Form:
    """An interface in one dialect and one encoding.

    `stem` names the interface's file; the dialect is the interface's own, unless a daemon of 2013 has what only
    today's interface knows.
    """

    stem: str
    encoding: Encoding
    dialect: str

    @property
    def translation(self) -> Translation:
        return _translation(self.dialect, self.encoding)

    def method(self, name: str) -> model.Method | None:
        """The method of that exact name."""
        return model.load(self.stem).method(name)

    def of(self, method: model.Method) -> MethodForm:
        """How that method looks in this form."""
        return self.translation.of(method)

    def write_call(self, name: str, params: list[Any], call_id: Any = 1) -> bytes:
        """A call with that id, where the encoding has ids."""
        if isinstance(self.encoding, JsonEncoding):
            return jsonrpc_codec.encode_call(name, params, call_id, self.encoding.style)
        return self.encoding.write_call(name, params)

    def over_call(self, name: str, params: list[Any]) -> list[Any]:
        """The params of a call after they were bytes."""
        incoming = self.encoding.read_call(self.encoding.write_call(name, params))
        assert incoming.method == name
        return incoming.params

    def over_reply(self, wire: Any) -> Any:
        """A result after it was bytes."""
        found = self.encoding.read_reply(self.encoding.write_success(None, wire))
        assert isinstance(found, Success)
        return found.value

    def over_failure(self, wire: Any) -> Any:
        """A failure's description after it was bytes."""
        found = self.encoding.read_reply(self.encoding.write_failure(None, wire))
        assert not isinstance(found, Success)
        return found.description


@cache
def _translation(dialect: str, encoding: Encoding) -> Translation:
    return Translation(DIALECTS[dialect], integers_as_text=encoding.integers_as_text)


@cache
def forms(stem: str) -> tuple[Form, ...]:
    """An interface in the encodings of its dialect."""
    dialect = model.load(stem).dialect
    return tuple(Form(stem, encoding, dialect) for encoding in ENCODINGS[dialect])


@cache
def on_bus(stem: str) -> dbus_translation.Translation:
    """An interface on the bus: a bus caller's unknown members are refused."""
    return dbus_translation.Translation(model.load(stem))


@cache
def in_daemon(stem: str) -> dbus_translation.Translation:
    """An interface as a newer bus daemon reads its calls: members that are not written down are kept."""
    translation = dbus_translation.Translation(model.load(stem))
    translation.callers_values = translation.values
    return translation
