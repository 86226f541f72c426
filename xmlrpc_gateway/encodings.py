"""One face over XML-RPC and JSON-RPC: a call, a reply, and what a daemon says to a call that it cannot read.

Which value has which type is for the holder of the interface to know; here it is only how a message is spelt.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Final, Protocol

from xmlrpc_gateway import dialects, jsonrpc_codec, xmlrpc_codec
from xmlrpc_gateway.dialects import Failure, Success
from xmlrpc_gateway.errors import CodecError
from xmlrpc_gateway.jsonrpc_codec import STYLES, NotJson, ReplyTo, Style
from xmlrpc_gateway.xmlrpc_codec import Value


@dataclass(frozen=True, slots=True)
class IncomingCall:
    """A call as it came. `reply_to` goes back into the writing of its reply, whatever it is."""

    method: str
    params: list[Value]
    reply_to: ReplyTo | None


class Encoding(Protocol):
    """How calls and replies are spelt.

    The `reply_to` of a reply is its call's, or None where the call could not be read. A failure's description is an
    encoded exception in rpclib; xapi's is [CODE, parameters...].
    """

    @property
    def name(self) -> str:
        """What it is called in settings and logs."""

    @property
    def content_type(self) -> str:
        """Of a body over HTTP."""

    @property
    def integers_as_text(self) -> bool:
        """Whether integers are passed to the writing methods as decimal text; else as integers."""

    def read_call(self, body: bytes) -> IncomingCall:
        """The call in a request's body. Raises CodecError."""

    def write_call(self, method: str, params: list[Value]) -> bytes:
        """A call of ours. Raises CodecError."""

    def write_success(self, reply_to: ReplyTo | None, value: Value) -> bytes:
        """The reply with a result. Raises CodecError."""

    def write_failure(self, reply_to: ReplyTo | None, description: Value) -> bytes:
        """The reply with an error. Raises CodecError."""

    def write_bare(self, reply_to: ReplyTo | None, value: Value) -> bytes:
        """The reply of a call whose result has no envelope over XML (xapi's system.listMethods). Raises CodecError."""

    def read_reply(self, body: bytes) -> Success | Failure:
        """What a reply says. Raises CodecError."""

    def refusal(self, error: CodecError) -> bytes | None:
        """The reply to a call that could not be read; None where the daemon closes, or says it by the HTTP status."""

    def method_of(self, body: bytes) -> str:
        """The method's name by a look at the body's ends, without parsing; "" when unsure."""


_END: Final = 512  # how much of a body's end is looked at
_NAME_IN_XML: Final = re.compile(rb"<methodName>([ -%'-;=-~]{1,200})</methodName>")
_NAME_IN_JSON: Final = rb'"method"[ \t\r\n]*:[ \t\r\n]*"([ !#-\[\]-~]{1,200})"'
# Nothing that opens before it or closes after it but the message: the member is the message's own.
_NAME_FIRST: Final = re.compile(rb"[ \t\r\n]*\{[^][{}]*?" + _NAME_IN_JSON)
_NAME_LAST: Final = re.compile(_NAME_IN_JSON + rb"[^][{}]*\}[ \t\r\n]*\Z")
_INVALID: Final = -32600  # JSON-RPC 2.0, section 5.1
_PARSE_ERROR: Final = -32700
_SENTENCE: Final = 500
_ids: Final = itertools.count(1)


class XmlEncoding:
    """XML-RPC with the envelope of xapi and rpclib."""

    name: Final = "xml"
    content_type: Final = "text/xml"
    integers_as_text: Final = True

    def read_call(self, body: bytes) -> IncomingCall:
        method, params = xmlrpc_codec.decode_call(body)
        return IncomingCall(method, params, None)

    def write_call(self, method: str, params: list[Value]) -> bytes:
        return xmlrpc_codec.encode_call(method, params)

    def write_success(self, reply_to: ReplyTo | None, value: Value) -> bytes:
        return xmlrpc_codec.encode_response(dialects.success(value))

    def write_failure(self, reply_to: ReplyTo | None, description: Value) -> bytes:
        return xmlrpc_codec.encode_response(dialects.failure(description))

    def write_bare(self, reply_to: ReplyTo | None, value: Value) -> bytes:
        return xmlrpc_codec.encode_response(value)

    def read_reply(self, body: bytes) -> Success | Failure:
        return dialects.open_envelope(xmlrpc_codec.decode_response(body))

    def refusal(self, error: CodecError) -> None:
        return None

    def method_of(self, body: bytes) -> str:
        head = body[:_END]
        found = None if b"<!" in head else _NAME_IN_XML.search(head)
        return found[1].decode() if found is not None else ""


@dataclass(frozen=True, slots=True)
class JsonEncoding:
    """JSON-RPC in one style. `refuses`: a call that cannot be read is answered, not met with silence."""

    name: str
    style: Style
    refuses: bool
    content_type: str = "application/json"
    integers_as_text: bool = False

    def read_call(self, body: bytes) -> IncomingCall:
        return IncomingCall(*jsonrpc_codec.decode_call(body, self.style))

    def write_call(self, method: str, params: list[Value]) -> bytes:
        return jsonrpc_codec.encode_call(method, params, next(_ids), self.style)

    def write_success(self, reply_to: ReplyTo | None, value: Value) -> bytes:
        return jsonrpc_codec.encode_success(reply_to, value, self.style)

    def write_failure(self, reply_to: ReplyTo | None, description: Value) -> bytes:
        return jsonrpc_codec.encode_failure(reply_to, description, self.style)

    def write_bare(self, reply_to: ReplyTo | None, value: Value) -> bytes:
        return self.write_success(reply_to, value)

    def read_reply(self, body: bytes) -> Success | Failure:
        return jsonrpc_codec.decode_reply(body, self.style)

    def refusal(self, error: CodecError) -> bytes | None:
        if not self.refuses:
            return None
        code, title = (_PARSE_ERROR, "Parse error") if isinstance(error, NotJson) else (_INVALID, "Invalid Request")
        # The place in it may hold any name that was sent, halves of surrogate pairs included.
        text = f"{title}: {error}"[:_SENTENCE].encode(errors="backslashreplace").decode()
        return jsonrpc_codec.encode_error(code, text, None, None, self.style)

    def method_of(self, body: bytes) -> str:
        found = _NAME_FIRST.match(body[:_END]) or _NAME_LAST.search(body[-_END:])
        return found[1].decode() if found is not None else ""


XML: Final[Encoding] = XmlEncoding()
JSON_RPCLIB: Final[Encoding] = JsonEncoding("json-rpclib", STYLES["rpclib"], refuses=False)
JSON_RPC_LIGHT: Final[Encoding] = JsonEncoding("json-rpc-light", STYLES["rpc-light"], refuses=False)
JSON_XAPI: Final[Encoding] = JsonEncoding("json-xapi", STYLES["xapi"], refuses=True)
JSON_OF: Final[dict[str, Encoding]] = {"xenapi": JSON_XAPI, "rpclib": JSON_RPCLIB, "rpclib-2012": JSON_RPC_LIGHT}
"""The JSON that daemons of each dialect speak."""
