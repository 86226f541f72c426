"""Recorded exchanges and samples of real daemons, carried over the bus and back: nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from dbus_side.errors import SignatureMismatch
from scripts import fidelity
from tests.bridges.fidelity_cases import (
    EXPLAINED,
    Outcome,
    Proof,
    proofs,
    proofs_of_recording,
    proofs_of_samples,
    proofs_of_wrong_input,
)
from tests.bridges.fidelity_forms import ENCODINGS
from tests.bridges.fidelity_recordings import RECORDINGS, SAMPLES, WRONG_INPUT, Recording
from tests.bridges.fidelity_values import over_bus
from tests.bridges.fidelity_xenstore import proofs_of_sessions
from xmlrpc_gateway.encodings import XML, Encoding
from xmlrpc_gateway.errors import DuplicateMember, NotXmlText

# Calls and replies of each kind of source: guards against a reading that finds nothing.
SIZES = {
    "memory": (6, 55),
    "network": (52, 223),
    "gpumon": (3, 12),
    "storage": (186, 1388),
    "rrd": (21, 21),
    "v6": (1, 8),
    "xenops": (378, 527),
}
EXCHANGES = {
    "xenopsd-http-allcalls": 134,
    "xenopsd-http-cli": 35,
    "xenopsd-http-testsuite": 126,
    "xenopsd-json16-allcalls": 142,
    "message-switch": 267,
    "xenopsd2013-xml": 116,
    "xenopsd2013-json": 118,
    "xenopsd2013-bin": 112,
    "squeezed-json16-rpclight2012": 6,
    "xenopsd-http-errors": 33,
    "xenopsd-json16-errors": 31,
    "xenopsd2013-xml-errors": 8,
    "xenopsd2013-json-errors": 20,
    "xenopsd2013-bin-errors": 25,
}
# Of the daemons whose interface is written down as they had it: not one byte may differ.
EXACT = {
    "xenopsd-http-allcalls",
    "xenopsd-http-cli",
    "xenopsd-http-testsuite",
    "xenopsd-json16-allcalls",
    "squeezed-json16-rpclight2012",
}


def stem(file: str) -> str:
    return file.rpartition("/")[2].partition(".")[0]


def by_file(recordings: tuple[Recording, ...]) -> list[Any]:
    return [pytest.param(recording, id=stem(recording.file)) for recording in recordings]


def lost(found: Iterable[Proof]) -> list[str]:
    """What was lost, in words."""
    return [f"{p.exchange} {p.part} as {p.spoken}: {p.why}" for p in found if p.outcome is Outcome.LOST]


@pytest.mark.parametrize("file", SAMPLES, ids=stem)
def test_samples_keep_their_meaning(file: str) -> None:
    """Calls, results and errors, in both encodings: what is refused is refused by name, for a written reason."""
    found = proofs_of_samples(file)
    assert lost(found) == []
    assert {p.why for p in found} - {""} <= EXPLAINED.keys()
    for spoken in ("xml", "json-rpclib"):
        parts = [p.part for p in found if p.spoken == spoken]
        assert (parts.count("call"), parts.count("reply")) == SIZES[stem(file)]


@pytest.mark.parametrize("recording", by_file(RECORDINGS))
def test_recorded_calls_and_replies_come_out_byte_for_byte(recording: Recording) -> None:
    """Typed, over the bus and back, each is the same document; exceptions are of another age, and named."""
    found = proofs_of_recording(recording)
    assert lost(found) == []
    assert [p for p in found if p.outcome is not Outcome.SAME and p.why not in EXPLAINED] == []
    assert len({p.exchange for p in found}) == EXCHANGES[stem(recording.file)]
    if stem(recording.file) in EXACT:
        assert {(p.outcome, p.why) for p in found} == {(Outcome.SAME, "")}


@pytest.mark.parametrize("recording", by_file(WRONG_INPUT))
def test_wrong_input_is_judged_as_the_daemon_judged_it(recording: Recording) -> None:
    """The same silence, the same failure text, or arguments where the daemon went on; its replies byte for byte."""
    found = proofs_of_wrong_input(recording)
    assert lost(found) == []
    assert {p.outcome for p in found if p.part == "reply"} == {Outcome.SAME}
    assert {p.exchange for p in found if p.outcome is Outcome.REFUSED} <= {"16_bigint"}
    assert sum(p.part == "answer" for p in found) == EXCHANGES[stem(recording.file)]


def test_recorded_xenstore_calls_come_out_as_recorded() -> None:
    """Request and response: records to typed to D-Bus and back are the same records."""
    found = proofs_of_sessions()
    assert lost(found) == []
    assert {p.method for p in found} == {
        "echo",
        "reserve_memory",
        "reserve_memory_range",
        "delete_reservation",
        "balance_memory",
    }


def test_every_explanation_is_needed() -> None:
    """An exception that no message needs any more is gone from the list."""
    assert {p.why for p in proofs()} - {""} == EXPLAINED.keys()


# --- what cannot be carried ------------------------------------------------------------------------------------------

BY_ENCODING = [pytest.param(encoding, id=encoding.name) for pair in ENCODINGS.values() for encoding in pair]


@pytest.mark.parametrize("encoding", BY_ENCODING)
def test_members_that_occur_twice_are_refused_by_name(encoding: Encoding) -> None:
    """A map has each member once; nothing is dropped in silence."""
    once = encoding.write_call("m", [{"first": "a", "other": "b"}])
    with pytest.raises(DuplicateMember) as caught:
        encoding.read_call(once.replace(b"other", b"first"))
    assert caught.value.name == "first"


@pytest.mark.parametrize("encoding", BY_ENCODING)
def test_control_characters_are_carried_by_json_only(encoding: Encoding) -> None:
    """XML refuses them by name; NUL is refused by the bus."""
    text = "a\x01b\x1f"
    if encoding is XML:
        with pytest.raises(NotXmlText, match=r"U\+0001 at offset 1"):
            encoding.write_call("m", [text])
    else:
        assert encoding.read_call(encoding.write_call("m", [text])).params == [text]
    assert over_bus("s", (text,)) == (text,)
    with pytest.raises(SignatureMismatch, match="a string without NUL"):
        over_bus("s", ("a\0b",))


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_says_what_is_so() -> None:
    """docs/fidelity.md has the counts and exceptions of today; how deep the random values went is from its last run."""
    text = fidelity.PAGE.read_text()
    assert fidelity.page(fidelity.depths_of(text)) == text, "run `make fidelity`"
