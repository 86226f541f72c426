"""How each kind of interface uses XML-RPC: a table of differences, and the envelope that all of them share.

A dialect says how values are laid out; which value has which type is for the holder of the interface to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from xmlrpc_gateway.errors import Malformed
from xmlrpc_gateway.xmlrpc_codec import Value, XmlRpcFault


@dataclass(frozen=True, slots=True)
class Dialect:
    """One way of laying out calls and values.

    session_first           the first parameter is a session reference, which counts of parameters leave out
    exact_parameter_count   surplus parameters are an error; else they are ignored
    nil_unit                "no value" as an argument and as a result is <nil/>; else it is an empty string
    named_option            a named argument that is an option: "bare" when it is there, else absent; or always there
                            as a "list", [] or [x]. In records it is bare or absent in all dialects, elsewhere a list
    reversed_members        records and named arguments are written in reverse order of declaration
    tags_int32              32-bit integers of XML have their tag; all other integers are decimal text without one
    case_insensitive_variants, case_insensitive_members     in reading only
    failure_codes           a failure is [CODE, text, ...]; else an encoded exception
    unknown_method          the failure's code, or "close" for closing the connection without a byte
    has_aliases             a second spelling of every method has `_` for its last dot; system.listMethods is answered
    request_limit           bytes of the largest request that the daemon takes; None: any
    """

    session_first: bool
    exact_parameter_count: bool
    nil_unit: bool
    named_option: Literal["bare", "list"]
    reversed_members: bool
    tags_int32: bool
    case_insensitive_variants: bool
    case_insensitive_members: bool
    failure_codes: bool
    unknown_method: Literal["close", "Unknown_RPC", "MESSAGE_METHOD_UNKNOWN"]
    has_aliases: bool
    request_limit: int | None = None


# Facts: recordings of xenopsd v22.20.0 (rpclib) and 0.9.6 of 2013 (rpclib-2012); xapi's source (xenapi).
DIALECTS: Final[dict[str, Dialect]] = {
    "xenapi": Dialect(
        session_first=True,
        exact_parameter_count=True,
        nil_unit=False,
        named_option="bare",
        reversed_members=False,
        tags_int32=True,
        case_insensitive_variants=True,
        case_insensitive_members=False,
        failure_codes=True,
        unknown_method="MESSAGE_METHOD_UNKNOWN",
        has_aliases=True,
        request_limit=300 * 1024,
    ),
    "rpclib": Dialect(
        session_first=False,
        exact_parameter_count=False,
        nil_unit=True,
        named_option="bare",
        reversed_members=True,
        tags_int32=False,
        case_insensitive_variants=True,
        case_insensitive_members=True,
        failure_codes=False,
        unknown_method="close",
        has_aliases=False,
    ),
    "rpclib-2012": Dialect(
        session_first=False,
        exact_parameter_count=True,
        nil_unit=True,
        named_option="list",
        reversed_members=False,
        tags_int32=False,
        # Since January 2013; older daemons compare exactly, which only matters to names nobody sends.
        case_insensitive_variants=True,
        case_insensitive_members=False,
        failure_codes=False,
        unknown_method="Unknown_RPC",
        has_aliases=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Success:
    """An envelope that carries a result."""

    value: Value


@dataclass(frozen=True, slots=True)
class Failure:
    """An envelope that carries an error: in rpclib an encoded exception, in XenAPI an array of strings, code first."""

    description: Value


def success(value: Value) -> Value:
    """The envelope of a result."""
    return {"Status": "Success", "Value": value}


def failure(description: Value) -> Value:
    """The envelope of an error; see Failure for its shape."""
    return {"Status": "Failure", "ErrorDescription": description}


def open_envelope(response: Value | XmlRpcFault) -> Success | Failure:
    """What a response says. A value without `Status` is a result by itself (rpclib's rule; `system.listMethods` too).

    An XML-RPC fault is the failure ["fault", code, text], as rpclib's clients see it. Raises Malformed.
    """
    if isinstance(response, XmlRpcFault):
        return Failure(["fault", str(response.code), response.text])
    if not isinstance(response, dict) or "Status" not in response:
        return Success(response)
    match response["Status"]:
        case "Success" if "Value" in response:
            return Success(response["Value"])
        case "Failure" if "ErrorDescription" in response:
            return Failure(response["ErrorDescription"])
        case status:
            members = ", ".join(sorted(response))
            expected = "Success with Value, or Failure with ErrorDescription"
            raise Malformed(f"Status {str(status)[:60]!r} among members {members[:120]}: expected {expected}")
