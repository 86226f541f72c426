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

    named_arguments         labelled arguments travel in one struct, the first parameter; else all are positional
    session_first           the first parameter is a session reference
    exact_parameter_count   surplus parameters are an error; else they are ignored
    nil_unit                "no value" as an argument and as a result is <nil/>; else it is an empty string
    option_elsewhere        an option that is neither a record field nor a labelled argument: "list" is [] or [x],
                            "absent" is nothing at all. As one of those two it is absent or bare in all dialects
    variants_flat           a constructor of several arguments is ["Name", a, b]; else ["Name", [a, b]]
    reversed_members        records and labelled arguments are written in reverse order of declaration
    case_insensitive_variants, case_insensitive_members     in reading only
    unknown_method          the failure's code, or "close" for closing the connection without a byte
    malformed               the answer to a body that is no methodCall: "close", or "http-500" for that status

    Integers are decimal text without a tag in all of them.
    """

    named_arguments: bool
    session_first: bool
    exact_parameter_count: bool
    nil_unit: bool
    option_elsewhere: Literal["list", "absent"]
    variants_flat: bool
    reversed_members: bool
    case_insensitive_variants: bool
    case_insensitive_members: bool
    unknown_method: Literal["close", "Unknown_RPC", "MESSAGE_METHOD_UNKNOWN"]
    malformed: Literal["close", "http-500"]


# Facts: recordings of xenopsd v22.20.0 (rpclib) and 0.9.6 of 2013 (rpclib-2012); xapi's source (xenapi).
DIALECTS: Final[dict[str, Dialect]] = {
    "xenapi": Dialect(
        named_arguments=False,
        session_first=True,
        exact_parameter_count=True,
        nil_unit=False,
        option_elsewhere="absent",
        variants_flat=False,
        reversed_members=False,
        case_insensitive_variants=True,
        case_insensitive_members=False,
        unknown_method="MESSAGE_METHOD_UNKNOWN",
        malformed="http-500",
    ),
    "rpclib": Dialect(
        named_arguments=True,
        session_first=False,
        exact_parameter_count=False,
        nil_unit=True,
        option_elsewhere="list",
        variants_flat=False,
        reversed_members=True,
        case_insensitive_variants=True,
        case_insensitive_members=True,
        unknown_method="close",
        malformed="close",
    ),
    "rpclib-2012": Dialect(
        named_arguments=False,
        session_first=False,
        exact_parameter_count=True,
        nil_unit=True,
        option_elsewhere="list",
        variants_flat=True,
        reversed_members=False,
        # Since January 2013; older daemons compare exactly, which only matters to names nobody sends.
        case_insensitive_variants=True,
        case_insensitive_members=False,
        unknown_method="Unknown_RPC",
        malformed="close",
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
