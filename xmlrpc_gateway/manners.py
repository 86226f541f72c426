"""How each kind of legacy daemon behaves as an HTTP server: what the door must imitate besides the answers.

Recorded from xenopsd v22.20.0 (`rpclib`) and taken from the source of xapi's own server (`XAPI`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, CloseSilently, Headers, HttpReply, header

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPE: Final = ("Content-Type", "text/xml")  # exactly so: with a charset behind it Xen Orchestra refuses the reply


@dataclass(frozen=True, slots=True)
class HttpManner:
    """A daemon's habits. Each answer is a reply or CLOSE_SILENTLY; after each but a call's own the connection closes.

    headers         of a reply to a call, in XML
    call_paths      where calls are POSTed, without a query; None: anywhere
    page_paths      where a POST is no call even so
    keep_alive      whether a connection may carry several requests
    mirrors_version whether a request of HTTP/1.0 gets a status line of 1.0; else it is always 1.1
    gzip            whether a large reply is compressed for a client that accepts it
    other_methods   the answer to what is no call and has no page, by request method; others get `unknown_method`
    no_length       the answer to a POST without a content-length, also to one in chunks
    unreadable      the answer to a request that cannot be parsed or decompressed, and to one whose answer failed
    too_large       the answer to a body over the limit
    unreachable     the answer to what is passed on as it comes, when there is no daemon to pass it to
    """

    headers: Headers
    call_paths: frozenset[str] | None
    page_paths: frozenset[str]
    keep_alive: bool
    mirrors_version: bool
    gzip: bool
    other_methods: Mapping[str, HttpReply | CloseSilently]
    unknown_method: HttpReply | CloseSilently
    no_length: HttpReply | CloseSilently
    unreadable: HttpReply | CloseSilently
    too_large: HttpReply | CloseSilently
    unreachable: HttpReply | CloseSilently

    def is_call(self, method: str, target: str) -> bool:
        """Whether a request is an RPC; everything else is a page, a file, a console."""
        path = target.partition("?")[0]
        return method == "POST" and path not in self.page_paths and (self.call_paths is None or path in self.call_paths)

    def answer_to(self, method: str) -> HttpReply | CloseSilently:
        """The answer to a request that is no call and has no page."""
        return self.other_methods.get(method, self.unknown_method)

    def is_own(self, headers: Headers) -> bool:
        """Whether these are a reply's headers as this manner has them, and not a daemon's that were handed on."""
        return not headers or headers == self.headers_for(header(headers, "content-type") or "")

    def headers_for(self, content_type: str) -> Headers:
        """The headers of a reply to a call that is not in XML."""
        return tuple(("Content-Type", content_type) if pair == _TYPE else pair for pair in self.headers)


def rpclib(name: str, *page_paths: str) -> HttpManner:
    """The habits of xenopsd, squeezed, networkd and the like; `name` goes into their (sic) user-agent header.

    They take calls at any path but the `page_paths`, such as rrdd's `/rrd_unarchive`.
    """
    return HttpManner(
        headers=(("user-agent", name), _TYPE),
        call_paths=None,
        page_paths=frozenset(page_paths),
        keep_alive=False,
        mirrors_version=False,
        gzip=False,
        other_methods=MappingProxyType({}),
        unknown_method=HttpReply(404, (("user-agent", name),), b""),
        no_length=CLOSE_SILENTLY,
        unreadable=CLOSE_SILENTLY,
        too_large=CLOSE_SILENTLY,
        unreachable=CLOSE_SILENTLY,
    )


def _page(status: int, text: str) -> HttpReply:
    body = f"<html><body><h1>HTTP {status}</h1>{text}</body></html>"
    return HttpReply(status, (("content-type", "text/html"), ("cache-control", "no-cache, no-store")), body.encode())


_CORS: Final[Headers] = (("Access-Control-Allow-Origin", "*"), ("Access-Control-Allow-Headers", "X-Requested-With"))
_NO_PAGE: Final = _page(403, "forbidden")

XAPI: Final = HttpManner(
    headers=(_TYPE, *_CORS, ("cache-control", "no-cache, no-store")),
    call_paths=frozenset({"/", "/RPC2", "/xmlrpc", "/json", "/jsonrpc"}),
    page_paths=frozenset(),
    keep_alive=True,
    mirrors_version=True,
    gzip=True,
    other_methods=MappingProxyType(
        {**dict.fromkeys(("GET", "POST", "PUT", "CONNECT"), _NO_PAGE), "OPTIONS": HttpReply(200, _CORS, b"")},
    ),
    unknown_method=_page(501, "not implemented"),
    no_length=_page(500, "a content-length is required"),
    unreadable=_page(500, "the request cannot be read"),
    too_large=_page(500, "the request is too large"),
    unreachable=_page(500, "the service cannot be reached"),
)


def xapi(*socket_paths: str) -> HttpManner:
    """The habits of xapi where it listens at these Unix sockets, whose clients give the socket's path as the target."""
    return replace(XAPI, call_paths=frozenset((*(XAPI.call_paths or ()), *socket_paths)))
