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


@pytest.mark.parametrize(("name", "dialect"), [("xenopsd-http-allcalls", "rpclib"), ("xenopsd2013-xml", "rpclib-2012")])
def test_named_arguments_are_as_recorded(name: str, dialect: str, recordings: Callable[[str], list[Any]]) -> None:
    """A dialect with named arguments has one struct as its only parameter, the other one never has."""
    calls = [decode_call(recording.request_body)[1] for recording in recordings(name)]
    named = [len(params) == 1 and isinstance(params[0], dict) and "debug_info" in params[0] for params in calls]
    assert set(named) == {DIALECTS[dialect].named_arguments}
