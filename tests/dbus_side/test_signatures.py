"""Values against their signatures, both ways."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbus_side.errors import NameInvalid, SignatureMismatch
from dbus_side.signatures import Variant, decoder, encoder, parse, single


class LibraryVariant(NamedTuple):
    """Stands where a library's variant class would."""

    signature: str
    value: object


@pytest.mark.parametrize(
    ("signature", "types"),
    [
        ("", []),
        ("s", ["s"]),
        ("sa{sv}(ix)", ["s", "a{sv}", "(ix)"]),
        ("aaya{s(aa{yv}d)}", ["aay", "a{s(aa{yv}d)}"]),
        ("a" * 32 + "y", ["a" * 32 + "y"]),
        ("(" * 32 + "y" + ")" * 32, ["(" * 32 + "y" + ")" * 32]),
    ],
)
def test_complete_types(signature, types):
    """A signature is a row of complete types."""
    assert [kind.signature for kind in parse(signature)] == types


@pytest.mark.parametrize(
    "signature",
    [
        "a",
        "()",
        "(",
        "(i",
        ")",
        "{sv}",
        "a{s}",
        "a{vs}",
        "a{(i)s}",
        "a{sss}",
        "a{s",
        "a{",
        "z",
        "i i",
        "é",
        "a" * 33 + "y",
        "(" * 33 + "y" + ")" * 33,
        "y" * 256,
    ],
)
def test_illegal_signatures(signature):
    """What the specification forbids is refused, by name."""
    with pytest.raises(NameInvalid, match="signature"):
        parse(signature)
    assert not single(signature)


@pytest.mark.parametrize(("signature", "is_one"), [("s", True), ("a{sv}", True), ("", False), ("ss", False)])
def test_single(signature, is_one):
    """One complete type is what a variant needs."""
    assert single(signature) is is_one


GOOD = [
    ("y", 255, 255),
    ("b", True, True),
    ("n", -(2**15), -(2**15)),
    ("q", 2**16 - 1, 2**16 - 1),
    ("i", 2**31 - 1, 2**31 - 1),
    ("u", 2**32 - 1, 2**32 - 1),
    ("x", -(2**63), -(2**63)),
    ("t", 2**64 - 1, 2**64 - 1),
    ("d", 0.1, 0.1),
    ("d", 2**53, float(2**53)),
    ("s", "žluťoučký 😀", "žluťoučký 😀"),
    ("o", "/a/b", "/a/b"),
    ("g", "a{sv}", "a{sv}"),
    ("ay", b"\0\xff", b"\0\xff"),
    ("as", [], []),
    ("a{sx}", {"a": 1}, {"a": 1}),
    ("(s(xb))", ("a", (1, True)), ["a", [1, True]]),
    ("v", Variant("(s)", ("a",)), LibraryVariant("(s)", ["a"])),
    ("a(sv)", [("a", Variant("v", Variant("i", 1)))], [["a", LibraryVariant("v", LibraryVariant("i", 1))]]),
]


@pytest.mark.parametrize(("signature", "ours", "library"), GOOD)
def test_good_values_both_ways(signature, ours, library):
    """Ours becomes the library's form, and that becomes ours again."""
    encoded = encoder(signature)((ours,), LibraryVariant)
    assert encoded == [library]
    decoded = decoder(signature)(encoded)
    assert decoded == (ours,)
    assert isinstance(decoded, tuple)


BAD = [
    ("y", 256, "argument 1", "0 to 255"),
    ("y", -1, "argument 1", "0 to 255"),
    ("i", True, "argument 1", "an integer"),
    ("i", 2**31, "argument 1", "an integer"),
    ("x", 2**63, "argument 1", "an integer"),
    ("x", 1.0, "argument 1", "an integer"),
    ("x", "1", "argument 1", "an integer"),
    ("b", 1, "argument 1", "a boolean"),
    ("d", True, "argument 1", "a double"),
    ("d", 2**53 + 1, "argument 1", "a double"),
    ("d", 10**400, "argument 1", "a double"),
    ("s", "a\0b", "argument 1", "without NUL"),
    ("s", "\ud800", "argument 1", "without lone surrogates"),
    ("s", b"a", "argument 1", "a string"),
    ("s", None, "argument 1", "a string"),
    ("o", "/a/", "argument 1", "an object path"),
    ("o", "", "argument 1", "an object path"),
    ("g", "a", "argument 1", "a signature"),
    ("ay", [1], "argument 1", "bytes"),
    ("ay", bytearray(b"a"), "argument 1", "bytes"),
    ("as", ("a",), "argument 1", "a list"),
    ("as", ["a", 1], "argument 1[1]", "a string"),
    ("a{sx}", [("a", 1)], "argument 1", "a dict"),
    ("a{sx}", {"a": 1, "memory_static_max": "1"}, "argument 1.memory_static_max", "an integer"),
    ("a{sx}", {1: 1}, "argument 1[1]", "a string"),
    ("a{ss}", {"not a name": "\0"}, "argument 1['not a name']", "without NUL"),
    ("(sx)", ["a", 1], "argument 1", "a tuple of 2"),
    ("(sx)", ("a",), "argument 1", "a tuple of 2"),
    ("(sx)", Variant("s", "a"), "argument 1", "a tuple of 2"),
    ("(sa(xx))", ("a", [(1, 2), (1, "2")]), "argument 1[1][1][1]", "an integer"),
    ("v", 1, "argument 1", "a Variant"),
    ("v", ("s", "a"), "argument 1", "a Variant"),
    ("v", Variant("ss", "a"), "argument 1", "one complete type"),
    ("v", Variant("", ()), "argument 1", "one complete type"),
    ("a{sv}", {"a": Variant("x", "1")}, "argument 1.a", "an integer"),
    ("h", 0, "argument 1", "file descriptors"),
]


