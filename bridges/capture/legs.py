"""One leg of a call, read: what was asked, then what was answered; both typed, and in the protocol's own words.

A leg remembers of what was asked what its answer needs. `is_whole` says that nothing stood in the message but what was
read of it: only then may a record have it as it was, since the rest was never looked at for secrets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from bridges.calls import Value
from bridges.capture.redaction import Redactor
from bridges.capture.unreadable import Unread
from bridges.comparison import Outcome
from bridges.dbus_translation import Translation
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method, Service

Json = Any
Native = dict[str, Json]


class Asked(NamedTuple):
    """A request as it was read. `native` is the message in its own words, `anew` the same from other arguments.

    `arguments` are None where an observed request was gone before it was read.
    """

    arguments: dict[str, Value] | None
    native: Callable[[], Native]
    anew: Callable[[dict[str, Value]], Native]
    is_whole: bool = True


class Answered(NamedTuple):
    """An answer as it was read; `anew` takes another outcome of the same sort."""

    outcome: Outcome
    native: Callable[[], Native]
    anew: Callable[[Any], Native]
    is_whole: bool = True


class Closed(NamedTuple):
    """The answer was to close the connection without a byte."""


class NotSeen(NamedTuple):
    """An observed answer that was gone before it was read."""


class Context(NamedTuple):
    """What all legs of a service's calls have in common; `lenient` reads newer callers' records as daemons do."""

    service: Service
    on_bus: Translation
    lenient: Translation
    redactor: Redactor


class LegReader:
    """One leg of one call. `name` is the method's on the wire, as far as it is known."""

    def __init__(self, name: str, method: Method | None) -> None:
        self.name = name
        self.method = method

    def ask(self, message: Any) -> Asked:
        """What was asked. Raises Unread."""
        raise Unread("no call of the service")

    def answer(self, message: Any) -> Answered | Closed | NotSeen:
        """What was answered to a call that was read. Raises Unread."""
        raise Unread("an answer where there is none")

    def outline(self, message: Any) -> Answered | Closed | NotSeen:
        """As `answer`, to a call that was not read: of a fault kind and code, of a result that there is one."""
        raise Unread("an answer where there is none")


def fault_of(service: Service, code: str) -> Fault:
    """A fault of which nothing but its code is known."""
    return Fault(Kind.DECLARED if code in service.errors else Kind.UNDECLARED, "", code=code)


def outline(outcome: Outcome) -> Answered:
    """An answer of which nothing but that is told."""
    return Answered(outcome, dict, lambda _: {})
