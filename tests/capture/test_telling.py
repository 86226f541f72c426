"""What is told of a call outside of a capture."""

from __future__ import annotations

import pytest

from bridges.calls import Value
from bridges.capture.telling import Teller, for_the_log, harmless
from bridges.comparison import Difference
from bridges.faults import Fault, Kind
from bridges.interfaces import model
from bridges.interfaces.model import Method

SESSION = "OpaqueRef:7a3f0c6e-5a44-4c07-9d0a-0f3f5f4f8d11"
XAPI = model.load("xapi")
READ = {"session_id": SESSION, "self": "OpaqueRef:NULL"}


def method(name: str) -> Method:
    found = XAPI.method(name)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("kib: expected int64, got 'hunter2'", "kib: expected int64, got (secret)"),
        ("got b'hunter2' and \"more\", so no", "got (secret)"),
        ("the bridge's log has the details", "the bridge's log has the details"),
        ("login with password=hunter2 failed", "login with password=(secret) failed"),
        (f"{SESSION} is over", "OpaqueRef:(secret) is over"),
    ],
)
def test_texts_of_ours(text: str, shown: str) -> None:
    """What they quote is left out, and what looks like a secret."""
    assert harmless(text) == shown


def test_faults_in_the_log() -> None:
    """The words of a service's own error are not ours."""
    assert for_the_log(Fault(Kind.DECLARED, "no such hunter2", code="NO_SUCH")) == "Declared: NO_SUCH"
    assert for_the_log(Fault(Kind.UNDECLARED, "hunter2", code="hunter2")) == "Undeclared"
    assert for_the_log(Fault(Kind.BUSY, "4096 calls are in flight")) == "Busy: 4096 calls are in flight"


@pytest.mark.parametrize(
    ("name", "more", "answer", "expected"),
    [
        ("VM.get_name_label", {}, "hunter2", False),
        ("VM.get_name_label", {}, "password=hunter2", True),
        ("VM.get_other_config", {}, {"password": "hunter2"}, True),
        ("VM.add_to_other_config", {"key": "password", "value": "hunter2"}, None, True),
        ("VM.add_to_other_config", {"key": "note", "value": "hunter2"}, None, False),
        ("VM.get_name_label", {}, Fault(Kind.UNDECLARED, "password=hunter2", code="X"), True),
        ("VM.get_name_label", {}, Fault(Kind.UNDECLARED, "hunter2", code="X"), False),
    ],
)
def test_calls_with_secrets(name: str, more: dict[str, Value], answer: Value | Fault, expected: bool) -> None:
    """A session alone is none: it is in every call."""
    assert Teller(XAPI).has_secrets(method(name), {**READ, **more}, answer) is expected


def test_a_value_that_is_not_of_its_type_counts_as_a_secret() -> None:
    assert Teller(XAPI).has_secrets(method("VM.get_other_config"), dict(READ), 7)


def test_examples_of_differences() -> None:
    """Shown for a call without secrets. Not shown: texts of others, of what was not read, of one side alone."""
    teller, label = Teller(XAPI), method("VM.get_name_label")
    found = [Difference("result", "'one'", "'two'"), Difference("result[#]", "1", "2")]
    assert teller.examples(label, dict(READ), ["one", "two"], found) == found
    hidden = [Difference("result", "(secret)", "(secret)"), found[1]]
    assert teller.examples(label, dict(READ), ["password=one", "two"], found) == hidden
    assert teller.examples(label, None, [], found) == hidden
    assert teller.examples(None, dict(READ), [], found) == hidden
    surplus = [Difference("arguments.more", "'one'", "(absent)")]
    shown = [Difference("arguments.more", "(secret)", "(absent)")]
    assert teller.examples(label, dict(READ), ["one"], surplus) == shown
    (reference,) = teller.examples(label, dict(READ), [], [Difference("result", f"'{SESSION}'", "''")])
    assert SESSION not in reference.left
