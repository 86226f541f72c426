"""The envelope in both directions, and the table of dialects against recorded traffic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from xmlrpc_gateway.dialects import DIALECTS, Failure, Success, failure, open_envelope, success
from xmlrpc_gateway.errors import Malformed
from xmlrpc_gateway.xmlrpc_codec import Value, XmlRpcFault, decode_call, decode_response


@pytest.mark.parametrize(
    ("response", "opened"),
    [
        (success("17"), Success("17")),
        (success(None), Success(None)),
        (failure(["Does_not_exist", ["VM", "x"]]), Failure(["Does_not_exist", ["VM", "x"]])),
        (failure("Domain_not_built"), Failure("Domain_not_built")),
        ({"a": "b"}, Success({"a": "b"})),
        ({"Value": "b"}, Success({"Value": "b"})),
        (["VM.start", "VM.stop"], Success(["VM.start", "VM.stop"])),
        (XmlRpcFault(1, "failed"), Failure(["fault", "1", "failed"])),
    ],
)
def test_opens(response: Value | XmlRpcFault, opened: Success | Failure) -> None:
    """Envelopes, bare values and faults say what rpclib's clients take them to say."""
    assert open_envelope(response) == opened


@pytest.mark.parametrize(
    "response",
    [{"Status": "Success"}, {"Status": "Failure", "Value": ""}, {"Status": "success", "Value": ""}, {"Status": 1}],
)
def test_refuses_a_broken_envelope(response: Value) -> None:
    """A Status without what belongs to it is Malformed, and the error shows what was there."""
    with pytest.raises(Malformed, match="expected Success with Value, or Failure with ErrorDescription"):
        open_envelope(response)


def test_every_recorded_reply_has_an_envelope(recordings: Callable[[str], list[Any]]) -> None:
    """The real daemons answer nothing but Success and Failure."""
    for name in ("xenopsd-http-allcalls", "xenopsd2013-xml"):
        for recording in recordings(name):
            reply = decode_response(recording.response_body)
            assert isinstance(reply, dict)
            opened = open_envelope(reply)
            again = success(opened.value) if isinstance(opened, Success) else failure(opened.description)
            assert again == reply


@pytest.mark.parametrize(
    ("name", "method", "dialect"),
    [("xenopsd-http-allcalls", "VM.shutdown", "rpclib"), ("xenopsd2013-xml", "UPDATES.get", "rpclib-2012")],
)
def test_options_are_as_recorded(name: str, method: str, dialect: str, recordings: Callable[[str], list[Any]]) -> None:
    """An optional argument is bare among the named ones of today, a list in its place in 2012."""
    calls = [decode_call(recording.request_body) for recording in recordings(name)]
    options = [params[0]["delay"] if dialect == "rpclib" else params[1] for found, params in calls if found == method]
    assert options
    assert {isinstance(option, list) for option in options} == {DIALECTS[dialect].named_option == "list"}
