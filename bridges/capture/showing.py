"""What `capture show` shows: the legs of calls, each a request with its reply, chosen by what a person asks for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from typing import Any, Final, NamedTuple

import msgspec

from bridges.capture.records import ANSWERED, AS_CALLERS, UNKNOWN, Complete, Fault, Leg, Record, Reply, Request
from bridges.capture.store import Place
from bridges.comparison import cut

OPEN_LIMIT: Final = 65536
_LONGEST: Final = 160  # characters of arguments or of a result on a line


class Shown(NamedTuple):
    """One leg of a call. Without a reply it was not answered while the capture ran."""

    place: Place
    request: Request
    reply: Reply | None


class Filter(NamedTuple):
    """What is wanted; None: any. `method` may have `*` and `?`; `fault` is a kind or a code, `any` for every fault.

    `slower_us` are microseconds that an answer took at least.
    """

    service: str | None = None
    method: str | None = None
    door: str | None = None
    leg: str | None = None
    side: str | None = None
    fault: str | None = None
    slower_us: int | None = None

    def takes(self, shown: Shown) -> bool:
        """Whether that leg is wanted."""
        request, reply = shown.request, shown.reply
        side = reply.side if reply is not None and reply.side else request.side
        return (
            self.service in (None, request.service)
            and (self.method is None or fnmatchcase(request.method or request.name, self.method))
            and self.door in (None, request.door)
            and self.leg in (None, request.leg)
            and self.side in (None, side)
            and (self.fault is None or _failed(reply, self.fault))
            and (self.slower_us is None or (reply is not None and reply.us >= self.slower_us))
        )


def _failed(reply: Reply | None, wanted: str) -> bool:
    if reply is None or reply.outcome in (ANSWERED, UNKNOWN):
        return False
    fault = reply.fault or Fault(reply.outcome)
    return wanted.lower() in ("any", fault.kind.lower(), fault.code.lower())


def legs(found: Iterable[tuple[Place, Record]]) -> Iterator[Shown]:
    """Every leg when it ends, those without an end last; at most 65,536 are open at once, the oldest is given then."""
    opened: dict[int, tuple[Place, Request]] = {}
    for place, record in found:
        if isinstance(record, Request):
            opened[record.seq] = (place, record)
            if len(opened) > OPEN_LIMIT:
                yield Shown(*opened.pop(next(iter(opened))), None)
        elif isinstance(record, Reply) and (known := opened.pop(record.re, None)) is not None:
            yield Shown(*known, record)
    for known in opened.values():
        yield Shown(*known, None)


def call_text(request: Request) -> str:
    """`METHOD(ARG=VALUE, ...)`; what could not be read is told in its place."""
    name = request.method or request.name or "?"
    if request.note == AS_CALLERS:
        return f"{name}({AS_CALLERS})"
    if request.arguments is None:
        return f"{name}(? {request.note or request.complete})"
    return cut(f"{name}({', '.join(f'{key}={_json(value)}' for key, value in request.arguments.items())})", _LONGEST)


def outcome_text(reply: Reply | None) -> str:
    """What came of it, in a few words."""
    if reply is None:
        return "no answer"
    if (fault := reply.fault) is not None:
        name = fault.code or fault.kind
        return cut(fault.text if fault.text.startswith(name) else f"{name}: {fault.text}", _LONGEST)
    if reply.outcome != ANSWERED:
        return reply.note or reply.outcome
    if reply.complete is not Complete.COMPLETE or (reply.result is None and reply.note):
        return f"? {reply.note or reply.complete}"
    return cut(_json(reply.result), _LONGEST)


def as_json(shown: Shown) -> dict[str, Any]:
    """One leg, JSON-ready, as it is in the capture."""
    return {
        "place": str(shown.place),
        "request": msgspec.to_builtins(shown.request),
        "reply": None if shown.reply is None else msgspec.to_builtins(shown.reply),
    }


def leg_text(request: Request) -> str:
    """The door, and whose leg it is unless the caller's."""
    return request.door if request.leg is Leg.CALLER else f"{request.leg} {request.door}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
