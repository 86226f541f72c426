"""Numbers as the legacy daemons read them.

Source of the facts: every legacy door parses numbers with OCaml's own functions. Integers take a sign, the prefixes
0x, 0o, 0b and 0u, underscores after the first digit, and no blanks; floats take what C's `strtod` takes, and
underscores. `int` is 63 bits wide there, `int32` 32, `int64` 64.
"""

from __future__ import annotations

import re
from typing import Final

RANGES: Final = {
    "int": (-(2**62), 2**62 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}

_LONGEST: Final = 400  # characters: far more than any number needs, and Python refuses to parse thousands of digits
_DIGITS: Final = {"": "0-9", "0x": "0-9a-fA-F", "0o": "0-7", "0b": "01", "0u": "0-9"}
_BASES: Final = {"": 10, "0x": 16, "0o": 8, "0b": 2, "0u": 10}
_FORMS: Final = {prefix: re.compile(f"[{digits}][{digits}_]*") for prefix, digits in _DIGITS.items()}
_FLOAT: Final = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|infinity|nan)", re.IGNORECASE)
_HEX_FLOAT: Final = re.compile(r"[+-]?0x([0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(p[+-]?[0-9]{1,9})?", re.IGNORECASE)


def integer(text: str, kind: str) -> int | None:
    """The integer that a legacy daemon would read from `text`, or None when it would refuse it.

    `kind` is int, int32 or int64. Plain decimal text must be in its range; with a prefix all bits may be used, and the
    value wraps: 0xffffffffffffffff is -1 as an int64.
    """
    digits = text[1:] if text[:1] in ("-", "+") else text
    prefix = digits[:2].lower() if digits[:2].lower() in _BASES else ""
    digits = digits[len(prefix) :]
    if len(digits) > _LONGEST or not _FORMS[prefix].fullmatch(digits):
        return None
    number = int(digits.replace("_", ""), _BASES[prefix])
    low, high = RANGES[kind]
    all_bits = 2 * high + 1
    if prefix and number > all_bits:
        return None
    if text.startswith("-"):
        number = -number
    if prefix:
        number = (number - low & all_bits) + low
    return number if low <= number <= high else None


def floating(text: str) -> float | None:
    """The float that a legacy daemon would read from `text`, or None when it would refuse it."""
    digits = text.replace("_", "")
    if len(digits) > _LONGEST:
        return None
    if _FLOAT.fullmatch(digits):
        return float(digits)
    if _HEX_FLOAT.fullmatch(digits):
        try:
            return float.fromhex(digits)
        except OverflowError:
            return float("-inf" if digits.startswith("-") else "inf")
    return None
