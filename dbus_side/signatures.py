"""Values and their D-Bus signatures: compiled once per signature, then only run.

Our form of a value, both ways:
    y n q i u x t int · b bool · d float (an int is taken when it is exact) · s o g str · ay bytes · aT list
    a{KT} dict · (...) tuple · v Variant. `h` (file descriptors) is not carried.
Types are taken exactly: bool is no int, an enumeration is no str. Every value is checked before it is marshalled,
because a bad one costs the whole connection: the bus disconnects who sends it. Measured: NUL in a string through
dbus-next, a bad object path through dbus-fast.

Two equal keys in an incoming `a{KT}` become one; the libraries give no more.
Limits (D-Bus specification, "Valid Signatures" and "Marshaling"): 255 bytes, 32 arrays and 32 structs deep, 64
containers in all with those inside variants.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from dbus_side.errors import NameInvalid, SignatureMismatch
from dbus_side.names import is_object_path


class Variant(NamedTuple):
    """A value that carries its own signature (one complete type)."""

    signature: str
    value: Any


MakeVariant = Callable[[str, Any], Any]  # the library's variant, from a signature and a value in the library's form
Encode = Callable[[tuple[Any, ...], MakeVariant], list[Any]]
Decode = Callable[[list[Any]], tuple[Any, ...]]
_Write = Callable[[Any, MakeVariant, int], Any]  # the last argument counts the containers around the value
_Read = Callable[[Any], Any]

_LONGEST: Final = 255
_DEEPEST: Final = 32
_DEEPEST_IN_ALL: Final = 64
_BASIC: Final = "ybnqiuxtdsog"
_RANGES: Final = {
    "y": (0, 2**8 - 1),
    "n": (-(2**15), 2**15 - 1),
    "q": (0, 2**16 - 1),
    "i": (-(2**31), 2**31 - 1),
    "u": (0, 2**32 - 1),
    "x": (-(2**63), 2**63 - 1),
    "t": (0, 2**64 - 1),
}
_CACHED: Final = 4096  # signatures remembered; those that strangers send count too, so it is bounded


class Type(NamedTuple):
    """One complete type: its signature, the types inside it (a dict entry counts as one: `{`), its nesting."""

    signature: str
    inner: tuple[Type, ...] = ()
    depth: int = 0


class _Wrong(Exception):
    """A mismatch on its way out; every container around it adds its step to the path."""

    def __init__(self, expected: str, value: Any, got: str | None = None) -> None:
        super().__init__(expected)
        self.expected = expected
        self.got = f"{type(value).__name__} {_short(value)}" if got is None else got
        self.steps: list[str] = []


@lru_cache(_CACHED)
def parse(signature: str) -> tuple[Type, ...]:
    """The complete types of a signature. Raises NameInvalid."""
    if len(signature) > _LONGEST:
        raise NameInvalid("signature", signature)
    types: list[Type] = []
    position = 0
    while position < len(signature):
        found, position = _parse_one(signature, position, 0, 0)
        types.append(found)
    return tuple(types)


def single(signature: str) -> bool:
    """Whether it is exactly one complete type, as a variant, a property or an argument must have."""
    try:
        return len(parse(signature)) == 1
    except NameInvalid:
        return False


@lru_cache(_CACHED)
def encoder(signature: str) -> Encode:
    """The function from our values to the library's body; it raises SignatureMismatch. Itself raises NameInvalid."""
    types = parse(signature)
    writers = [_writer(item) for item in types]
    count = len(writers)

    def encode(values: tuple[Any, ...], make_variant: MakeVariant) -> list[Any]:
        if len(values) != count:
            raise SignatureMismatch("arguments", f"{count} of signature {signature!r}", f"{len(values)}")
        position = 0
        body: list[Any] = []
        try:
            for write in writers:
                body.append(write(values[position], make_variant, 0))
                position += 1
        except _Wrong as wrong:
            path = f"argument {position + 1}" + "".join(reversed(wrong.steps))
            raise SignatureMismatch(path, wrong.expected, wrong.got) from None
        return body

    return encode


