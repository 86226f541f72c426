"""The records of a capture: one JSON object a line, `t` names its kind.

    hdr    first of every segment: who wrote it, where, when, and what redacted it
    req    a call came: at a door (leg `caller`), or was handed on (`backend`, `candidate`), or was seen between others
           (`observed`)
    rsp    its answer, in the same leg; a request without one was never answered, or the capture ended before
    lost   records that are not there, counted
    flip   a service went to another stage
    end    last of a capture that was stopped orderly

Requests and replies are records of their own, so that a crash between them shows. All records of one call have the same
`id`, whatever leg. The order in the file is that of `seq`. Times are decimal texts of nanoseconds, since JSON readers
round numbers beyond 2**53: `ts` since 1970, which may jump, and `mono` since the boot that the header names.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Final, TypeAlias

import msgspec

SCHEMA: Final = 1


class RecordError(Exception):
    """A line that is no record; the text says why."""


class Leg(StrEnum):
    """Where on its way a call was seen."""

    CALLER = "caller"
    BACKEND = "backend"
    CANDIDATE = "candidate"
    OBSERVED = "observed"


class Complete(StrEnum):
    """How much of a message was there to be recorded.

    COMPLETE      all of it
    NO_ARGUMENTS  an observed request that was gone before it was read: who and what, not with what
    NO_RESULT     an observed response that was gone before it was read
    CUT           the source had cut it (a log's line, a capture's snap length), or it was over our limit
    UNREAD        it is no call of the service, or cannot be read: nothing of it is kept but its size
    """

    COMPLETE = "complete"
    NO_ARGUMENTS = "no arguments"
    NO_RESULT = "no result"
    CUT = "cut"
    UNREAD = "unread"


ANSWERED: Final = "answered"  # a reply's outcome that is no fault
CLOSED: Final = "closed"  # the connection was closed without a byte, as legacy daemons refuse
UNKNOWN: Final = "unknown"  # there was one, and it was not read
QUEUE_FULL: Final = "queue full"
DISK: Final = "disk"
DEFECT: Final = "defect"
MISSED: Final = frozenset({QUEUE_FULL, DISK, DEFECT})  # why records are lost of calls that were made meanwhile
AS_CALLERS: Final = "as the caller's"  # the note on a message that is the caller's, byte for byte

Json: TypeAlias = Any  # what msgspec makes of JSON


class Header(msgspec.Struct, tag_field="t", tag="hdr", omit_defaults=True, frozen=True):
    """`chain` is the digest of all frames before this segment, empty in the first; `real` and `mono` are one moment.

    `host` is a random id that stays with a state directory; `interfaces` has the digest of each service's interface
    data; `redaction` and `key` name the rules and the key behind the tokens, by digest. `source` is what it was made
    from: `bridge`, or what was imported.
    """

    schema: int
    tool: str
    host: str
    boot: str
    real: str
    mono: str
    segment: int
    chain: str = ""
    source: str = "bridge"
    interfaces: dict[str, str] = {}
    dialects: dict[str, str] = {}
    redaction: str = ""
    key: str = ""


class Request(msgspec.Struct, tag_field="t", tag="req", omit_defaults=True, frozen=True):
    """A call. `method` is the interface's wire name, empty when it is not written down; `name` is as on the wire.

    `door` is the protocol of this leg (http, framed, xenstore, datagram, bus), `side` who is the authority, `conn`
    tells connections apart, `peer` has what is known of who called (uid, pid, command, bus name). `arguments` are typed
    (`typed`), null when they could not be read; `note` says why. `native` is the message in the protocol's own words;
    `rewritten` says that it was written anew from the redacted values, since the bytes held a secret. `redacted` are
    the field paths below `arguments` whose value is not what was sent. `size` is in bytes, before anything was cut.
    """

    seq: int
    id: str
    leg: Leg
    ts: str
    mono: str
    service: str
    door: str
    name: str
    method: str = ""
    effect: str = ""
    side: str = ""
    stage: str = ""
    epoch: int = 0
    conn: str = ""
    peer: dict[str, Any] = {}
    arguments: dict[str, Json] | None = None
    native: dict[str, Json] | None = None
    rewritten: bool = False
    redacted: list[str] = []
    size: int = 0
    complete: Complete = Complete.COMPLETE
    note: str = ""


class Fault(msgspec.Struct, omit_defaults=True, frozen=True):
    """A failure: a kind of `bridges.faults`, the service's own code, its text, and what it carries (typed)."""

    kind: str
    code: str = ""
    text: str = ""
    argument: Json = None


class Reply(msgspec.Struct, tag_field="t", tag="rsp", omit_defaults=True, frozen=True):
    """The answer to the request `re` (its `seq`). `us` are microseconds since the request in this leg.

    `outcome` is `answered`, `fault`, `closed` or `unknown`. `result` is typed; for a result that could not be read
    `complete` is not COMPLETE and `note` says why. `redacted` are field paths below `result` or `fault`.
    """

    seq: int
    id: str
    leg: Leg
    ts: str
    mono: str
    service: str
    door: str
    re: int
    us: int
    outcome: str
    method: str = ""
    side: str = ""
    epoch: int = 0
    result: Json = None
    fault: Fault | None = None
    native: dict[str, Json] | None = None
    rewritten: bool = False
    redacted: list[str] = []
    size: int = 0
    complete: Complete = Complete.COMPLETE
    note: str = ""


class Lost(msgspec.Struct, tag_field="t", tag="lost", omit_defaults=True, frozen=True):
    """`n` records of a service (empty: of all) that are not there, and why; n is 0 where nobody can know how many."""

    seq: int
    ts: str
    mono: str
    n: int
    why: str
    service: str = ""


class Flip(msgspec.Struct, tag_field="t", tag="flip", omit_defaults=True, frozen=True):
    """A service went from one stage to another, or was put under capture in one (origin and target are the same)."""

    seq: int
    ts: str
    mono: str
    service: str
    origin: str
    target: str
    epoch: int


class End(msgspec.Struct, tag_field="t", tag="end", omit_defaults=True, frozen=True):
    """The capture was stopped; `records` were written before this one, `seq` is one more than the last."""

    seq: int
    ts: str
    mono: str
    records: int
    why: str = ""


Record: TypeAlias = Header | Request | Reply | Lost | Flip | End

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Record)


def encode(record: Record) -> bytes:
    """A record as one line, with its end."""
    return _encoder.encode(record) + b"\n"


def decode(line: bytes) -> Record:
    """The record of one line. Raises RecordError."""
    try:
        record: Record = _decoder.decode(line)
    except msgspec.ValidationError as error:
        raise RecordError(f"is no record of ours: {error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"is no JSON object: {error}") from None
    return record


def nanoseconds(text: str) -> int:
    """A time of a record; 0 for one that is no number, as where it is not known."""
    return int(text) if text.isdecimal() and len(text) <= 20 else 0
