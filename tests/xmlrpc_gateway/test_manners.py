"""The tables of manners."""

from __future__ import annotations

import pytest

from xmlrpc_gateway import manners
from xmlrpc_gateway.http_messages import CLOSE_SILENTLY, HttpReply


@pytest.mark.parametrize(
    ("method", "status"), [("GET", 403), ("PUT", 403), ("OPTIONS", 200), ("DELETE", 501), ("X", 501)]
)
def test_xapi_answers_other_methods(method: str, status: int) -> None:
    """xapi has a page for methods it knows, a CORS answer for OPTIONS and 501 for the rest."""
    answer = manners.XAPI.answer_to(method)
    assert isinstance(answer, HttpReply)
    assert answer.status == status


def test_rpclib_services_answer_any_other_method_with_an_empty_404() -> None:
    """The recorded answer to GET, for all methods but POST."""
    assert manners.rpclib("x").answer_to("GET") == HttpReply(404, (("user-agent", "x"),), b"")


def test_rpclib_services_close_silently_on_what_they_cannot_read() -> None:
    """The three unreadable cases of the recordings have no reply."""
    manner = manners.rpclib("x")
    assert {manner.no_length, manner.unreadable, manner.too_large} == {CLOSE_SILENTLY}


def test_the_content_type_has_no_charset() -> None:
    """Xen Orchestra compares the content type exactly."""
    for manner in (manners.XAPI, manners.rpclib("x")):
        assert ("Content-Type", "text/xml") in manner.headers
