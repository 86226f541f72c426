"""XML-RPC documents to values and back, in the bytes of rpclib (mirage/ocaml-rpc 8.1.2).

Read: strings with or without tag, white space in them kept; `i4`, `int`, `i8` alike and without blanks; booleans 0 and
1; `nil`; blanks between tags, comments, CDATA, attributes and declared prefixes as rpclib takes them; UTF-8, ISO-8859-1
and ASCII.
Written: compact, strings untagged, `'` literal, floats by `%.16g`, as rpclib does, except that

    * member names are escaped (rpclib writes them raw, which breaks the document on `<` and `&`)
    * a carriage return becomes `&#13;` (rpclib writes it raw, and every parser then reads a line feed)
    * control characters are refused by name (rpclib drops them in silence)
    * a float that 16 digits do not determine gets 17

An integer is written with its tag. Where rpclib would write it untagged, the caller passes its decimal text.
"""

from __future__ import annotations

import base64
import binascii
import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from typing import Final, NoReturn
from xml.parsers import expat

from xmlrpc_gateway.errors import (
    BadScalar,
    CodecError,
    DuplicateMember,
    Forbidden,
    Malformed,
    NotXmlText,
    OverLimit,
    UnknownTag,
)


@dataclass(frozen=True, slots=True)
class DateTime:
    """A dateTime.iso8601 by its text: the dialects write it in several ways, and none may be lost."""

    text: str


@dataclass(frozen=True, slots=True)
class XmlRpcFault:
    """A methodResponse that carries `<fault>`."""

    code: int
    text: str