@lru_cache(_CACHED)
def decoder(signature: str) -> Decode:
    """The function from the library's body to our values; it costs one tuple when nothing needs another form."""
    readers = [_reader(item) for item in parse(signature)]
    if not any(readers):
        return tuple
    plan = [read or _same for read in readers]

    def decode(body: list[Any]) -> tuple[Any, ...]:
        return tuple([read(value) for read, value in zip(plan, body, strict=True)])

    return decode


def _parse_one(text: str, at: int, arrays: int, structs: int) -> tuple[Type, int]:
    code = text[at : at + 1]
    if arrays > _DEEPEST or structs > _DEEPEST:
        raise NameInvalid("signature", text)
    if code and code in _BASIC + "vh":
        return Type(code, (), int(code == "v")), at + 1
    if code == "a" and text[at + 1 : at + 2] == "{":
        if text[at + 2 : at + 3] not in tuple(_BASIC):
            raise NameInvalid("signature", text)
        key, after = _parse_one(text, at + 2, arrays + 1, structs)
        value, after = _parse_one(text, after, arrays + 1, structs + 1)
        if text[after : after + 1] != "}":
            raise NameInvalid("signature", text)
        return Type(text[at : after + 1], (key, value), value.depth + 2), after + 1
    if code == "a":
        item, after = _parse_one(text, at + 1, arrays + 1, structs)
        return Type(text[at:after], (item,), item.depth + 1), after
    if code == "(":
        fields: list[Type] = []
        after = at + 1
        while text[after : after + 1] != ")":
            field, after = _parse_one(text, after, arrays, structs + 1)
            fields.append(field)
        if fields:
            return Type(text[at : after + 1], tuple(fields), 1 + max(field.depth for field in fields)), after + 1
    raise NameInvalid("signature", text)


def _writer(kind: Type) -> _Write:
    code = kind.signature[0]
    if code in _RANGES:
        return _integer_writer(code)
    if kind.signature == "ay":
        return _write_bytes
    if kind.signature.startswith("a{"):
        return _dict_writer(kind)
    if code == "a":
        return _list_writer(kind)
    if code == "(":
        return _struct_writer(kind)
    return _PLAIN_WRITERS[code]


def _integer_writer(code: str) -> _Write:
    low, high = _RANGES[code]
    expected = f"an integer from {low} to {high} ({code})"

    def write(value: Any, _make: MakeVariant, _around: int) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _Wrong(expected, value)
        return value

    return write


def _write_bool(value: Any, _make: MakeVariant, _around: int) -> bool:
    if type(value) is not bool:
        raise _Wrong("a boolean (b)", value)
    return value


def _write_double(value: Any, _make: MakeVariant, _around: int) -> float:
    if type(value) is float:
        return value
    if type(value) is int:
        try:
            exact = float(value)
        except OverflowError:
            exact = 0.0
        if exact == value:
            return exact
    raise _Wrong("a double, or an integer that a double holds exactly (d)", value)


def _write_text(value: Any, _make: MakeVariant, _around: int) -> str:
    if type(value) is not str:
        raise _Wrong("a string (s)", value)
    if "\0" in value:
        raise _Wrong("a string without NUL (s)", value)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise _Wrong("a string without lone surrogates (s)", value) from None
    return value


def _write_path(value: Any, _make: MakeVariant, _around: int) -> str:
    if type(value) is not str or not is_object_path(value):
        raise _Wrong("an object path (o)", value)
    return value


def _write_signature(value: Any, _make: MakeVariant, _around: int) -> str:
    try:
        if type(value) is str:
            parse(value)
            return value
    except NameInvalid:
        pass
    raise _Wrong("a signature (g)", value)


def _write_bytes(value: Any, _make: MakeVariant, _around: int) -> bytes:
    if type(value) is not bytes:
        raise _Wrong("bytes (ay)", value)
    return value


def _write_descriptor(value: Any, _make: MakeVariant, _around: int) -> Any:
    raise _Wrong("a type that is carried here: file descriptors (h) are not", value)


