"""The tables of manners."""

from __future__ import annotations

import pytest

from xmlrpc_gateway import manners
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, HttpReply


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 403), ("POST", 403), ("PUT", 403), ("OPTIONS", 200), ("DELETE", 501), ("X", 501)]
)
def test_xapi_answers_other_methods(method: str, status: int) -> None:
    """xapi has no page at an unknown path by any method that it knows, a CORS answer for OPTIONS, 501 for the rest."""
    answer = manners.XAPI.answer_to(method)
    assert isinstance(answer, HttpReply)
    assert answer.status == status


def test_rpclib_services_answer_any_other_method_with_an_empty_404() -> None:
    """The recorded answer to GET, for all methods but POST."""
    assert manners.rpclib("x").answer_to("GET") == HttpReply(404, (("user-agent", "x"),), b"")


def test_rpclib_services_close_silently_on_what_they_cannot_read() -> None:
    """The three unreadable cases of the recordings have no reply, and neither has one that is no more there."""
    manner = manners.rpclib("x")
    assert {manner.no_length, manner.unreadable, manner.too_large, manner.unreachable} == {CLOSE_SILENTLY}


def test_the_content_type_has_no_charset() -> None:
    """Xen Orchestra compares the content type exactly."""
    for manner in (manners.XAPI, manners.rpclib("x")):
        assert ("Content-Type", "text/xml") in manner.headers


@pytest.mark.parametrize(
    ("method", "target", "xapi", "rpclib"),
    [
        ("POST", "/", True, True),
        ("POST", "/RPC2?session_id=x", True, True),
        ("POST", "/jsonrpc", True, True),
        ("POST", "/var/lib/xcp/xapi", True, True),
        ("POST", "/var/lib/xcp/other", False, True),
        ("POST", "/cli", False, True),
        ("POST", "/jsonrpc/x", False, True),
        ("POST", "/rrd_unarchive?uuid=1", False, False),
        ("post", "/", False, False),
        ("GET", "/", False, False),
        ("OPTIONS", "/", False, False),
        ("CONNECT", "/console?uuid=1", False, False),
    ],
)
def test_what_is_a_call(method: str, target: str, *, xapi: bool, rpclib: bool) -> None:
    """xapi takes calls at five paths and its socket's, rpclib services at every path but some."""
    assert manners.xapi("/var/lib/xcp/xapi").is_call(method, target) is xapi
    assert manners.rpclib("xcp-rrdd", "/rrd_unarchive").is_call(method, target) is rpclib


def test_the_content_type_can_be_another() -> None:
    """Replies in JSON have the same headers otherwise; both are the manner's own, a daemon's are not."""
    headers = manners.XAPI.headers_for("application/json")
    assert headers == (("Content-Type", "application/json"), *manners.XAPI.headers[1:])
    assert all(manners.XAPI.is_own(own) for own in (headers, manners.XAPI.headers, ()))
    assert not manners.XAPI.is_own((*headers, ("X", "y")))
    assert not manners.XAPI.is_own((("X", "y"),))
