"""Numbers, and texts from the wire, as people read them in reports."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

_KIB: Final = 1024


def printable(text: str) -> str:
    """The text with everything that is not seen (controls, surrogates, changes of direction) spelled out: `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def count(number: int) -> str:
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """`1 call`, `2 calls`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def duration(microseconds: float) -> str:
    """`640 us`, `1.25 ms`, `148 ms`, `2.41 s`."""
    if microseconds < 1000:
        return f"{microseconds:.0f} us"
    milliseconds = microseconds / 1000
    if milliseconds < 1000:
        return f"{milliseconds:.2f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"
    return f"{milliseconds / 1000:.2f} s"


def span(seconds: float) -> str:
    """A longer time: `12.4 s`, `5 min 3 s`, `2 h 40 min`, `3 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(octets: int) -> str:
    """`512 B`, `4.2 KiB`, `1.3 MiB`."""
    if octets < _KIB:
        return f"{octets} B"
    kibibytes = octets / _KIB
    return f"{kibibytes:.1f} KiB" if kibibytes < _KIB else f"{kibibytes / _KIB:.1f} MiB"


def rate(per_second: float) -> str:
    """Calls per second, per minute or per hour where there is less than one a minute."""
    if per_second >= 1 or per_second == 0:
        return f"{per_second:,.1f}/s"
    per_minute = per_second * 60
    return f"{per_minute:.1f}/min" if per_minute >= 1 else f"{per_minute * 60:.1f}/h"


def moment(nanoseconds: int) -> str:
    """A time since 1970 as UTC; empty for none, the number itself where no calendar has it."""
    if not nanoseconds:
        return ""
    try:
        return datetime.fromtimestamp(nanoseconds // 10**9, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return f"{nanoseconds} ns"


def shares(counts: Mapping[str, int]) -> str:
    """`http 12, bus 3`, the most first."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number:,}" for name, number in ranked)
