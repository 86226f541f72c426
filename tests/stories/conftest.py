"""Stories have the callers of the live tests."""

from tests.live.conftest import callers, relayed

__all__ = ["callers", "relayed"]
