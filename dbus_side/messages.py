"""What goes over a bus, as this room's own data."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import IntEnum
from typing import Any, NamedTuple


class NameOutcome(IntEnum):
    """What became of a request for a name; the values are the bus's."""

    OWNER = 1
    QUEUED = 2
    EXISTS = 3
    ALREADY_OWNER = 4


class Reply(NamedTuple):
    """A method's answer: the body fits the signature."""

    signature: str
    body: tuple[Any, ...]


class MethodCall(NamedTuple):
    """An incoming call. `sender` is the caller's unique name, vouched for by the bus; `interface` may be missing."""

    sender: str
    path: str
    interface: str | None
    member: str
    signature: str
    body: tuple[Any, ...]
    serial: int
    destination: str
    reply_expected: bool


class SignalMessage(NamedTuple):
    """An incoming signal."""

    sender: str
    path: str
    interface: str
    member: str
    signature: str
    body: tuple[Any, ...]


class Subscription(NamedTuple):
    """What `subscribe` promised; `unsubscribe` takes it back. None means any."""

    sender: str | None
    path: str | None
    interface: str
    member: str
    callback: Callable[[SignalMessage], None]


Handler = Callable[[MethodCall], Awaitable[tuple[str, tuple[Any, ...]]]]
OwnerChanged = Callable[[str | None], None]
