"""Values of the legacy protocols to neutral values and back, by schema and by dialect; XML-RPC and JSON-RPC alike.

What this cannot carry
    * a string with control characters other than TAB, LF and CR: XML has no spelling for it (NOT_REPRESENTABLE)
    * a struct with duplicate members: refused by the codec, passed byte for byte in `relay`
    * a member with a default whose value does not fit, an unknown tag of a union with one: defaulted, as they do
    * whether an integer was tagged: `<value>7</value>` and `<value><i4>7</i4></value>` mean the same to the legacy side
    * the text of a float: the value is exact, its digits are not kept
    * a dateTime or base64 in an untyped value of JSON: its text is kept, as a string

Members of a record that the interface does not know are kept as untyped values: a newer daemon's record passes through.
A closure is compiled per type on first use: a call then costs one pass over its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from bridges import numbers
from bridges.calls import Tagged, Value
from bridges.interfaces.model import (
    STRING,
    UNKNOWN_RECORD,
    Basic,
    DictOf,
    Field,
    ListOf,
    Option,
    PerType,
    Record,
    RecordOf,
    TupleOf,
    Type,
    Union,
    bare,
)
from xmlrpc_gateway.dialects import Dialect
from xmlrpc_gateway.xmlrpc_codec import DateTime
from xmlrpc_gateway.xmlrpc_codec import Value as Wire

Read = Callable[[Wire], Value]
Write = Callable[[Value], Wire]

_SHOWN: Final = 200  # characters of a value that an error repeats


class Mismatch(Exception):
    """A wire value that does not fit its type.

    `reason` is in the words of the legacy decoders where recordings show them, `expected` is the type that `value` did
    not fit; `path` names the place, innermost first.
    """

    def __init__(self, reason: str, *, expected: str = "", value: Wire = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.expected = expected
        self.value = value
        self.path: list[str] = []
        self.is_secret = False

    @property
    def for_the_log(self) -> str:
        """Place and reason; without the reason, which shows the value, where that is a secret."""
        return f"{self.place} is a secret that does not fit" if self.is_secret else f"{self.place}: {self.reason}"

    @property
    def place(self) -> str:
        return ".".join(reversed(self.path)) or "value"


class UnknownTag(Mismatch):
    """A constructor or enum value that is not written down."""

    def __init__(self, tag: str, shown: str) -> None:
        super().__init__(f"Unknown tag '{shown}'", expected="a tag")
        self.tag = tag


class ParameterCount(Mismatch):
    """Too few or too many positional arguments, for which some dialects have an error of their own."""

    def __init__(self, wanted: int, received: int) -> None:
        super().__init__("Incorrect number of arguments")
        self.wanted = wanted
        self.received = received


def shape(value: Wire) -> str:
    """A value as the legacy decoders print it in their errors: S(text), I(3), B(true), N, [F(1);F(2)], {name:N}."""
    match value:
        case None:
            return "N"
        case bool():
            return f"B({str(value).lower()})"
        case int():
            return f"I({value})"
        case float():
            return f"F({value:g})"
        case str():
            return f"S({value})"
        case bytes():
            return f"B64({value.decode('utf-8', 'replace')})"
        case DateTime(text):
            return f"D({text})"
        case list():
            return f"[{';'.join(shape(item) for item in value)}]"
        case _:
            return f"{{{';'.join(f'{name}:{shape(item)}' for name, item in value.items())}}}"


def _decimal(number: int) -> Wire:
    return str(number)


def _number(number: int) -> Wire:
    return number


def shown(value: Wire) -> str:
    """As `shape`, but short enough for an error's text."""
    text = shape(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _expected(what: str, value: Wire) -> Mismatch:
    return Mismatch(f"Expected {what}, got '{shown(value)}'", expected=what, value=value)


class Values:
    """The values of all types in one dialect. `integers_as_text`: XML writes them without a tag; else as numbers."""

    def __init__(self, dialect: Dialect, *, integers_as_text: bool) -> None:
        self.dialect = dialect
        self.integer: Callable[[int], Wire] = _decimal if integers_as_text else _number
        # From a wire value to the neutral value of a type (it raises Mismatch), and back.
        self.reader: PerType[Read] = PerType(self._make_reader)
        self.writer: PerType[Write] = PerType(self._make_writer)

    def _make_reader(self, kind: Type) -> Read:
        match kind:
            case Basic("unit") if not self.dialect.nil_unit:
                return _read_void
            case Basic(name):
                return _BASIC_READERS[name]
            case Option(item):
                return _read_option(self.reader(item))
            case ListOf(item):
                return _read_list(self.reader(item))
            case TupleOf(items):
                return _read_tuple([self.reader(item) for item in items])
            case DictOf(item, key):
                return _read_dict(self.reader(item), None if key == STRING else self.reader(key))
            case Record():
                return self._read_record(kind)
            case RecordOf():
                return self.reader(UNKNOWN_RECORD)  # inside a record, _read_record knows better
            case Union():
                return self._read_union(kind)

    def _make_writer(self, kind: Type) -> Write:
        match kind:
            case Basic(name):
                return self._write_basic(name)
            case Option(item):
                write = self.writer(item)
                return lambda value: [] if value is None else [write(value)]
            case ListOf(item):
                return _write_list(self.writer(item))
            case TupleOf(items):
                return _write_tuple([self.writer(item) for item in items])
            case DictOf(item):
                return _write_dict(self.writer(item))
            case Record():
                return self._write_record(kind)
            case RecordOf():
                return self.writer(UNKNOWN_RECORD)
            case Union():
                return self._write_union(kind)

    def _write_basic(self, name: str) -> Write:
        if name == "int32" and self.dialect.tags_int32:
            return _write_as_is
        if name in numbers.RANGES:
            return self.integer  # type: ignore[return-value]  # the interface says that it is an int
        if name == "unit" and not self.dialect.nil_unit:
            return lambda _value: ""
        return _BASIC_WRITERS.get(name, _write_as_is)

    def _read_record(self, record: Record) -> Read:
        plan = [(field, self.reader(bare(field.type))) for field in record.fields if not _names_class(field)]
        late = [(field.name, field.type) for field in record.fields if isinstance(field.type, RecordOf)]
        names = {field.name for field in record.fields}
        spelling = _spelling(record) if self.dialect.case_insensitive_members else {}

        def read(value: Wire) -> Value:
            if not isinstance(value, dict):
                raise _expected("a dictionary", value)
            if spelling and not value.keys() <= spelling.keys():
                value = {spelling.get(name, spelling.get(name.lower(), name)): item for name, item in value.items()}
            found: dict[str, Value] = {}
            for field, item in plan:
                if field.name not in value:
                    if field.required:
                        raise Mismatch(f"No value found for key: '{field.name}' when unmarshalling '{record.name}'")
                    continue
                try:
                    found[field.name] = item(value[field.name])
                except Mismatch as mismatch:
                    if not field.defaults:
                        mismatch.path.append(field.name)
                        raise
            for name, kind in late:
                if name in value:
                    found[name] = self.reader(kind.beside(found))(value[name])
            if len(found) < len(value):
                found.update({name: untyped_value(item) for name, item in value.items() if name not in names})
            return found

        return read

    def _write_record(self, record: Record) -> Write:
        fields = reversed(record.fields) if self.dialect.reversed_members else record.fields
        plan = [(field.name, self.writer(bare(field.type))) for field in fields if not _names_class(field)]
        late = [(field.name, field.type) for field in record.fields if isinstance(field.type, RecordOf)]
        names = {field.name for field in record.fields}

        def write(value: Value) -> Wire:
            assert isinstance(value, dict)
            written = {name: item(value[name]) for name, item in plan if name in value}
            for name, kind in late:
                if name in value:
                    written[name] = self.writer(kind.beside(value))(value[name])
            if len(written) < len(value):
                written.update({name: untyped(item) for name, item in value.items() if name not in names})
            return written

        return write

    def _read_union(self, union: Union, *, defaults: bool = True) -> Read:
        folds = self.dialect.case_insensitive_variants
        cases = {
            case.name.lower() if folds else case.name: (
                case.name,
                None if case.argument is None else self._read_argument(case.argument, flat=case.flat),
            )
            for case in union.constructors
        }

        def read(value: Wire) -> Value:
            tag, rest = open_union(value)
            key = tag.lower() if folds else tag
            if key not in cases:
                if defaults and union.default is not None:
                    return Tagged(union.default)
                raise UnknownTag(tag, key)
            name, argument = cases[key]
            if argument is None:
                if rest:
                    raise Mismatch(f"Tag '{key}' with the wrong number of arguments")
                return Tagged(name)
            try:
                return Tagged(name, argument(rest or [None]))
            except Mismatch as mismatch:
                mismatch.path.append(name)
                raise

        return read

    def _read_argument(self, kind: Type, *, flat: bool) -> Callable[[list[Wire]], Value]:
        read = self.reader(kind)
        if flat:
            return read

        def read_one(rest: list[Wire]) -> Value:
            if len(rest) != 1:
                raise Mismatch(f"Expected one argument after the tag, got {len(rest)}")
            return read(rest[0])

        return read_one

    def _write_union(self, union: Union) -> Write:
        cases = {
            case.name: None if case.argument is None else self.writer(case.argument) for case in union.constructors
        }
        flattened = {case.name for case in union.constructors if case.flat}

        def write(value: Value) -> Wire:
            assert isinstance(value, Tagged)
            argument = cases[value.tag]
            if argument is None:
                return value.tag
            carried = argument(value.argument)
            if value.tag in flattened:
                assert isinstance(carried, list)
                return [value.tag, *carried]
            # A bare tag carries nil, so a nil argument leaves nothing but its tag.
            return value.tag if carried is None else [value.tag, carried]

        return write

    def error_reader(self, errors: Union) -> Read:
        """As `reader`, but an unknown tag raises: an error that is not written down keeps its name."""
        return self._read_union(errors, defaults=False)


def _names_class(field: Field) -> bool:
    """Whether another member says which record it is: such a member is read and written after the others."""
    return isinstance(field.type, RecordOf)


def _spelling(record: Record) -> dict[str, str]:
    """Declared member names by themselves and by their lower case."""
    return {f.name.lower(): f.name for f in record.fields} | {f.name: f.name for f in record.fields}


def open_union(value: Wire) -> tuple[str, list[Wire]]:
    if isinstance(value, str):
        return value, []
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0], value[1:]
    raise _expected("a tag", value)


