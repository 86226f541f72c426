r"""JSON-RPC calls and replies to values and back, in the bytes of the toolstack's daemons.

The values are those of xmlrpc_codec; bytes and DateTime are written as text, and read as text. Three styles:

    rpclib      today's services (mirage/ocaml-rpc 8.1.2 on yojson 2.0.2): compact, floats by `%.16g` or else `%.17g`
                and never without `.` or `e`, NaN, Infinity and -Infinity bare
    rpc-light   the services of 2012 and 2013: blanks after `,` and `:`, `\/`, floats by `%f`, control characters
                without a short escape raw; `\uXXXX` is read as those six characters
    xapi        rpclib's text; a reply has its call's id and version, and a failure in version 2 is an error object

Other than those daemons we refuse by name what would be lost or broken: a member that occurs twice, an integer beyond
64 bits, lone surrogates, bytes that are no UTF-8, NaN and infinities in rpc-light (it writes `nan`, which it cannot
read); and a float that six decimals do not determine gets as many as it needs. yojson's comments, tuples and names
without quotes are not read: nobody writes them.
"""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import dataclass, replace
from decimal import Decimal
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Final, Literal, cast

from xmlrpc_gateway.dialects import Failure, Success
from xmlrpc_gateway.errors import CodecError, DuplicateMember, Malformed, OverLimit
from xmlrpc_gateway.xmlrpc_codec import LIMITS, TOO_DEEP, DateTime, Limits, Value

if TYPE_CHECKING:
    from collections.abc import Callable


class NotJson(Malformed):
    """The bytes are no JSON document in UTF-8."""


class Batch(Malformed):
    """The document is an array of calls: no daemon of the toolstack takes several calls at once."""


class NotJsonValue(CodecError):
    """A value without a spelling: an integer beyond 64 bits, a lone surrogate, a float that is no number."""


@dataclass(frozen=True, slots=True)
class Style:
    r"""One way of writing and reading JSON-RPC.

    comma, colon        what stands between items, and between a name and its value
    number              writes a float
    finish              makes the standard library's escapes in a document the style's own
    constants           NaN, Infinity and -Infinity are read
    unicode_escapes     `\uXXXX` is read as the character it names; else as those six characters
    line_feeds          a raw line feed may stand in a string
    trailing            what follows the document is ignored; else it is an error
    ids                 the types that a call's id may have
    versions            `"jsonrpc": "2.0"` makes a call one of version 2; else that member means nothing
    echoes              a reply has its call's id and version; else the id 0 and version 1
    """

    comma: str
    colon: str
    number: Callable[[float], str]
    finish: Callable[[str], str]
    constants: bool
    unicode_escapes: bool
    line_feeds: bool
    trailing: bool
    ids: frozenset[type]
    versions: bool
    echoes: bool


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """What a reply needs to know of its call."""

    id: int | float | str
    version: Literal[1, 2]


def decode_call(body: bytes, style: Style, limits: Limits = LIMITS) -> tuple[str, list[Value], ReplyTo]:
    """Method name, parameters, and what the reply needs. Raises CodecError.

    Named parameters, which only version 2 has, are one parameter: a struct.
    """
    members = _read_document(body, style, limits)
    version: Literal[1, 2] = 2 if style.versions and _is_version_2(members) else 1
    method = members.get("method")
    if not isinstance(method, str):
        raise _unexpected(members, "method", "a string")
    params = members.get("params")
    if version == 2 and "params" not in members:
        params = []
    elif version == 2 and isinstance(params, dict):
        params = [params]
    elif not isinstance(params, list):
        raise _unexpected(members, "params", "an array" if version == 1 else "an array or an object")
    call_id = members.get("id")
    if type(call_id) not in style.ids:
        raise _unexpected(members, "id", " or ".join(sorted(_SHAPES[kind] for kind in style.ids)))
    return method, params, ReplyTo(cast("int | float | str", call_id), version)


def encode_call(method: str, params: list[Value], call_id: int, style: Style) -> bytes:
    """A call; one of version 2 where the style has it and echoes ids. Raises CodecError."""
    members: dict[str, Value] = {"method": method, "params": params, "id": call_id}
    return _write_document({"jsonrpc": "2.0", **members} if style.echoes else members, style)


