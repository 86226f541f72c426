"""Messages in their protocols' own words, as JSON: texts, nodes of the store, bodies of the bus.

Bytes that are no UTF-8 text are `{"b64": ...}`, a variant of the bus is `{"sig": ..., "v": ...}`; its 64-bit integers
are decimal texts and so are keys that are no strings; floats that JSON cannot say are the texts nan, inf and -inf.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

from dbus_side.signatures import Type, parse

Json = Any
_Convert = Callable[[Any], Json]
_CACHED: Final = 1024  # signatures; strangers' count too


def text(value: bytes) -> Json:
    """Bytes as text where they are one."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return _base64(value)


def nodes(found: Iterable[tuple[str, bytes]]) -> list[list[Json]]:
    """Nodes of the store, in their order."""
    return [[name, text(value)] for name, value in found]


def clean(found: str) -> str:
    """A text that may have been made from bytes that are no UTF-8: those are escaped, since JSON cannot say them."""
    return found if found.isascii() else found.encode("utf-8", "backslashreplace").decode()


def bus_body(signature: str, body: tuple[Any, ...]) -> list[Json]:
    """A body of that signature. Raises NameInvalid, and ValueError where their numbers differ."""
    return [convert(value) for convert, value in zip(_converters(signature), body, strict=True)]


@lru_cache(_CACHED)
def _converters(signature: str) -> tuple[_Convert, ...]:
    return tuple(_converter(kind) for kind in parse(signature))


def _converter(kind: Type) -> _Convert:
    code = kind.signature[0]
    if kind.signature == "ay":
        return _base64
    if code in "xt":
        return str
    if code == "d":
        return _float
    if code == "v":
        return _variant
    inner = [_converter(item) for item in kind.inner]
    if code == "(":
        return lambda value: [convert(item) for convert, item in zip(inner, value, strict=True)]
    if code != "a":
        return _as_is
    item = inner[-1]
    if kind.signature[1] != "{":
        return list if item is _as_is else lambda value: [item(element) for element in value]
    if kind.inner[0].signature in "sog":
        return lambda value: {key: item(element) for key, element in value.items()}
    return lambda value: {str(key): item(element) for key, element in value.items()}


def _as_is(value: Any) -> Json:
    return value


def _float(value: float) -> Json:
    return value if math.isfinite(value) else repr(value)


def _base64(value: bytes) -> Json:
    return {"b64": base64.b64encode(value).decode()}


def _variant(value: Any) -> Json:
    signature, inner = value
    (convert,) = _converters(signature)
    return {"sig": signature, "v": convert(inner)}
