"""Numbers as the legacy daemons write and read them.

Source of the facts: the integers of every legacy door are parsed by OCaml, which takes a sign, the prefixes 0x, 0o, 0b (and 0u)
and underscores between digits, and no blanks. `int` is 63 bits wide there, `int32` 32, `int64` 64.
"""

from __future__ import annotations

import re
from typing import Final

RANGES: Final = {
    "int": (-(2**62), 2**62 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}

_DIGITS: Final = {"": "0-9", "0x": "0-9a-fA-F", "0o": "0-7", "0b": "01", "0u": "0-9"}
_BASES: Final = {"": 10, "0x": 16, "0o": 8, "0b": 2, "0u": 10}
_FORMS: Final = {prefix: re.compile(f"[{digits}][{digits}_]*") for prefix, digits in _DIGITS.items()}


def integer(text: str, kind: str) -> int | None:
    """The integer that a legacy daemon would read from `text`, or None when it would refuse it.

    `kind` is int, int32 or int64; a value outside its range is refused, except that hexadecimal, octal and binary text
    may use all bits (0xffffffffffffffff is -1 as an int64), as OCaml's own parser allows.
    """
    digits = text[1:] if text[:1] in ("-", "+") else text
    prefix = digits[:2].lower() if digits[:2].lower() in _BASES else ""
    digits = digits[len(prefix) :]
    if not _FORMS[prefix].fullmatch(digits):
        return None
    number = int(digits.replace("_", ""), _BASES[prefix])
    low, high = RANGES[kind]
    if prefix not in ("", "0u") and high < number <= 2 * high + 1:
        number += 2 * low
    if text.startswith("-"):
        number = -number
    return number if low <= number <= high else None


def floating(text: str) -> float | None:
    """The float in `text` (OCaml accepts underscores and `nan`, `inf`), or None."""
    if not text or text != text.strip():
        return None
    try:
        return float(text)
    except ValueError:
        return None
