"""The closed list of faults."""

from __future__ import annotations

import pytest

from bridges.faults import FROM_DBUS, OURS, Fault, Kind
from dbus_side import names


@pytest.mark.parametrize("kind", Kind)
def test_a_kind_can_stand_in_an_error_name_and_in_a_sentence(kind: Kind) -> None:
    """The value is the last element of an error name, and the start of the fault's sentence."""
    assert names.is_error_name_element(kind)
    assert Fault(kind, "why").sentence == f"{kind}: why"


def test_ours_are_all_but_the_service_s_own() -> None:
    """A service's errors, and its unknown methods, have forms of their own in each protocol."""
    assert set(Kind) - OURS == {Kind.DECLARED, Kind.UNDECLARED, Kind.UNKNOWN_METHOD}
    assert all(names.is_interface(name) for name in FROM_DBUS)


def test_a_fault_shows_all_of_itself_in_a_log() -> None:
    """Kind, text, code and argument."""
    fault = Fault(Kind.DECLARED, "text", code="Code", argument=(1, "a"))
    assert repr(fault) == "Fault(Declared, 'text', code='Code', argument=(1, 'a'))"
    assert str(fault) == "text"
