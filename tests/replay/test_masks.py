"""Masks: a file is read with all of its mistakes, and each kind hides what it says and nothing else."""

from __future__ import annotations

import contextlib
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridges.calls import Tagged
from bridges.comparison import ABSENT
from bridges.faults import Fault, Kind
from bridges.replay import hiding
from bridges.replay.masks import KINDS, Cover, MasksError, decode

TODAY = date(2027, 1, 1)


def toml(**changed: Any) -> str:
    keys = {
        "where": '"squeezed.get_diagnostics:result"',
        "kind": '"ignore"',
        "reason": '"free text"',
        "owner": '"alice"',
        "expires": "2027-03-01",
    } | changed
    return "[[mask]]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items() if value is not None)


def cover(*texts: str) -> Cover:
    return Cover(decode("\n".join(texts).encode()), TODAY)


# --- the file --------------------------------------------------------------------------------------------------------


def test_a_file() -> None:
    """All keys; without an id a mask is called by what it is about."""
    one, other = decode((toml(id='"d"', ticket='"T-1"') + toml(where='"xenopsd.*:fault.argument"')).encode())
    assert (one.id, one.service, one.method, one.ticket, one.expires) == (
        "d", "squeezed", "get_diagnostics", "T-1", date(2027, 3, 1),
    )  # fmt: skip
    assert other.id == "xenopsd.*:fault.argument ignore"
    assert other.is_about("xenopsd", "VM.start")
    assert not other.is_about("squeezed", "login")
    assert decode(b"") == ()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[[mask]]\nwhere = =", "at line 2"),
        (b"\xff", "expected UTF-8 text, got byte 0xff at 0"),
        (b"mask = 3", r"mask: expected \[\[mask\]\] tables, got 3"),
        (b"masks = []", "masks: unknown key; known here: mask"),
        (toml(colour='"red"').encode(), r"mask 1\.colour: unknown key; known here: id, where"),
        (toml(reason=None, id='"d"').encode(), r"mask 1 \(d\)\.reason: is missing"),
        (toml(owner='""').encode(), r"mask 1\.owner: expected a text, got ''"),
        (toml(expires=None).encode(), r"mask 1\.expires: is missing: expected a date such as 2027-03-01"),
        (toml(expires='"2027-03-01"').encode(), r"mask 1\.expires: expected a date such as 2027-03-01, got '2027"),
        (toml(kind='"blind"').encode(), r"mask 1\.kind: expected one of ignore, .*, got 'blind'"),
        (toml(where='"squeezed"').encode(), r"mask 1\.where: expected 'SERVICE\.METHOD:PATH'"),
        (toml(where='"squeeze.login:result"').encode(), r"mask 1\.where: no interface is written down for 'squeeze'"),
        (toml(where='"squeezed.logon:result"').encode(), r"mask 1\.where: squeezed has no method 'logon'"),
        *(
            (toml(where=f'"squeezed.*:{path}"').encode(), r"mask 1\.where: expected a path below result or fault\.arg")
            for path in ("outcome", "fault", "fault.kind", "fault.code", "result[", "resultat", "result[*]x")
        ),
        (toml(kind='"tolerance"').encode(), r"mask 1\.arg: expected .* got None"),
        (toml(kind='"tolerance"', arg="{ rel = -1 }").encode(), r"mask 1\.arg: expected \{ rel"),
        (toml(kind='"time"', arg="{ abs = 1 }").encode(), r"mask 1\.arg: expected \{ within"),
        (toml(kind='"regex"', arg='"("').encode(), r"mask 1\.arg: expected a regular expression"),
        (toml(kind='"shape"', arg="1").encode(), r"mask 1\.arg: a mask of the kind shape takes none, got 1"),
        ((toml() * 2).encode(), "mask: 2 masks have the id 'squeezed.get_diagnostics:result ignore'"),
    ],
)
def test_a_mistake_is_told_with_its_place(content: bytes, problem: str) -> None:
    """What is there, and what was expected."""
    with pytest.raises(MasksError, match=problem):
        decode(content)


def test_all_mistakes_are_told_at_once() -> None:
    """Of all masks."""
    with pytest.raises(MasksError) as caught:
        decode((toml(reason=None, owner=None, expires=None) + toml(kind='"blind"', where='"a"')).encode())
    assert [text.split(":")[0] for text in caught.value.problems] == [
        "mask 1.reason", "mask 1.owner", "mask 1.expires", "mask 2.where", "mask 2.kind",
    ]  # fmt: skip


@given(st.text())
def test_no_text_breaks_the_reading(text: str) -> None:
    """It is read, or its mistakes are told."""
    for content in (text, toml(where=repr(text)), f"[[mask]]\n{text}"):
        with contextlib.suppress(MasksError):
            decode(content.encode(errors="replace"))


# --- kinds -----------------------------------------------------------------------------------------------------------