def decode_reply(body: bytes, style: Style, limits: Limits = LIMITS) -> Success | Failure:
    """What a reply of either version says, whatever its id is. Raises CodecError.

    The error object of version 2 is the failure [message, data...].
    """
    members = _read_document(body, style, limits)
    result, error = members.get("result"), members.get("error")
    if _is_version_2(members):
        if "result" in members and "error" not in members:
            return Success(result)
        if "result" not in members and isinstance(error, dict) and isinstance(error.get("message"), str):
            data = error.get("data", [])
            return Failure([error["message"], *(data if isinstance(data, list) else [data])])
        raise Malformed("expected either result, or error with a message")
    if "result" not in members or "error" not in members or (result is not None and error is not None):
        raise Malformed("expected result and error, one of them null")
    return Success(result) if error is None else Failure(error)


def encode_success(reply_to: ReplyTo | None, value: Value, style: Style) -> bytes:
    """The reply with a result; `reply_to` is None for a call whose id is not known. Raises CodecError."""
    reply_id, version = _address(reply_to, style)
    if version == 2:
        return _write_document({"jsonrpc": "2.0", "result": value, "id": reply_id}, style)
    return _write_document({"result": value, "error": None, "id": reply_id}, style)


def encode_failure(reply_to: ReplyTo | None, description: Value, style: Style) -> bytes:
    """The reply with an error; for version 2 it is [CODE, parameters...]. Raises CodecError."""
    reply_id, version = _address(reply_to, style)
    if version == 1:
        return _write_document({"result": None, "error": description, "id": reply_id}, style)
    match description:
        case [str(code), *parameters]:
            return encode_error(1, code, parameters, reply_id, style)
    raise Malformed(f"expected a failure [CODE, parameters...], got {_shape(description)}")


def encode_error(
    code: int, message: str, data: list[Value] | None, reply_id: float | str | None, style: Style
) -> bytes:
    """A reply with an error object of version 2; `data` None leaves that member out. Raises CodecError."""
    error: dict[str, Value] = {"code": code, "message": message}
    if data is not None:
        error["data"] = data
    return _write_document({"jsonrpc": "2.0", "error": error, "id": reply_id}, style)


# --- messages --------------------------------------------------------------------------------------------------------

_MESSAGE_DEPTH: Final = 2  # levels that a message has around its values
_SHAPES: Final = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a float",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def _shape(value: Value) -> str:
    return _SHAPES.get(type(value), "another value")


def _unexpected(members: dict[str, Value], name: str, expected: str) -> Malformed:
    got = _shape(members[name]) if name in members else "nothing"
    return Malformed(f"{name}: expected {expected}, got {got}")


def _is_version_2(members: dict[str, Value]) -> bool:
    if "jsonrpc" in members and members["jsonrpc"] != "2.0":
        raise _unexpected(members, "jsonrpc", 'the string "2.0"')
    return "jsonrpc" in members


def _address(reply_to: ReplyTo | None, style: Style) -> tuple[int | float | str | None, Literal[1, 2]]:
    """The id and version of a reply."""
    if not style.echoes:
        return 0, 1
    return (None, 2) if reply_to is None else (reply_to.id, reply_to.version)


# --- reading ---------------------------------------------------------------------------------------------------------

_INT64: Final = 2**63
_INT64_CHARACTERS: Final = len(str(-_INT64))
_BLANKS: Final = re.compile(r"[ \t\n\r]*")
_UNICODE_ESCAPE: Final = re.compile(r"(?<!\\)((?:\\\\)*+)\\u")
_LONE: Final = re.compile("[\ud800-\udfff]")
_CONTAINERS: Final = (dict, list)
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")
_LINE_FEEDS_BETWEEN: Final = re.compile(r'(?:[^"]++|"(?:[^"\\\n]++|\\.)*+")*+', re.DOTALL)


def _members(pairs: list[tuple[str, object]]) -> object:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    for name, _ in pairs:
        if name not in members:
            return DuplicateMember(name)
        del members[name]
    raise AssertionError("fewer members than pairs, but no name twice")


