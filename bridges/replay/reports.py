"""The result of a replay for people and for CI; `terminal_report` has the same for a terminal."""

from __future__ import annotations

from bridges.replay.html_report import html
from bridges.replay.junit_report import junit

__all__ = ["html", "junit"]
