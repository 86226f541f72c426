"""Ways to carry values for the tests of the translations: real D-Bus bytes, random neutral values, strict equality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import strategies as st

from bridges.interfaces.model import Type
from tests.bridges import fidelity_values


@pytest.fixture(scope="session")
def over_bus() -> Callable[[str, tuple[Any, ...]], tuple[Any, ...]]:
    """A body checked, marshalled to D-Bus bytes and read back."""
    return fidelity_values.over_bus


@pytest.fixture(scope="session")
def same() -> Callable[[Any, Any], bool]:
    """Whether two values are equal with their types (True is not 1), NaN being equal to itself."""
    return fidelity_values.same


@pytest.fixture(scope="session")
def values() -> Callable[[Type], st.SearchStrategy[Any]]:
    """The neutral values of a type, as a strategy."""
    return fidelity_values.values
