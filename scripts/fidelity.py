"""Writes docs/fidelity.md: what the translations keep, counted.

`fidelity.py EXAMPLES` first tries that many random values of every type, which takes minutes; with 0 the page keeps
what it says of the last such run.
"""

from __future__ import annotations

import itertools
import os
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from bridges.interfaces import model
from tests.bridges import fidelity_types
from tests.bridges.fidelity_cases import EXPLAINED, Outcome, Proof, proofs
from tests.bridges.fidelity_forms import forms
from tests.bridges.fidelity_recordings import SAMPLES
from tests.bridges.fidelity_xenstore import proofs_of_sessions

PAGE: Final = Path(__file__).parents[1] / "docs" / "fidelity.md"
PROVEN: Final = frozenset({Outcome.SAME, Outcome.MEANING})
HEAD: Final = """\
# What the translations keep

`make fidelity` writes this page in a few minutes; `make fidelity EXAMPLES=0` keeps the random values of the last run. A
test computes everything but the column of random values again, and fails when the page is out of date.

Every message of a legacy daemon that could be had is read, typed, made a real D-Bus message, read back from its bytes,
and written again. What came out is counted here:

* **sampled calls, sampled replies**: calls and replies of the daemons' own marshaller, from xen-api's test data and
  generated (`tests/golden/rpclib-samples`). Each is tried in both encodings of its interface.
* **recorded exchanges**: calls with their replies, recorded between unmodified clients and daemons
  (`tests/golden/xmlrpc`, `json16`, `message-switch`, `xenstore`).
* **wrong input**: recorded calls that are wrong in some way. Proven is: we are silent where the daemon was, fail in its
  words where it failed (less `Dune__exe__`, which the recorded build put before names), and go on where it went on.
* **same bytes**: of the proven messages whose original bytes are known, those that came out byte for byte. The others
  mean the same. Samples that were recorded as JSON count with their text as the sample files have it.
* **methods seen**: methods of which at least one call or reply above is proven, of all methods of the interface.
* **types**: distinct types of arguments, results and error arguments. **errors**: declared error codes. **layouts**:
  methods with named, optional or option parameters.
* **random values**: how many values of those types, errors and layouts went through the bytes of both encodings and of
  the bus and came back equal. They are the same values each time.

`a + b / c` is: a of c proven, b refused by name for a reason below. Nothing is lost otherwise: a message that comes out
neither way fails the tests. A dash: there was nothing to try. `xenopsd-2012` and the like are the older interfaces,
which daemons of 2012 and 2013 speak.

"""
EXCEPTIONS: Final = """
## Exceptions

All of them; a test fails when one is missing here, or is needed no more. Behind each: how many messages.

"""
GAPS: Final = """
## What no recording proves

* xapi, cluster and perfmon, and storage of 2012: there is neither a recording nor a sample. Their types are proven by
  random values only, and that the layout is the daemons' rests on the reading of their source.
* Methods that were not seen: as far as their types occur in others, by those; else by random values.
* A daemon of another version than those recorded. Members of records and errors that are not written down pass
  through; a member that is written down and missing, or of another type, is refused by name.
"""
COLUMNS: Final = (
    "interface",
    "spoken as",
    "sampled calls",
    "sampled replies",
    "recorded exchanges",
    "wrong input",
    "same bytes",
    "methods seen",
    "types",
    "errors",
    "layouts",
    "random values",
)


class Depths(NamedTuple):
    """How deep the random values went: examples for each thing tried, and values tried by interface."""

    examples: int
    values: dict[str, int]


def page(depths: Depths) -> str:
    """The whole page."""
    found = (*proofs(), *proofs_of_sessions())
    rows = [COLUMNS, ("---", "---", *("---:" for _ in COLUMNS[2:])), *_rows(found, depths)]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    last_run = f"\nRandom values: at most {depths.examples} for each type, error and layout.\n"
    return HEAD + table + last_run + EXCEPTIONS + "".join(_exceptions(found)) + GAPS


def depths_of(text: str) -> Depths:
    """What a page says of its last deep run."""
    examples = re.search(r"^Random values: at most (\d+) ", text, re.MULTILINE)
    rows = (line.strip("| \n").split(" | ") for line in text.splitlines() if line.startswith("| "))
    values = {row[0]: int(row[-1].replace(",", "")) for row in rows if row[-1].replace(",", "").isdigit()}
    return Depths(int(examples[1]) if examples is not None else 0, values)


def deep(examples: int) -> Depths:
    """Tries random values of everything, on all cores. Raises what the checks raise."""
    parts = [(stem, what, first) for stem in model.available() for what, first in fidelity_types.chunks(stem)]
    values: Counter[str] = Counter()
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        tried = pool.map(fidelity_types.run, *zip(*parts, strict=True), itertools.repeat(examples))
        for (stem, _, _), count in zip(parts, tried, strict=False):
            values[stem] += count
    return Depths(examples, dict(values))


def _rows(found: tuple[Proof, ...], depths: Depths) -> Iterator[tuple[str, ...]]:
    for stem in model.available():
        spoken = [form.encoding.name for form in forms(stem)]
        random = (
            len(fidelity_types.types(stem)),
            len(model.load(stem).errors),
            len(fidelity_types.laid_out(stem)),
            depths.values.get(stem, 0),
        )
        for encoding in spoken:
            counts = _counts(stem, [p for p in found if (p.stem, p.spoken) == (stem, encoding)])
            yield (stem, encoding, *counts, *(f"{number:,}" for number in random))
        if model.load(stem).by_xenstore_function:
            counts = _counts(stem, [p for p in found if (p.stem, p.spoken) == (stem, "xenstore")])
            yield (stem, "xenstore", *counts, *("-" for _ in random))


def _counts(stem: str, found: list[Proof]) -> tuple[str, ...]:
    sampled = [p for p in found if p.file in SAMPLES]
    answers = [p for p in found if p.part == "answer"]
    wrong = {p.file for p in answers}
    recorded: dict[tuple[str, str], bool] = {}
    for p in found:
        if p.file not in SAMPLES and p.file not in wrong:
            key = (p.file, p.exchange)
            recorded[key] = recorded.get(key, True) and p.outcome in PROVEN
    exact = [p.outcome is Outcome.SAME for p in found if p.exact and p.outcome in PROVEN]
    seen = {p.method for p in found if p.outcome in PROVEN} & set(model.load(stem).method_names)
    return (
        _share([p.outcome in PROVEN for p in sampled if p.part == "call"]),
        _share([p.outcome in PROVEN for p in sampled if p.part == "reply"]),
        _share(list(recorded.values())),
        _share([p.outcome in PROVEN for p in answers]),
        f"{sum(exact):,} / {len(exact):,}" if exact else "-",
        f"{len(seen):,} / {len(model.load(stem).method_names):,}",
    )


def _share(proven: list[bool]) -> str:
    refused = len(proven) - sum(proven)
    return f"{sum(proven):,}{f' + {refused:,}' if refused else ''} / {len(proven):,}" if proven else "-"


def _exceptions(found: tuple[Proof, ...]) -> Iterator[str]:
    for why, sentence in EXPLAINED.items():
        counted = Counter(f"{p.stem} as {p.spoken}" for p in found if p.why == why)
        text = f"{sentence} ({', '.join(f'{form}: {count}' for form, count in counted.items())})"
        yield textwrap.fill(text, 120, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False) + "\n"


if __name__ == "__main__":
    wanted = int(sys.argv[1])
    PAGE.write_text(page(deep(wanted) if wanted else depths_of(PAGE.read_text())))