def _write_variant(value: Any, make: MakeVariant, around: int) -> Any:
    if type(value) is not Variant:
        raise _Wrong("a Variant (v)", value)
    signature, inner = value
    try:
        kind, write = _variant_writer(signature)
    except (NameInvalid, TypeError):
        raise _Wrong("a Variant whose signature is one complete type (v)", value) from None
    deeper = around + 1
    if deeper + kind.depth > _DEEPEST_IN_ALL:
        raise _Wrong(f"at most {_DEEPEST_IN_ALL} containers inside each other", value, "more")
    return make(signature, write(inner, make, deeper))


@lru_cache(_CACHED)
def _variant_writer(signature: str) -> tuple[Type, _Write]:
    types = parse(signature)
    if len(types) != 1:
        raise NameInvalid("signature", signature)
    return types[0], _writer(types[0])


_PLAIN_WRITERS: Final[dict[str, _Write]] = {
    "b": _write_bool,
    "d": _write_double,
    "s": _write_text,
    "o": _write_path,
    "g": _write_signature,
    "h": _write_descriptor,
    "v": _write_variant,
}


def _list_writer(kind: Type) -> _Write:
    expected = f"a list ({kind.signature})"
    item = _writer(kind.inner[0])

    def write(value: Any, make: MakeVariant, around: int) -> list[Any]:
        if type(value) is not list:
            raise _Wrong(expected, value)
        done: list[Any] = []
        try:
            for element in value:
                done.append(item(element, make, around + 1))  # noqa: PERF401 - its length is the place of a failure
        except _Wrong as wrong:
            wrong.steps.append(f"[{len(done)}]")
            raise
        return done

    return write


def _dict_writer(kind: Type) -> _Write:
    expected = f"a dict ({kind.signature})"
    write_key, write_value = (_writer(item) for item in kind.inner)

    def write(value: Any, make: MakeVariant, around: int) -> dict[Any, Any]:
        if type(value) is not dict:
            raise _Wrong(expected, value)
        done: dict[Any, Any] = {}
        key: Any = None
        try:
            for key, element in value.items():
                done[write_key(key, make, around + 2)] = write_value(element, make, around + 2)
        except _Wrong as wrong:
            wrong.steps.append(f".{key}" if isinstance(key, str) and key.isidentifier() else f"[{_short(key)}]")
            raise
        return done

    return write


def _struct_writer(kind: Type) -> _Write:
    writers = [_writer(item) for item in kind.inner]
    count = len(writers)
    expected = f"a tuple of {count} ({kind.signature})"

    def write(value: Any, make: MakeVariant, around: int) -> list[Any]:
        if type(value) is not tuple:
            raise _Wrong(expected, value)
        if len(value) != count:
            raise _Wrong(expected, value, f"a tuple of {len(value)}")
        done: list[Any] = []
        try:
            for item in writers:
                done.append(item(value[len(done)], make, around + 1))
        except _Wrong as wrong:
            wrong.steps.append(f"[{len(done)}]")
            raise
        return done

    return write


def _reader(kind: Type) -> _Read | None:
    """How the library's value becomes ours; None when it is ours already."""
    code = kind.signature[0]
    if code == "v":
        return _read_variant
    if kind.signature == "ay":
        return bytes  # dbus-fast without its compiled part gives a bytearray
    inner = [_reader(item) for item in kind.inner]
    if code == "(":
        fields = [read or _same for read in inner]
        return lambda value: tuple([read(element) for read, element in zip(fields, value, strict=True)])
    if not any(inner):
        return None
    if kind.signature.startswith("a{"):
        read_value = inner[-1] or _same  # keys are basic types, which need nothing
        return lambda value: {key: read_value(element) for key, element in value.items()}
    read_item = inner[0] or _same
    return lambda value: [read_item(element) for element in value]


def _read_variant(value: Any) -> Variant:
    signature = value.signature
    read = _variant_reader(signature)
    return Variant(signature, value.value if read is None else read(value.value))


@lru_cache(_CACHED)
def _variant_reader(signature: str) -> _Read | None:
    return _reader(parse(signature)[0])


def _same(value: Any) -> Any:
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
