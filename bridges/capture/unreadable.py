"""What a record says of a message that cannot be read: what was wrong and where, and no byte of any value.

A value that does not fit may be a secret that stands in the wrong place, and so may the name of a member that nobody
has written down. So places are told in the interface's words, and reasons by their kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from bridges.interfaces.model import DictOf, ListOf, Method, Option, Record, Type, Union
from bridges.xmlrpc_values import Mismatch, ParameterCount, UnknownTag
from xmlrpc_gateway import errors, jsonrpc_codec

_REASONS: Final[tuple[tuple[type[errors.CodecError], str], ...]] = (
    (errors.DuplicateMember, "a member occurs twice"),
    (errors.OverLimit, "it is over a limit of size, number or depth"),
    (errors.Forbidden, "a DOCTYPE, an encoding or NUL"),
    (errors.BadScalar, "a number, boolean, nil or base64 that is none"),
    (errors.UnknownTag, "a value of no XML-RPC type"),
    (jsonrpc_codec.NotJson, "no JSON"),
    (jsonrpc_codec.Batch, "several calls in one message"),
    (jsonrpc_codec.NotJsonValue, "an integer or text beyond what is carried"),
    (errors.Malformed, "no message of this protocol"),
)
# What `xmlrpc_values` says in declared names alone.
_HARMLESS: Final = ("Expecting named argument", "No value found for key", "Marshalling error: Expecting dict")


class Unread(Exception):
    """A message that cannot be read; the text is the record's note."""


def undecoded(error: errors.CodecError) -> Unread:
    """No message at all, or one that is refused for how it is spelt."""
    reason = next((words for kind, words in _REASONS if isinstance(error, kind)), "it cannot be decoded")
    return Unread(f"cannot be read: {reason}")


def misfit_argument(method: Method, mismatch: Mismatch) -> Unread:
    """Arguments that are not the interface's."""
    steps = mismatch.path[::-1]
    kinds = {parameter.name: parameter.type for parameter in method.parameters}
    if not steps or steps[0] not in kinds:
        return Unread(f"arguments: {_reason(mismatch)}")
    place = _place(kinds[steps[0]], steps[1:], f"arguments.{steps[0]}")
    return Unread(f"{place}: {_reason(mismatch)}")


def misfit_result(method: Method, mismatch: Mismatch) -> Unread:
    """A result that is not the interface's."""
    return Unread(f"{_place(method.result, mismatch.path[::-1], 'result')}: {_reason(mismatch)}")


def misfit(what: str, text: str, names: Iterable[str]) -> Unread:
    """By a fault's text, which begins with a name; it is told only where it is one of these."""
    found = next((name for name in names if f"{name}:" in text), None)
    return Unread(f"{what} does not fit the interface" if found is None else f"{what}.{found}: does not fit")


def _reason(mismatch: Mismatch) -> str:
    match mismatch:
        case ParameterCount():
            return f"expected {mismatch.wanted} arguments, got {mismatch.received}"
        case UnknownTag():
            return "a tag that is not written down"
        case Mismatch(expected=str(expected)) if expected:
            return f"expected {expected}"
    return mismatch.reason if mismatch.reason.startswith(_HARMLESS) else "does not fit"


def _place(kind: Type, steps: list[str], place: str) -> str:
    """The place as far as the interface names it: a map's key is the caller's."""
    for step in steps:
        if isinstance(kind, Option):
            kind = kind.item
        match kind:
            case Record(fields) if (found := next((f for f in fields if f.name == step), None)) is not None:
                place, kind = f"{place}.{step}", found.type
            case Union() if (case := kind.by_name.get(step)) is not None and case.argument is not None:
                place, kind = f"{place}.{step}", case.argument
            case ListOf(item):
                place, kind = f"{place}{step}", item
            case DictOf(item):
                place, kind = f"{place}{{*}}", item
            case _:
                break
    return place