def _read_string(value: Wire) -> Value:
    if type(value) is str:
        return value
    raise _expected("string", value)


def _read_bool(value: Wire) -> Value:
    if type(value) is bool:
        return value
    raise _expected("bool", value)


def _read_unit(value: Wire) -> Value:
    if value is None:
        return None
    raise _expected("unit", value)


def _read_void(value: Wire) -> Value:
    return None if value == "" else _read_unit(value)


def _read_datetime(value: Wire) -> Value:
    if isinstance(value, DateTime):
        return value.text
    if type(value) is str:
        return value
    raise _expected("dateTime", value)


def _read_integer(kind: str) -> Read:
    low, high = numbers.RANGES[kind]

    def read(value: Wire) -> Value:
        if type(value) is str:
            number = numbers.integer(value, kind)
            if number is not None:
                return number
        elif type(value) is int and low <= value <= high:
            return value
        raise _expected(kind, value)

    return read


def _read_float(value: Wire) -> Value:
    if type(value) is float:
        return value
    if type(value) is int:
        return float(value)
    if type(value) is str and (number := numbers.floating(value)) is not None:
        return number
    raise _expected("float", value)


def untyped_value(value: Wire) -> Value:
    """An untyped value: kept as the wire said."""
    match value:
        case DateTime():
            return value.text
        case list():
            return [untyped_value(item) for item in value]
        case dict():
            return {name: untyped_value(item) for name, item in value.items()}
        case _:
            return value


