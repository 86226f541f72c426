"""oxenstored's access log: lines, and the calls of the convention that they tell of.

Facts, seen from the oxenstored of Xen 4.17:
    [20261125T17:31:44.014Z]  A3.1         write     /squeezed/rpc/request/login/ID/service_name xenopsd
* `A3` is a connection at the socket, `D0` a domain's, `.1` a transaction of it. Times are UTC, to the millisecond.
* a whole line is cut to 179 characters, `..` included (access-log-nb-chars - 1): a long path leaves little of a value
* values are escaped as OCaml prints strings; a NUL is a space, like the one between path and value
* reads are not there by default; refusals are `error` lines behind the operation, but for ENOENT
* a transaction is over with `commit` or `conflict`; an aborted one has no line. One that was merged into what another
  one changed meanwhile has `coalesce` in the place of `commit`. One that is run again by the store itself has `r(4):`
  before its connection, and a new number
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

OPEN_LIMIT: Final = 4096
"""Groups of writes that are kept until they are over; beyond, the oldest is forgotten: it was aborted."""

NODE_LIMIT: Final = 1024
"""Nodes that are kept of one group; what has more is told as cut."""

_LINE: Final = re.compile(
    rb"\[(\d{8}T\d\d:\d\d:\d\d\.\d{3}Z)\] +(?:r\(\d+\):)?([AD]\d+)(?:\.(\d+))? +"
    rb"(coalesce|conflict|commit|newconn|endconn|w notfired|w event|t start|t end|is introduced|[a-z]+) *(?: (.*))?",
    re.DOTALL,
)
_RECORD: Final = re.compile(rb"/([A-Za-z0-9_@-]+)/rpc/(request|response)/([^/ ]+)/([^/ ]+)(?:/([^ ]+))?")
_ESCAPE: Final = re.compile(rb"\\(?:([0-9]{3})|([^0-9])|[0-9]{0,2})", re.DOTALL)
_LETTERS: Final = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b"}
_CUT: Final = b".."
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class Line(NamedTuple):
    """One line. `time` in nanoseconds since 1970; `transaction` 0: none. `data` is still escaped, without its `..`."""

    time: int
    connection: str
    transaction: int
    operation: str
    data: bytes
    is_cut: bool


class Seen(NamedTuple):
    """A request or a response that stands in the store, by the connection that wrote it, with what was in it.

    `cut` names the nodes whose value the log has cut, and is [""] where it is not known which are missing.
    """

    time: int
    connection: str
    tree: str
    function: str
    request_id: str
    is_request: bool
    nodes: tuple[tuple[str, bytes], ...]
    cut: tuple[str, ...]


class Gone(NamedTuple):
    """A request was removed from the store: nobody waits for its answer any more."""

    time: int
    tree: str
    function: str
    request_id: str


Event = Seen | Gone
_Key = tuple[str, str, str, bool]


def read_line(line: bytes) -> Line | None:
    """A line without its end; None when it is none of oxenstored's."""
    found = _LINE.fullmatch(line)
    if found is None:
        return None
    date, connection, transaction, operation, data = found.groups(b"")
    try:
        moment = datetime.fromisoformat(date.decode())
    except ValueError:
        return None
    is_cut = data.endswith(_CUT)
    return Line(
        (moment - _EPOCH) // _MICROSECOND * 1000,
        connection.decode(),
        int(transaction or 0),
        operation.decode(),
        data.removesuffix(_CUT) if is_cut else data,
        is_cut,
    )