@pytest.mark.parametrize(("signature", "value", "path", "expected"), BAD)
def test_bad_values_are_refused_with_their_path(signature, value, path, expected):
    """The error leads to the value and says what was expected there."""
    with pytest.raises(SignatureMismatch) as caught:
        encoder(signature)((value,), LibraryVariant)
    assert caught.value.path == path
    assert expected in caught.value.expected
    assert len(str(caught.value)) < 500


def test_a_later_argument_is_counted_from_one():
    """`argument 2` is the second."""
    with pytest.raises(SignatureMismatch, match=r"^argument 2\.memory_static_max: expected an integer .* got str '1'$"):
        encoder("sa{sx}")(("a", {"memory_static_max": "1"}), LibraryVariant)


@pytest.mark.parametrize("values", [(), ("a", "b")])
def test_the_number_of_arguments_must_fit(values):
    """Too few and too many are told with both numbers."""
    with pytest.raises(SignatureMismatch, match=r"arguments: expected 1 of signature 's', got \d"):
        encoder("s")(values, LibraryVariant)


def nested(levels: int, innermost: Variant) -> Variant:
    """A variant inside that many others."""
    for _ in range(levels):
        innermost = Variant("v", innermost)
    return innermost


def test_variants_nest_to_sixty_four_containers():
    """One container more would make the bus disconnect us."""
    assert encoder("v")((nested(63, Variant("i", 1)),), LibraryVariant)
    assert encoder("v")((nested(62, Variant("ai", [1])),), LibraryVariant)
    for value in (nested(64, Variant("i", 1)), nested(63, Variant("ai", [1])), nested(5000, Variant("i", 1))):
        with pytest.raises(SignatureMismatch, match="at most 64 containers"):
            encoder("v")((value,), LibraryVariant)


def test_a_byte_array_that_a_library_gives_as_bytearray_becomes_bytes():
    """dbus-fast without its compiled part does so."""
    assert decoder("say")(["a", bytearray(b"x")]) == ("a", b"x")
    assert decoder("a{say}")([{"a": bytearray(b"x")}]) == ({"a": b"x"},)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10)
BASIC = {
    "x": st.integers(-(2**63), 2**63 - 1),
    "b": st.booleans(),
    "d": st.floats(allow_nan=False),
    "s": TEXT,
    "ay": st.binary(max_size=9),
}


def containers(inner):
    """Types with values, around types with values."""

    def a_list(pair):
        signature, values = pair
        return ("a" + signature, st.lists(values, max_size=3))

    def a_struct(pairs):
        return (f"({''.join(s for s, _ in pairs)})", st.tuples(*(v for _, v in pairs)))

    def a_dict(pair):
        signature, values = pair
        return ("a{s" + signature + "}", st.dictionaries(TEXT, values, max_size=3))

    def a_variant(pair):
        signature, values = pair
        return ("v", st.builds(Variant, st.just(signature), values))

    lists = inner.filter(lambda pair: pair[0] != "y").map(a_list)
    return lists | st.lists(inner, min_size=1, max_size=3).map(a_struct) | inner.map(a_dict) | inner.map(a_variant)


TYPED = st.recursive(st.sampled_from(sorted(BASIC)).map(lambda s: (s, BASIC[s])), containers, max_leaves=5)
TYPED_VALUES = TYPED.flatmap(lambda pair: st.tuples(st.just(pair[0]), pair[1]))


@given(TYPED_VALUES)
def test_every_value_comes_back(typed):
    """Encoding and decoding lose nothing, for made-up types."""
    signature, value = typed
    assert decoder(signature)(encoder(signature)((value,), LibraryVariant)) == (value,)