def untyped(value: Value) -> Wire:
    """An untyped value: an integer with its tag, since without one it would be read as a string."""
    match value:
        case Tagged():
            return [value.tag, untyped(value.argument)] if value.argument is not None else value.tag
        case list() | tuple():
            return [untyped(item) for item in value]
        case dict():
            return {name: untyped(item) for name, item in value.items()}
        case _:
            return value


_BASIC_READERS: Final[dict[str, Read]] = {
    "unit": _read_unit,
    "bool": _read_bool,
    "int": _read_integer("int"),
    "int32": _read_integer("int32"),
    "int64": _read_integer("int64"),
    "float": _read_float,
    "string": _read_string,
    "char": _read_string,
    "datetime": _read_datetime,
    "any": untyped_value,
}


def _read_option(read: Read) -> Read:
    def read_option(value: Wire) -> Value:
        if isinstance(value, list) and len(value) <= 1:
            return read(value[0]) if value else None
        raise _expected("an option ([] or [x])", value)

    return read_option


def _read_list(read: Read) -> Read:
    def read_list(value: Wire) -> Value:
        if not isinstance(value, list):
            raise _expected("a list", value)
        items: list[Value] = []
        try:
            for item in value:
                items.append(read(item))  # noqa: PERF401 -- its length is the place of a failure
        except Mismatch as mismatch:
            mismatch.path.append(f"[{len(items)}]")
            raise
        return items

    return read_list