R1, R2 = "OpaqueRef:" + "1" * 8 + "-1111" * 3 + "-" + "1" * 12, "OpaqueRef:" + "2" * 8 + "-2222" * 3 + "-" + "2" * 12


@pytest.mark.parametrize(
    ("kind", "arg", "left", "right", "hidden"),
    [
        ("ignore", None, 1, "x", True),
        ("ignore", None, ABSENT, 1, True),
        ("shape", None, "a", "b", True),
        ("shape", None, "a", 1, False),
        ("shape", None, ABSENT, "a", False),
        ("shape", None, None, "a", False),
        ("shape", None, {"a": 1}, {"a": 2}, True),
        ("shape", None, {"a": 1}, {"a": "2"}, False),
        ("shape", None, {"a": 1}, {"a": 1, "b": 2}, False),
        ("shape", None, [1], [], True),
        ("shape", None, (1, "a"), (2, "b"), True),
        ("shape", None, Tagged("A", 1), Tagged("A", 2), True),
        ("shape", None, Tagged("A", 1), Tagged("B", 1), False),
        ("tolerance", "{ abs = 2 }", 10, 12, True),
        ("tolerance", "{ abs = 2 }", 10, 13, False),
        ("tolerance", "{ rel = 0.1 }", -100, -109.5, True),
        ("tolerance", "{ rel = 0.1 }", 100, 111, False),
        ("tolerance", "{ rel = 0.1, abs = 20 }", 100, 111, True),
        ("tolerance", "{ rel = 0.5 }", float("inf"), 1.0, False),
        ("tolerance", "{ rel = 0.5 }", float("nan"), 1.0, False),
        ("tolerance", "{ abs = 2 }", True, 2, False),
        ("tolerance", "{ abs = 2 }", 1, ABSENT, False),
        ("set", None, [1, 2, 2], [2, 1, 2], True),
        ("set", None, [1, 2, 2], [2, 1, 1], False),
        ("set", None, [1, 2], [2, 1, 2], False),
        ("set", None, [{"a": 1, "b": 2}, Tagged("X")], [Tagged("X"), {"b": 2, "a": 1}], True),
        ("set", None, [1, "2"], ["1", 2], False),
        ("time", None, "20110102T03:04:05Z", "2027-01-01T00:00:00+01:00", True),
        ("time", None, "20110102T03:04:05Z", "yesterday", False),
        ("time", "{ within = 60 }", "20110102T03:04:05Z", "2011-01-02T03:05:05", True),
        ("time", "{ within = 60 }", "20110102T03:04:05Z", "20110102T03:05:06Z", False),
        ("time", "{ within = 1 }", 1.5, 2, True),
        ("time", None, 1.5, float("nan"), False),
        ("regex", '"vm-[0-9]+"', "vm-1", "vm-22", True),
        ("regex", '"vm-[0-9]+"', "vm-1", "vm-x", False),
        ("regex", '"vm-[0-9]+"', "xvm-1", "vm-1", False),
        ("regex", '"vm-[0-9]+"', "vm-1", 1, False),
        ("handle", None, R1, R2, True),
        ("handle", None, "17", "3", True),
        ("handle", None, "17", "x", False),
        ("handle", None, 17, "3", False),
        ("handle", None, R1, "OpaqueRef:NULL", False),
    ],
)
def test_kinds(kind: str, arg: str | None, left: Any, right: Any, hidden: bool) -> None:
    """At a member of a map, which may be missing."""
    masks = cover(toml(kind=f'"{kind}"', arg=arg, where='"squeezed.login:result.m"'))
    one, other = ({} if side is ABSENT else {"m": side} for side in (left, right))
    assert masks.hide("squeezed", "login", one, other) == (one if hidden else other)
    (row,) = masks.rows()
    assert (row.hits, row.compared) == (int(hidden), 1)
    assert masks.hide("squeezed", "get_diagnostics", one, other) is other
    assert masks.rows()[0].compared == 1


def test_handles_stand_for_each_other_one_for_one() -> None:
    """Over the whole run, also for those that were equal."""
    masks = cover(toml(kind='"handle"'))
    found = [
        masks.hide("squeezed", "get_diagnostics", a, b) for a, b in (("1", "5"), ("1", "5"), ("2", "5"), ("1", "6"))
    ]
    assert found == ["1", "1", "5", "6"]
    assert masks.hide("squeezed", "get_diagnostics", "8", "8") == "8"
    assert masks.hide("squeezed", "get_diagnostics", "8", "9") == "9"