def _integer(text: str) -> object:
    if len(text) <= _INT64_CHARACTERS and -_INT64 <= (number := int(text)) < _INT64:
        return number
    return NotJsonValue(f"the integer {text[:60]} does not fit 64 bits")


def _no_constant(text: str) -> object:
    return NotJson(f"no JSON: {text} is no number")


# What a hook gives in place of a value it cannot read, an error, is found with its place when the document is checked.
_DECODER: Final = json.JSONDecoder(object_pairs_hook=_members, parse_int=_integer, strict=False)
_DECODER_WITHOUT_CONSTANTS: Final = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_constant=_no_constant, strict=False
)


def _read_document(body: bytes, style: Style, limits: Limits) -> dict[str, Value]:
    """The members of the message. Raises CodecError."""
    if len(body) > limits.size:
        raise OverLimit(f"the document has {len(body)} bytes, the limit is {limits.size}")
    if body.count(b",") + body.count(b"[") + body.count(b"{") > limits.tags:
        raise OverLimit(f"the document has more than {limits.tags} values")
    value = _parse(body, style)
    if isinstance(value, CodecError):
        raise value
    if isinstance(value, list):
        raise Batch(f"expected one call or reply, got an array of {len(value)}: batches are not served")
    if not isinstance(value, dict):
        raise Malformed(f"expected an object, got {_shape(value)}")
    has_surrogates = style.unicode_escapes and _SURROGATE_ESCAPE.search(body) is not None
    _check(value, limits.depth + _MESSAGE_DEPTH, has_surrogates=has_surrogates)
    return value


def _parse(body: bytes, style: Style) -> Value | CodecError:
    """The document as it stands, with errors in place of what cannot be read. Raises NotJson, Forbidden."""
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise NotJson(f"no JSON: byte 0x{body[error.start]:02x} at offset {error.start} is no UTF-8") from None
    if not style.unicode_escapes and "\\u" in text:
        text = _UNICODE_ESCAPE.sub(r"\1\\\\u", text)
    decoder = _DECODER if style.constants else _DECODER_WITHOUT_CONSTANTS
    try:
        value, end = decoder.raw_decode(text, _after_blanks(text, 0))
    except json.JSONDecodeError as error:
        raise NotJson(f"no JSON: {error.msg} at offset {error.pos}") from None
    except RecursionError:
        raise OverLimit(TOO_DEEP) from None
    if not style.trailing and (surplus := _after_blanks(text, end)) != len(text):
        raise NotJson(f"no JSON: the document ends at offset {surplus}, but there is more")
    if not style.line_feeds and "\n" in text and _LINE_FEEDS_BETWEEN.fullmatch(text, 0, end) is None:
        raise NotJson("no JSON: a string holds a line feed")
    return cast("Value | CodecError", value)


def _after_blanks(text: str, start: int) -> int:
    found = _BLANKS.match(text, start)
    assert found is not None
    return found.end()


def _check(values: dict[str, Value] | list[Value], depth: int, *, has_surrogates: bool) -> None:
    """Raises the first error among the values, with its place; `depth` is how many levels may still follow."""
    if depth <= 0:
        raise OverLimit(TOO_DEEP)
    for step, value in values.items() if isinstance(values, dict) else enumerate(values):
        try:
            if has_surrogates:
                _check_text(step)
                _check_text(value)
            if isinstance(value, str):
                continue
            if isinstance(value, _CONTAINERS):
                _check(value, depth - 1, has_surrogates=has_surrogates)
            elif isinstance(value, CodecError):
                raise value
        except CodecError as error:
            error.steps.append(f".{step}" if isinstance(step, str) else f"[{step}]")
            raise


def _check_text(text: object) -> None:
    if isinstance(text, str) and (found := _LONE.search(text)) is not None:
        raise NotJsonValue(f"character U+{ord(found[0]):04X} at offset {found.start()} is half of a pair")


# --- writing ---------------------------------------------------------------------------------------------------------

_CONTROL_ESCAPE: Final = re.compile(r"(?<!\\)((?:\\\\)*+)\\u00([01][0-9a-f])")


