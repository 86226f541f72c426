"""How each kind of legacy daemon behaves as an HTTP server: what the door must imitate besides the answers.

Recorded from xenopsd v22.20.0 (`rpclib`) and taken from the source of xapi's own server (`XAPI`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, Headers, HttpReply

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPE: Final = ("Content-Type", "text/xml")  # exactly so: with a charset behind it Xen Orchestra refuses the reply


@dataclass(frozen=True, slots=True)
class HttpManner:
    """A daemon's habits. Each answer is a reply or CLOSE_SILENTLY; after each but a call's own the connection closes.

    headers         of a reply to a call
    keep_alive      whether a connection may carry several requests
    mirrors_version whether a request of HTTP/1.0 gets a status line of 1.0; else it is always 1.1
    gzip            whether a large reply is compressed for a client that accepts it
    other_methods   the answer by request method; methods that are not in it get `unknown_method`
    no_length       the answer to a POST without a content-length, also to one in chunks
    unreadable      the answer to a request that cannot be parsed or decompressed, and to one whose answer failed
    too_large       the answer to a body over the limit
    """

    headers: Headers
    keep_alive: bool
    mirrors_version: bool
    gzip: bool
    other_methods: Mapping[str, HttpReply | CloseSilently]
    unknown_method: HttpReply | CloseSilently
    no_length: HttpReply | CloseSilently
    unreadable: HttpReply | CloseSilently
    too_large: HttpReply | CloseSilently

    def answer_to(self, method: str) -> HttpReply | CloseSilently:
        """The answer to a request that is no POST."""
        return self.other_methods.get(method, self.unknown_method)


def rpclib(name: str) -> HttpManner:
    """The habits of xenopsd, squeezed, networkd and the like; `name` goes into their (sic) user-agent header."""
    return HttpManner(
        headers=(("user-agent", name), _TYPE),
        keep_alive=False,
        mirrors_version=False,
        gzip=False,
        other_methods=MappingProxyType({}),
        unknown_method=HttpReply(404, (("user-agent", name),), b""),
        no_length=CLOSE_SILENTLY,
        unreadable=CLOSE_SILENTLY,
        too_large=CLOSE_SILENTLY,
    )


def _page(status: int, text: str) -> HttpReply:
    body = f"<html><body><h1>HTTP {status}</h1>{text}</body></html>"
    return HttpReply(status, (("content-type", "text/html"), ("cache-control", "no-cache, no-store")), body.encode())


_CORS: Final[Headers] = (("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Headers", "X-Requested-With"))
_NO_PAGE: Final = _page(403, "forbidden")

XAPI: Final = HttpManner(
    headers=(_TYPE, *_CORS, ("cache-control", "no-cache, no-store")),
    keep_alive=True,
    mirrors_version=True,
    gzip=True,
    other_methods=MappingProxyType(
        {"GET": _NO_PAGE, "PUT": _NO_PAGE, "CONNECT": _NO_PAGE, "OPTIONS": HttpReply(200, _CORS, b"")},
    ),
    unknown_method=_page(501, "not implemented"),
    no_length=_page(500, "a content-length is required"),
    unreadable=_page(500, "the request cannot be read"),
    too_large=_page(500, "the request is too large"),
)