@pytest.mark.parametrize(
    ("path", "left", "right", "after"),
    [
        ("result", {"a": 1}, 2, {"a": 1}),
        ("result.a", {"a": 1, "b": 2}, {"a": 3, "b": 4}, {"a": 1, "b": 4}),
        ("result.a", {"b": 2}, {"a": 3, "b": 4}, {"b": 4}),
        ("result[*].a", [{"a": 1, "b": 1}, {"a": 2, "b": 1}], [{"a": 3, "b": 1}, {"a": 4, "b": 2}],
         [{"a": 1, "b": 1}, {"a": 2, "b": 2}]),
        ("result[*]", [1], [2, 3], [2, 3]),
        ("result[#]", [1], [2, 3], [1]),
        ("result[1]", (1, 2), (3, 4), (3, 2)),
        ("result[7]", (1, 2), (3, 4), (3, 4)),
        ("result{*}", {"x": 1, "y": 2}, {"x": 3, "z": 4}, {"x": 1, "z": 4}),
        ("result{#}", {"x": 1, "y": 2}, {"x": 3, "z": 4}, {"x": 3, "y": 2}),
        ("result.A.b", Tagged("A", {"b": 1}), Tagged("A", {"b": 2}), Tagged("A", {"b": 1})),
        ("result.A", Tagged("A", 1), Tagged("B", 2), Tagged("B", 2)),
        ("result[0]", Tagged("A", 1), Tagged("B", 2), Tagged("B", 2)),
        ("fault.argument", 1, 2, 2),
    ],
)  # fmt: skip
def test_paths(path: str, left: Any, right: Any, after: Any) -> None:
    """Every step that `comparison` writes; the answers themselves are not changed."""
    before = repr((left, right))
    masks = cover(toml(where=f'"squeezed.*:{path}"'))
    assert masks.hide("squeezed", "login", left, right) == after
    assert repr((left, right)) == before
    assert masks.rows()[0].hits == int(after != right)


def test_faults() -> None:
    """What a fault carries may be hidden; whether it is one, its kind and its code may not."""
    masks = cover(toml(where='"squeezed.*:fault.argument"'), toml(where='"squeezed.*:result"'))
    one, other = (Fault(Kind.DECLARED, "t", code="C", argument=[n]) for n in (1, 2))
    hidden = masks.hide("squeezed", "login", one, other)
    assert isinstance(hidden, Fault)
    assert (hidden.kind, hidden.code, hidden.argument) == (Kind.DECLARED, "C", [1])
    assert masks.hide("squeezed", "login", one, 3) == 3
    assert masks.hide("squeezed", "login", 3, other) is other
    strange = Fault(Kind.UNDECLARED, "t", code="D", argument=[1])
    assert masks.hide("squeezed", "login", one, strange) is strange


def test_a_mask_hides_until_its_last_day() -> None:
    """After it, it hides nothing and is named."""
    masks = cover(toml(expires="2027-01-01"), toml(id='"old"', expires="2026-12-31", where='"squeezed.login:result"'))
    assert masks.hide("squeezed", "get_diagnostics", "a", "b") == "a"
    assert masks.hide("squeezed", "login", "a", "b") == "b"
    assert [row.warning for row in masks.rows()] == ["greedy", "expired"]


def test_stale_and_greedy_masks_are_told() -> None:
    """One that hid nothing though its method was compared; one that hid in more than a twentieth."""
    names = ("login", "reserve_memory", "balance_memory")
    texts = [toml(id=f'"{name}"', where=f'"squeezed.{name}:result"') for name in names]
    masks = cover(*texts, toml(id='"none"', where='"xenopsd.*:result"'))
    for number in range(100):
        masks.hide("squeezed", "login", "a", "b" if number < 5 else "a")
        masks.hide("squeezed", "reserve_memory", "a", "b" if number < 6 else "a")
        masks.hide("squeezed", "balance_memory", None, None)
    rows = {row.id: row for row in masks.rows()}
    assert {name: (row.hits, row.compared, row.warning) for name, row in rows.items()} == {
        "login": (5, 100, ""),
        "reserve_memory": (6, 100, "greedy"),
        "balance_memory": (0, 100, "stale"),
        "none": (0, 0, ""),
    }


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner) | st.tuples(inner, inner)
    | st.builds(Tagged, st.sampled_from("AB"), inner),
    max_leaves=8,
)  # fmt: skip
PATHS = st.lists(st.sampled_from([".a", ".A", "[*]", "[#]", "[0]", "{*}", "{#}"]), max_size=3).map("".join)
ARGS = {"tolerance": "{ abs = 5 }", "regex": '".*"'}


@given(VALUES, VALUES, PATHS, st.sampled_from(KINDS))
def test_nothing_is_hidden_where_nothing_differs(left: Any, right: Any, path: str, kind: str) -> None:
    """Equal answers are no hit; hidden twice is hidden once; no shape of answers breaks it."""
    (mask,) = decode(toml(where=f'"squeezed.*:result{path}"', kind=f'"{kind}"', arg=ARGS.get(kind)).encode())
    assert hiding.covered(mask.path, left, left, mask.make()) is left
    hides = mask.make()
    once = hiding.covered(mask.path, left, right, hides)
    assert repr(hiding.covered(mask.path, left, once, hides)) == repr(once)
