"""The neutral model of a call: what every door and every backend translates to and from.

A neutral value follows the interface's type:
    unit None · bool bool · int/int32/int64 int · float float · string/char str · list list · tuple tuple
    dict and record dict (an absent member is an absent key; a key that is an integer is its decimal text)
    union `Tagged` · option None or the value · datetime str
    any: whatever the wire said, as None, bool, int, float, str, bytes, list or dict
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from bridges.interfaces.model import Method


class Door(StrEnum):
    """Where a call enters."""

    XENSTORE = "xenstore"
    HTTP = "http"
    FRAMED = "framed"
    DATAGRAM = "datagram"
    BUS = "bus"


class Side(StrEnum):
    """Who executes it."""

    LEGACY = "legacy"
    BUS = "bus"


class Tagged(NamedTuple):
    """A union's value: the constructor's name as declared, and what it carries (None: nothing)."""

    tag: str
    argument: Value = None


Value = None | bool | int | float | str | bytes | list["Value"] | tuple["Value", ...] | dict[str, "Value"] | Tagged


class Trail(Protocol):
    """Where a backend notes what it sent and what came back, while the call's service is under capture (`capture`)."""

    def asked(self, side: Side, door: Door, message: Any, *, is_candidate: bool = False) -> None: ...

    def answered(self, message: Any, *, is_candidate: bool = False) -> None: ...

    def failed(self, fault: Any, *, is_candidate: bool = False) -> None: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A call after its door: arguments by parameter name (an absent option is an absent key).

    `deadline` is on the clock of `time.monotonic`, None for a long poll that its caller ends. `trail` is there while
    its service is under capture.
    """

    method: Method
    arguments: dict[str, Value]
    door: Door
    deadline: float | None
    trail: Trail | None = None
