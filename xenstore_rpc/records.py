"""Requests, responses and the tree of the xenstore RPC convention (squeezed, 2009 to 2012).

A request is the directory /SERVICE/rpc/request/FUNCTION/ID with one node per argument, a response the directory
/SERVICE/rpc/response/FUNCTION/ID with one node per result. The response directory's existence is the signal that the
call is over; a response holding both `code` and `description` is an error.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from xenstore_rpc.packets import check_name, write_payload

UNKNOWN_FUNCTION = "1"
"""The description is the function's name."""
EXCEPTION = "2"
"""The description is free text."""
MISSING_ARGUMENT = "3"
"""The description is the argument's name."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call: argument values are raw bytes, in the order the store lists or the caller gave them."""

    function: str
    request_id: str
    arguments: tuple[tuple[str, bytes], ...]

    @property
    def key(self) -> tuple[str, str]:
        """(function, request id): what tells calls apart in the store."""
        return (self.function, self.request_id)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer: result values are raw bytes; no results at all is a valid answer."""

    results: tuple[tuple[str, bytes], ...]

    @property
    def is_error(self) -> bool:
        """Whether it holds both `code` and `description`; one of them alone is an ordinary result."""
        names = {name for name, _ in self.results}
        return "code" in names and "description" in names

    @property
    def code(self) -> str:
        """Text of `code`, "" when absent; codes are compared as text."""
        return self._text("code")

    @property
    def description(self) -> str:
        """Text of `description`, "" when absent."""
        return self._text("description")

    def _text(self, name: str) -> str:
        return dict(self.results).get(name, b"").decode("utf-8", "replace")


def error_response(code: str, description: str) -> Response:
    """The answer that says a call failed."""
    return Response((("code", code.encode()), ("description", description.encode("utf-8", "backslashreplace"))))


class Tree:
    """Paths of one service. InvalidPath when a part is no node name."""

    def __init__(self, service: str) -> None:
        self.service = check_name("service", service)
        self.pid = f"/{service}/pid"
        self.state = f"/{service}/state"
        self.requests = f"/{service}/rpc/request"
        self.responses = f"/{service}/rpc/response"

    def request(self, function: str, request_id: str) -> str:
        """The directory of one request."""
        return f"{self.requests}/{check_name('function', function)}/{check_name('request id', request_id)}"

    def response(self, function: str, request_id: str) -> str:
        """The directory of one response."""
        return f"{self.responses}/{check_name('function', function)}/{check_name('request id', request_id)}"

    def request_key(self, path: str) -> tuple[str, str] | None:
        """(function, id) when `path` is a request or lies within one, None when it stands above them."""
        parts = path.removeprefix(self.requests).split("/")
        return (parts[1], parts[2]) if path.startswith(self.requests + "/") and len(parts) >= 3 else None


def node_payloads(directory: str, field: str, nodes: Iterable[tuple[str, bytes]]) -> list[bytes]:
    """WRITE payloads of `nodes` below `directory`; InvalidPath and ValueTooLong name what cannot be written."""
    return [write_payload(f"{directory}/{check_name(field, name)}", value) for name, value in nodes]


def unanswered(
    requests: Mapping[str, Iterable[str]], responses: Mapping[str, Collection[str]]
) -> list[tuple[str, str]]:
    """(function, id) of requests without a response, in listing order.

    The responses must have been listed *before* the requests: in the other order a call that completes between both
    listings looks unanswered, and serving it would execute it again.
    """
    return [
        (function, request_id)
        for function, ids in requests.items()
        for request_id in ids
        if request_id not in responses.get(function, ())
    ]