def _read_tuple(readers: list[Read]) -> Read:
    def read_tuple(value: Wire) -> Value:
        if not isinstance(value, list) or len(value) != len(readers):
            raise _expected(f"a tuple of {len(readers)}", value)
        return tuple([read(item) for read, item in zip(readers, value, strict=True)])

    return read_tuple


def _read_dict(read: Read, read_key: Read | None) -> Read:
    def read_dict(value: Wire) -> Value:
        if not isinstance(value, dict):
            raise _expected("a dictionary", value)
        found: dict[str, Value] = {}
        name = ""
        try:
            for name, item in value.items():
                key = name if read_key is None else _read_key(read_key, name)
                if key in found:
                    raise Mismatch(f"key '{key}' occurs twice")
                found[key] = read(item)
        except Mismatch as mismatch:
            mismatch.path.append(name)
            raise
        return found

    return read_dict


def _read_key(read: Read, name: str) -> str:
    key = read(name)
    return key.tag if isinstance(key, Tagged) else str(key)


def _write_as_is(value: Value) -> Wire:
    assert value is None or isinstance(value, (int, str, float))
    return value


def _write_float(value: Value) -> Wire:
    assert isinstance(value, (int, float))
    return float(value)


def _write_datetime(value: Value) -> Wire:
    assert isinstance(value, str)
    return DateTime(value)


_BASIC_WRITERS: Final[dict[str, Write]] = {
    "float": _write_float,
    "datetime": _write_datetime,
    "any": untyped,
}


def _write_list(write: Write) -> Write:
    def write_list(value: Value) -> Wire:
        assert isinstance(value, list)
        return [write(item) for item in value]

    return write_list


def _write_tuple(writers: list[Write]) -> Write:
    def write_tuple(value: Value) -> Wire:
        assert isinstance(value, tuple)
        return [write(item) for write, item in zip(writers, value, strict=True)]

    return write_tuple


def _write_dict(write: Write) -> Write:
    def write_dict(value: Value) -> Wire:
        assert isinstance(value, dict)
        return {name: write(item) for name, item in value.items()}

    return write_dict