def _write_document(members: dict[str, Value], style: Style) -> bytes:
    """The bytes of a message. Raises Forbidden, NotJsonValue."""
    parts: list[str] = []
    _write(parts, members, LIMITS.depth + _MESSAGE_DEPTH, style)
    try:
        return style.finish("".join(parts)).encode()
    except UnicodeEncodeError:
        _check(members, LIMITS.depth + _MESSAGE_DEPTH, has_surrogates=True)
        raise


def _write(parts: list[str], value: Value, depth: int, style: Style) -> None:
    """Appends a value; `depth` is how many levels may still follow."""
    if isinstance(value, str):
        parts.append(encode_basestring(value))
    elif isinstance(value, dict):
        _write_object(parts, value, depth, style)
    elif isinstance(value, list):
        _write_array(parts, value, depth, style)
    elif value is None:
        parts.append("null")
    elif isinstance(value, bool):
        parts.append("true" if value else "false")
    elif isinstance(value, int):
        if not -_INT64 <= value < _INT64:
            # Not in decimal: Python refuses to print the longest.
            raise NotJsonValue(f"the integer {value:#x}"[:60] + " does not fit 64 bits")
        parts.append(str(value))
    elif isinstance(value, float):
        parts.append(style.number(value))
    else:
        text = value.text if isinstance(value, DateTime) else base64.b64encode(value).decode()
        parts.append(encode_basestring(text))


def _write_object(parts: list[str], members: dict[str, Value], depth: int, style: Style) -> None:
    if depth <= 0:
        raise OverLimit(TOO_DEEP)
    before, comma, colon = "{", style.comma, style.colon
    for name, value in members.items():
        if isinstance(value, str):  # most members are: worth not paying a call for
            parts.append(f"{before}{encode_basestring(name)}{colon}{encode_basestring(value)}")
        else:
            parts.append(f"{before}{encode_basestring(name)}{colon}")
            try:
                _write(parts, value, depth - 1, style)
            except CodecError as error:
                error.steps.append(f".{name}")
                raise
        before = comma
    parts.append("}" if members else "{}")


def _write_array(parts: list[str], items: list[Value], depth: int, style: Style) -> None:
    if depth <= 0:
        raise OverLimit(TOO_DEEP)
    before = "["
    for index, item in enumerate(items):
        parts.append(before)
        before = style.comma
        try:
            _write(parts, item, depth - 1, style)
        except CodecError as error:
            error.steps.append(f"[{index}]")
            raise
    parts.append("]" if items else "[]")


def _finish_yojson(document: str) -> str:
    return document.replace("\x7f", r"\u007f")


def _yojson_number(number: float) -> str:
    if not math.isfinite(number):
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    digits = f"{number:.16g}"
    if float(digits) != number:
        digits = f"{number:.17g}"
    return f"{digits}.0" if digits.lstrip("-").isdigit() else digits


def _finish_light(document: str) -> str:
    if "\\u" in document:
        document = _CONTROL_ESCAPE.sub(lambda found: found[1] + chr(int(found[2], 16)), document)
    return document.replace("/", r"\/")


def _light_number(number: float) -> str:
    if not math.isfinite(number):
        raise NotJsonValue(f"the float {number} has no spelling in rpc-light")
    digits = f"{number:f}"
    return digits if float(digits) == number else f"{Decimal(repr(number)):f}"


# Facts: recordings of xenopsd v22.20.0 (rpclib), of xenopsd 0.9.6 and squeezed of 2012/13 (rpc-light); xapi's source.
RPCLIB: Final = Style(
    comma=",",
    colon=":",
    number=_yojson_number,
    finish=_finish_yojson,
    constants=True,
    unicode_escapes=True,
    line_feeds=True,
    trailing=False,
    ids=frozenset({int, str}),
    versions=True,
    echoes=False,
)
STYLES: Final[dict[str, Style]] = {
    "rpclib": RPCLIB,
    "rpc-light": Style(
        comma=", ",
        colon=": ",
        number=_light_number,
        finish=_finish_light,
        constants=False,
        unicode_escapes=False,
        line_feeds=False,
        trailing=True,
        ids=frozenset({int}),
        versions=False,
        echoes=False,
    ),
    "xapi": replace(RPCLIB, ids=frozenset({int, float, str}), echoes=True),
}
