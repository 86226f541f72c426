"""The D-Bus library that is used: dbus-fast where it is installed, else dbus-next; XCP_BUS_LIBRARY names one of them.

Of either only messages are used, to bytes and back.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from functools import lru_cache
from io import BytesIO
from typing import Any, Final, NamedTuple, Protocol

_LIBRARIES: Final = {"dbus-fast": "dbus_fast", "dbus-next": "dbus_next"}
_VARIABLE: Final = "XCP_BUS_LIBRARY"


class _MakeMessage(Protocol):
    def __call__(self, *, signature: str, body: list[Any], **fields: Any) -> Any: ...


class Library(NamedTuple):
    """What is used of dbus-next or dbus-fast; both are untyped here."""

    message: _MakeMessage
    unmarshal: Callable[[bytes], Any]
    variant: Callable[[str, Any], Any]
    types: Any
    no_reply: Any


def loaded() -> Library:
    """The library of this process. Raises ValueError, ModuleNotFoundError, RuntimeError when there is none to use."""
    return _load(os.environ.get(_VARIABLE))


@lru_cache
def _load(choice: str | None) -> Library:
    if choice is not None and choice not in _LIBRARIES:
        raise ValueError(f"{_VARIABLE}: expected one of {', '.join(_LIBRARIES)}, got {choice!r}")
    for name in [choice] if choice else _LIBRARIES:
        try:
            return _library(_LIBRARIES[name])
        except ModuleNotFoundError:
            if choice:
                raise
    raise ModuleNotFoundError(f"none of {', '.join(_LIBRARIES)} is installed")


def _library(package: str) -> Library:
    message = importlib.import_module(f"{package}.message").Message
    constants = importlib.import_module(f"{package}.constants")
    reader = importlib.import_module(f"{package}._private.unmarshaller").Unmarshaller
    variant = importlib.import_module(f"{package}.signature").Variant
    # Private, so an upgrade may take them away: better here than at the first message.
    for owner, attribute in ((message, "_marshall"), (reader, "unmarshall")):
        if not hasattr(owner, attribute):
            raise RuntimeError(f"{package}: {owner.__name__} has no {attribute}; this version cannot be used")

    def unmarshal(frame: bytes) -> Any:
        return reader(BytesIO(frame)).unmarshall()

    return Library(message, unmarshal, variant, constants.MessageType, constants.MessageFlag.NO_REPLY_EXPECTED)