Value = None | bool | int | float | str | bytes | DateTime | list["Value"] | dict[str, "Value"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a document may cost: bytes, `<` characters (a parsed tag takes some 80 bytes of memory), nested values."""

    size: int = 64 * 1024 * 1024
    tags: int = 4_000_000
    depth: int = 64


LIMITS: Final = Limits()
# Our own daemon's answers: all records of a large pool are more than any caller may send (5,000 VMs: 3.5 million tags).
REPLY_LIMITS: Final = Limits(size=256 * 1024 * 1024, tags=16_000_000)
TOO_DEEP: Final = f"values are nested too deeply, the limit is {LIMITS.depth}"


def decode_call(body: bytes, limits: Limits = LIMITS) -> tuple[str, list[Value]]:
    """Method name and parameters of a methodCall. Raises CodecError."""
    root = _parse(body, limits)
    if root.tag != "methodCall":
        raise Malformed(f"expected <methodCall>, got <{root.tag[:60]}>")
    if len(root) != 2 or root[0].tag != "methodName" or root[1].tag != "params":
        raise Malformed(f"<methodCall>: expected <methodName> and <params>, got {_names(root)}")
    name = root[0].text
    if not name or len(root[0]):
        raise Malformed("<methodName>: expected a text")
    return name, _params(root[1], limits.depth)


def decode_response(body: bytes, limits: Limits = REPLY_LIMITS) -> Value | XmlRpcFault:
    """The only value of a methodResponse, or its fault. Raises CodecError."""
    root = _parse(body, limits)
    if root.tag != "methodResponse":
        raise Malformed(f"expected <methodResponse>, got <{root.tag[:60]}>")
    if len(root) == 1:
        if root[0].tag == "params":
            params = _params(root[0], limits.depth)
            if len(params) != 1:
                raise Malformed(f"<methodResponse>: expected one param, got {len(params)}")
            return params[0]
        if root[0].tag == "fault":
            return _fault(root[0], limits.depth)
    raise Malformed(f"<methodResponse>: expected <params> or <fault>, got {_names(root)}")


def encode_call(method: str, params: list[Value]) -> bytes:
    """A methodCall. Raises NotXmlText, or OverLimit for values nested too deeply."""
    parts = ['<?xml version="1.0"?><methodCall><methodName>', _escaped(method), "</methodName><params>"]
    for index, value in enumerate(params):
        parts.append("<param>")
        _write_at(f"params[{index}]", parts, value)
        parts.append("</param>")
    parts.append("</params></methodCall>")
    return "".join(parts).encode()


def encode_response(value: Value) -> bytes:
    """A methodResponse with one value. Raises NotXmlText, or OverLimit for values nested too deeply."""
    parts = ['<?xml version="1.0"?><methodResponse><params><param>']
    _write(parts, value, LIMITS.depth)
    parts.append("</param></params></methodResponse>")
    return "".join(parts).encode()


def encode_fault(code: int, text: str) -> bytes:
    """A methodResponse with a fault. Raises NotXmlText."""
    parts = ['<?xml version="1.0"?><methodResponse><fault>']
    _write(parts, {"faultCode": code, "faultString": text}, LIMITS.depth)
    parts.append("</fault></methodResponse>")
    return "".join(parts).encode()


# --- reading ---------------------------------------------------------------------------------------------------------

_ENCODING: Final = re.compile(rb"""\s*<\?xml\s[^>]{0,200}?\sencoding\s*=\s*["']([A-Za-z0-9._-]{1,40})["']""")
_ENCODINGS: Final = frozenset({b"utf-8", b"iso-8859-1", b"us-ascii"})
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
_FLOAT: Final = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+([eE][+-]?[0-9]+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE
)
_INT64: Final = 2**63
_INT32: Final = 2**31


def _parse(body: bytes, limits: Limits) -> ET.Element:
    """The document's tree. Raises Malformed or Forbidden."""
    if len(body) > limits.size:
        raise OverLimit(f"the document has {len(body)} bytes, the limit is {limits.size}")
    if b"\0" in body or body[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise Forbidden("the document holds NUL or is UTF-16, expected UTF-8, ISO-8859-1 or ASCII")
    if body.count(b"<") > limits.tags:
        raise OverLimit(f"the document has more than {limits.tags} tags")
    declared = _ENCODING.match(body.removeprefix(b"\xef\xbb\xbf"))
    if declared is not None and declared[1].lower() not in _ENCODINGS:
        raise Forbidden(f"encoding {declared[1].decode()}: expected UTF-8, ISO-8859-1 or US-ASCII")
    if b"<!DOCTYPE" in body:
        _refuse_doctype(body)
    try:
        root = ET.fromstring(body)  # noqa: S314 -- without a DOCTYPE there are no entities to expand or fetch
    except ET.ParseError as error:
        raise Malformed(f"no XML: {error}") from None
    if b"xmlns" in body:
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]
    return root


def _refuse_doctype(body: bytes) -> None:
    """Raises Forbidden if the document has a DOCTYPE: the word may also stand in a comment or in CDATA."""

    def refuse(*_: object) -> NoReturn:
        raise Forbidden("DOCTYPE is not allowed")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(body, True)  # noqa: FBT003 -- pyexpat takes no keyword
    except expat.ExpatError as error:
        raise Malformed(f"no XML: {error}") from None


def _names(element: ET.Element) -> str:
    return ", ".join(f"<{child.tag[:40]}>" for child in element[:5]) or "nothing"


def _params(element: ET.Element, depth: int) -> list[Value]:
    params: list[Value] = []
    for param in element:
        if param.tag != "param" or len(param) != 1 or param[0].tag != "value":
            raise Malformed(
                f"params[{len(params)}]: expected <param> with one <value>, got <{param.tag[:40]}> with {_names(param)}"
            )
        try:
            params.append(_read(param[0], depth))
        except CodecError as error:
            error.steps.append(f"params[{len(params)}]")
            raise
    return params


def _fault(element: ET.Element, depth: int) -> XmlRpcFault:
    if len(element) != 1 or element[0].tag != "value":
        raise Malformed(f"<fault>: expected one <value>, got {_names(element)}")
    match _read(element[0], depth):
        case {"faultCode": int(code) | str(code), "faultString": str(text)} if _INTEGER.fullmatch(str(code)):
            return XmlRpcFault(int(code), text)
    raise Malformed("<fault>: expected a struct with faultCode, an integer, and faultString, a string")


def _read(element: ET.Element, depth: int) -> Value:
    """The value of a `<value>` element; `depth` is how many levels may still follow."""
    if not len(element):
        return element.text or ""
    child = element[0]
    if len(element) != 1 or _is_text(element.text) or _is_text(child.tail):
        raise Malformed(f"<value>: expected a text or one typed element, got {_names(element)} and text")
    tag = child.tag
    if tag == "struct":
        return _read_struct(child, depth)
    if tag == "array":
        return _read_array(child, depth)
    reader = _SCALARS.get(tag)
    if reader is None:
        raise UnknownTag(tag)
    if len(child):
        raise Malformed(f"<{tag}>: expected a text, got {_names(child)}")
    return reader(tag, child.text or "")


def _is_text(between: str | None) -> bool:
    return between is not None and not between.isspace()


def _read_struct(element: ET.Element, depth: int) -> Value:
    if depth <= 0:
        raise OverLimit(TOO_DEEP)
    members: dict[str, Value] = {}
    for member in element:
        if member.tag != "member" or len(member) != 2:
            raise Malformed(f"<struct>: expected <member> with <name> and <value>, got <{member.tag[:40]}>")
        key, value = member
        if key.tag != "name" or value.tag != "value" or len(key):
            raise Malformed(f"<member>: expected <name> and <value>, got {_names(member)}")
        name = key.text or ""
        if name in members:
            raise DuplicateMember(name)
        try:
            # Most members are plain strings: worth not paying a call for.
            members[name] = _read(value, depth - 1) if len(value) else value.text or ""
        except CodecError as error:
            error.steps.append(f".{name}")
            raise
    return members


def _read_array(element: ET.Element, depth: int) -> Value:
    if depth <= 0:
        raise OverLimit(TOO_DEEP)
    if not len(element):
        return []
    data = element[0]
    if len(element) != 1 or data.tag != "data":
        raise Malformed(f"<array>: expected one <data>, got {_names(element)}")
    items: list[Value] = []
    for value in data:
        if value.tag != "value":
            raise Malformed(f"<data>: expected <value>, got <{value.tag[:40]}>")
        try:
            items.append(_read(value, depth - 1) if len(value) else value.text or "")
        except CodecError as error:
            error.steps.append(f"[{len(items)}]")
            raise
    return items


def _read_string(_tag: str, text: str) -> Value:
    return text


def _read_integer(tag: str, text: str) -> Value:
    if _INTEGER.fullmatch(text) and -_INT64 <= (number := int(text)) < _INT64:
        return number
    raise BadScalar(tag, text, "a decimal 64-bit integer")


def _read_boolean(tag: str, text: str) -> Value:
    if text in ("0", "1"):
        return text == "1"
    raise BadScalar(tag, text, "0 or 1")


def _read_double(tag: str, text: str) -> Value:
    if _FLOAT.fullmatch(text):
        return float(text)
    raise BadScalar(tag, text, "a decimal number, nan or inf")


def _read_nil(tag: str, text: str) -> Value:
    if text:
        raise BadScalar(tag, text, "nothing")
    return None


def _read_datetime(_tag: str, text: str) -> Value:
    return DateTime(text)


def _read_base64(tag: str, text: str) -> Value:
    try:
        return binascii.a2b_base64("".join(text.split()), strict_mode=True)
    except ValueError:
        raise BadScalar(tag, text, "base64") from None


_SCALARS: Final = {
    "string": _read_string,
    "i4": _read_integer,
    "int": _read_integer,
    "i8": _read_integer,
    "boolean": _read_boolean,
    "double": _read_double,
    "nil": _read_nil,
    "dateTime.iso8601": _read_datetime,
    "base64": _read_base64,
}


# --- writing ---------------------------------------------------------------------------------------------------------

_SPECIAL: Final = re.compile('[&<>"\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]')
_NOT_TEXT: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_ESCAPES: Final = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;"), ("\r", "&#13;"))  # `&` first


def _escaped(text: str) -> str:
    if _SPECIAL.search(text) is None:
        return text
    if (bad := _NOT_TEXT.search(text)) is not None:
        raise NotXmlText(f"character U+{ord(bad[0]):04X} at offset {bad.start()} cannot stand in XML")
    # Several passes in C: str.translate looks every character up, and took eight times as long for 10 MB.
    for character, entity in _ESCAPES:
        text = text.replace(character, entity)
    return text


def _write_at(step: str, parts: list[str], value: Value, depth: int = LIMITS.depth) -> None:
    try:
        _write(parts, value, depth)
    except CodecError as error:
        error.steps.append(step)
        raise


def _write(parts: list[str], value: Value, depth: int) -> None:
    """Appends the `<value>` element of a value; `depth` is how many levels may still follow."""
    if isinstance(value, str):
        parts.append(f"<value>{_escaped(value)}</value>")
    elif isinstance(value, dict):
        _write_struct(parts, value, depth)
    elif isinstance(value, list):
        _write_array(parts, value, depth)
    else:
        parts.append(f"<value>{_scalar(value)}</value>")


def _write_struct(parts: list[str], members: dict[str, Value], depth: int) -> None:
    if depth <= 0:
        raise OverLimit(TOO_DEEP)
    parts.append("<value><struct>")
    for name, value in members.items():
        try:
            parts.append(f"<member><name>{_escaped(name)}</name>")
            _write(parts, value, depth - 1)
        except CodecError as error:
            error.steps.append(f".{name}")
            raise
        parts.append("</member>")
    parts.append("</struct></value>")


def _write_array(parts: list[str], items: list[Value], depth: int) -> None:
    if depth <= 0:
        raise OverLimit(TOO_DEEP)
    parts.append("<value><array><data>")
    for index, item in enumerate(items):
        try:
            _write(parts, item, depth - 1)
        except CodecError as error:
            error.steps.append(f"[{index}]")
            raise
    parts.append("</data></array></value>")


def _scalar(value: bool | int | float | bytes | DateTime | None) -> str:  # noqa: FBT001 -- a value, not a switch
    match value:
        case None:
            return "<nil/>"
        case bool():
            return "<boolean>1</boolean>" if value else "<boolean>0</boolean>"
        case int() if -_INT32 <= value < _INT32:
            return f"<i4>{value}</i4>"
        case int():
            return f"<i8>{value}</i8>"
        case float():
            return f"<double>{_digits(value)}</double>"
        case bytes():
            return f"<base64>{base64.b64encode(value).decode()}</base64>"
        case DateTime():
            return f"<dateTime.iso8601>{_escaped(value.text)}</dateTime.iso8601>"


def _digits(number: float) -> str:
    text = f"{number:.16g}"
    # NaN equals nothing, and has no digits to add.
    return text if float(text) == number or number != number else f"{number:.17g}"  # noqa: PLR0124 -- the NaN test