class _Group:
    """What one connection writes into records, together: in a transaction, or one operation after the other."""

    def __init__(self) -> None:
        self.records: dict[_Key, dict[str, bytes]] = {}
        self.made: set[_Key] = set()
        self.cut: dict[_Key, dict[str, None]] = {}
        self.last: tuple[_Key, str] | None = None
        self.size = 0

    def write(self, key: _Key, name: str, value: bytes, *, is_cut: bool) -> None:
        self.size += 1
        nodes = self.records.setdefault(key, {})
        if is_cut or self.size > NODE_LIMIT:
            self.cut.setdefault(key, {})[name if self.size <= NODE_LIMIT else ""] = None
        if self.size <= NODE_LIMIT:
            nodes[name] = value
            self.last = (key, name)

    def undo(self) -> None:
        """The store refused the last operation."""
        if self.last is not None:
            key, name = self.last
            self.records[key].pop(name, None)
            self.cut.get(key, {}).pop(name, None)
            self.last = None

    def close(self, time: int, connection: str) -> Iterator[Seen]:
        for key, nodes in self.records.items():
            tree, function, request_id, is_request = key
            # Both sides of the convention make the directory first: without that its beginning is not in the log.
            cut = (*self.cut.get(key, ()), *(() if key in self.made else ("",)))
            yield Seen(time, connection, tree, function, request_id, is_request, tuple(nodes.items()), cut)


class Calls:
    """Follows the records of all trees /NAME/rpc through the lines of a log. `forgotten`: groups given up untold."""

    def __init__(self) -> None:
        self.forgotten = 0
        self._groups: dict[tuple[str, int], _Group] = {}

    def feed(self, line: Line) -> list[Event]:
        """What a line tells, mostly nothing."""
        place = (line.connection, line.transaction)
        match line.operation:
            case "w event" | "w notfired":
                return []
            case "commit" | "coalesce":
                return self._close(place, line)
            case "error":
                if (group := self._groups.get(place)) is not None:
                    group.undo()
                return []
            case "conflict":
                self._groups.pop(place, None)
                return []
            case "endconn":
                told = self._close((line.connection, 0), line)
                for other in [other for other in self._groups if other[0] == line.connection]:
                    del self._groups[other]
                return told
            case "write" | "mkdir" | "rm" if (found := _RECORD.match(line.data)) is not None:
                return self._change(place, line, found)
        if line.transaction and (group := self._groups.get(place)) is not None:
            group.last = None  # a refusal that follows is of this operation
        return [] if line.transaction else self._close(place, line)

    def end(self, time: int) -> list[Event]:
        """What stands in the store at the end of the log; transactions that are not over do not."""
        return [
            event
            for (connection, transaction), group in self._groups.items()
            if not transaction
            for event in group.close(time, connection)
        ]

    def _change(self, place: tuple[str, int], line: Line, found: re.Match[bytes]) -> list[Event]:
        tree, kind, function, request_id, name = (part.decode("utf-8", "replace") for part in found.groups(b""))
        key = (tree, function, request_id, kind == "request")
        is_path_cut = line.is_cut and found.end() == len(line.data)
        group = self._groups.get(place)
        told: list[Event] = []
        if not line.transaction and group is not None and key not in group.records:
            told = self._close(place, line)
            group = None
        if line.operation == "rm":
            told += self._close(place, line) if not line.transaction else []
            return [*told, Gone(line.time, tree, function, request_id)] if kind == "request" and not name else told
        if group is None:
            group = self._open(place)
        if line.operation == "mkdir" and not name:
            group.records.setdefault(key, {})
            group.made.add(key)
            group.last = None
        elif is_path_cut:
            group.write(key, "", b"", is_cut=True)
        elif name:
            group.write(key, name, _unescaped(line.data[found.end() + 1 :]), is_cut=line.is_cut)
        return told

    def _open(self, place: tuple[str, int]) -> _Group:
        if len(self._groups) >= OPEN_LIMIT:
            del self._groups[next(iter(self._groups))]
            self.forgotten += 1
        group = self._groups[place] = _Group()
        return group

    def _close(self, place: tuple[str, int], line: Line) -> list[Event]:
        group = self._groups.pop(place, None)
        return [] if group is None else list(group.close(line.time, line.connection))


def _unescaped(data: bytes) -> bytes:
    """A value as it was; an escape that the cut went through is left out."""
    return _ESCAPE.sub(_character, data) if b"\\" in data else data


def _character(found: re.Match[bytes]) -> bytes:
    number, letter = found.groups(b"")
    return bytes([int(number) & 0xFF]) if number else _LETTERS.get(letter, letter)
