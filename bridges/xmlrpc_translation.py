"""XML-RPC values to neutral values and back, by schema and by dialect.

What this cannot carry
    * a string with control characters other than TAB, LF and CR: XML has no spelling for it (NOT_REPRESENTABLE)
    * a struct with duplicate members: refused here, passed byte for byte in `relay`
    * members that the interface does not know: ignored, as the legacy decoders ignore them
    * a member with a default whose value does not fit, an unknown tag of a union with one: defaulted, as they do
    * whether an integer was tagged: `<value>7</value>` and `<value><i4>7</i4></value>` mean the same to the legacy side
    * the text of a float: the value is exact, its digits are not kept
    * a dateTime in an untyped value: its text is kept, as a string

A closure is compiled per type on first use: a call then costs one pass over its value.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from bridges import numbers
from bridges.calls import Tagged, Value
from bridges.faults import OURS, Fault, Kind
from bridges.interfaces.model import (
    Basic,
    DictOf,
    ListOf,
    Method,
    Option,
    Parameter,
    Record,
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

    `reason` is in the words of the legacy decoders where recordings show them; `path` names the place, innermost first.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []

    @property
    def place(self) -> str:
        return ".".join(reversed(self.path)) or "value"


class ParameterCount(Mismatch):
    """Too few or too many positional arguments, which the 2012 dialect answers with an error of its own."""

    def __init__(self, expected: int, received: int) -> None:
        super().__init__("Incorrect number of arguments")
        self.expected = expected
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


def _shown(value: Wire) -> str:
    text = shape(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _expected(what: str, value: Wire) -> Mismatch:
    return Mismatch(f"Expected {what}, got '{_shown(value)}'")


class Translation:
    """All methods of all services in one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self._forms: dict[Method, MethodForm] = {}
        # Keyed by identity: types are shared objects, and hashing a record would walk all of it.
        self._readers: dict[int, tuple[Type, Read]] = {}
        self._writers: dict[int, tuple[Type, Write]] = {}

    def of(self, method: Method) -> MethodForm:
        """How that method looks in this dialect."""
        form = self._forms.get(method)
        if form is None:
            form = self._forms[method] = MethodForm(self, method)
        return form

    def reader(self, kind: Type) -> Read:
        """The function from a wire value to the neutral value of that type; it raises Mismatch."""
        known = self._readers.get(id(kind))
        if known is None:
            known = self._readers[id(kind)] = (kind, self._make_reader(kind))
        return known[1]

    def writer(self, kind: Type) -> Write:
        """The function from the neutral value of that type to the wire value."""
        known = self._writers.get(id(kind))
        if known is None:
            known = self._writers[id(kind)] = (kind, self._make_writer(kind))
        return known[1]

    def _make_reader(self, kind: Type) -> Read:
        match kind:
            case Basic(name):
                return _BASIC_READERS[name]
            case Option(item):
                return _read_option(self.reader(item))
            case ListOf(item):
                return _read_list(self.reader(item))
            case TupleOf(items):
                return _read_tuple([self.reader(item) for item in items])
            case DictOf(item):
                return _read_dict(self.reader(item))
            case Record():
                return self._read_record(kind)
            case Union():
                return self._read_union(kind)

    def _make_writer(self, kind: Type) -> Write:
        match kind:
            case Basic(name):
                return _BASIC_WRITERS.get(name, _write_as_is)
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
            case Union():
                return self._write_union(kind, flat=self.dialect.variants_flat)

    def _read_record(self, record: Record) -> Read:
        plan = [(field, self.reader(bare(field.type))) for field in record.fields]
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
            return found

        return read

    def _write_record(self, record: Record) -> Write:
        fields = reversed(record.fields) if self.dialect.reversed_members else record.fields
        plan = [(field.name, self.writer(bare(field.type))) for field in fields]

        def write(value: Value) -> Wire:
            assert isinstance(value, dict)
            return {name: item(value[name]) for name, item in plan if name in value}

        return write

    def _read_union(self, union: Union, *, defaults: bool = True) -> Read:
        folds = self.dialect.case_insensitive_variants
        cases = {
            case.name.lower() if folds else case.name: (
                case.name,
                None if case.argument is None else self._read_argument(case.argument),
            )
            for case in union.constructors
        }

        def read(value: Wire) -> Value:
            tag, rest = _open_union(value)
            key = tag.lower() if folds else tag
            if key not in cases:
                if defaults and union.default is not None:
                    return Tagged(union.default)
                raise Mismatch(f"Unknown tag '{key}'")
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

    def _read_argument(self, kind: Type) -> Callable[[list[Wire]], Value]:
        read = self.reader(kind)
        if self.dialect.variants_flat and isinstance(kind, TupleOf):
            # Exceptions nest one tuple, constructors of several arguments are flat; both occur in the 2012 dialect.
            return lambda rest: read(rest[0] if len(rest) == 1 and isinstance(rest[0], list) else rest)

        def read_one(rest: list[Wire]) -> Value:
            if len(rest) != 1:
                raise Mismatch(f"Expected one argument after the tag, got {len(rest)}")
            return read(rest[0])

        return read_one

    def _write_union(self, union: Union, *, flat: bool) -> Write:
        cases = {
            case.name: None if case.argument is None else self.writer(case.argument) for case in union.constructors
        }
        flattened = {case.name for case in union.constructors if flat and isinstance(case.argument, TupleOf)}

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

    def error_writer(self, errors: Union) -> Write:
        """As `writer`, but an exception's arguments are one tuple in every dialect."""
        return self._write_union(errors, flat=False)


class _Place(NamedTuple):
    """One parameter: how it is read and written where it travels."""

    parameter: Parameter
    read: Read
    write: Write


class MethodForm:
    """One method in one dialect: its arguments, its result and its errors."""

    def __init__(self, translation: Translation, method: Method) -> None:
        self._method = method
        self._exact = translation.dialect.exact_parameter_count
        named = translation.dialect.named_arguments
        places = [(p, bare(p.type) if named and p.named else p.type) for p in method.parameters]
        self._places = [_Place(p, translation.reader(kind), translation.writer(kind)) for p, kind in places]
        self._named = [place for place in self._places if named and place.parameter.named]
        self._positional = [place for place in self._places if not (named and place.parameter.named)]
        self._named_in_order = self._named[::-1] if translation.dialect.reversed_members else self._named
        self.read_result = translation.reader(method.result)
        self.write_result = translation.writer(method.result)
        self._read_error = translation.error_reader(method.errors)
        self._write_error = translation.error_writer(method.errors)

    def read_arguments(self, params: list[Wire]) -> dict[str, Value]:
        """Arguments by parameter name; an absent option and a unit have no entry. Raises Mismatch."""
        arguments: dict[str, Value] = {}
        if not self._named:
            self._read_positional(params, self._positional, arguments)
        elif params and isinstance(params[0], dict):
            self._read_named(params[0], arguments)
            self._read_positional(params[1:], self._positional, arguments)
        elif self._method.positional and len(params) == len(self._places):
            self._read_positional(params, self._places, arguments)
        else:
            raise Mismatch("Marshalling error: Expecting dict as first argument when named parameters exist")
        return arguments

    def _read_named(self, members: dict[str, Wire], arguments: dict[str, Value]) -> None:
        for place in self._named:
            name = place.parameter.name
            if name in members:
                _read_into(arguments, place, members[name])
            elif not isinstance(place.parameter.type, Option):
                raise Mismatch(f"Expecting named argument '{name}'")

    def _read_positional(self, params: list[Wire], places: list[_Place], arguments: dict[str, Value]) -> None:
        if len(params) < len(places) or (len(params) > len(places) and self._exact):
            raise ParameterCount(len(places), len(params))
        for place, value in zip(places, params, strict=False):
            _read_into(arguments, place, value)

    def write_arguments(self, arguments: dict[str, Value]) -> list[Wire]:
        """The params of a methodCall, from arguments by parameter name."""
        params: list[Wire] = []
        if self._named:
            params.append(
                {
                    p.name: write(arguments.get(p.name))
                    for p, _, write in self._named_in_order
                    if p.name in arguments or not isinstance(p.type, Option)
                }
            )
        params.extend(write(arguments.get(p.name)) for p, _, write in self._positional)
        return params

    def read_failure(self, description: Wire) -> Fault:
        """The fault that an ErrorDescription stands for; what is not written down keeps its code and arguments."""
        try:
            error = self._read_error(description)
        except Mismatch:
            return _undeclared(description)
        assert isinstance(error, Tagged)
        return Fault(Kind.DECLARED, _error_text(error), code=error.tag, argument=error.argument)

    def write_failure(self, fault: Fault) -> Wire:
        """The ErrorDescription of a fault."""
        if fault.kind is Kind.DECLARED and fault.code in self._method.errors.by_name:
            return self._write_error(Tagged(fault.code, fault.argument))
        if fault.kind is Kind.DECLARED:
            return _any_wire(Tagged(fault.code, fault.argument))
        if fault.kind is Kind.UNDECLARED:
            rest = fault.argument if isinstance(fault.argument, list) else []
            return [fault.code, *map(_any_wire, rest)] if rest else fault.code
        return internal_error(fault)


def internal_error(fault: Fault) -> Wire:
    """How our own faults look to rpclib clients: the one error that every interface declares."""
    return ["Internal_error", fault.sentence if fault.kind in OURS else fault.text]


def marshal_error(mismatch: Mismatch, method: str, dialect: Dialect) -> Wire:
    """What the legacy daemon answers to arguments that do not fit."""
    if isinstance(mismatch, ParameterCount) and dialect.exact_parameter_count:
        return ["Message_param_count_mismatch", [method, str(mismatch.expected), str(mismatch.received)]]
    return ["Internal_error", f"Idl.MarshalError({_ocaml_text(mismatch.reason)})"]


def _ocaml_text(text: str) -> str:
    """A string as OCaml prints it inside an exception: quoted, with escapes for all but printable ASCII."""
    return '"' + "".join(_OCAML_ESCAPES.get(byte) or chr(byte) for byte in text.encode("utf-8", "replace")) + '"'


_OCAML_ESCAPES: Final = {byte: f"\\{byte:03}" for byte in (*range(32), *range(127, 256))} | {
    ord(plain): "\\" + escaped for plain, escaped in zip('"\\\n\t\r\b', '"\\ntrb', strict=True)
}


def _read_into(arguments: dict[str, Value], place: _Place, value: Wire) -> None:
    try:
        found = place.read(value)
    except Mismatch as mismatch:
        mismatch.path.append(place.parameter.name)
        raise
    if found is not None:
        arguments[place.parameter.name] = found


def _spelling(record: Record) -> dict[str, str]:
    """Declared member names by themselves and by their lower case."""
    return {f.name.lower(): f.name for f in record.fields} | {f.name: f.name for f in record.fields}


def _open_union(value: Wire) -> tuple[str, list[Wire]]:
    if isinstance(value, str):
        return value, []
    if isinstance(value, list) and value and isinstance(value[0], str):
        return value[0], value[1:]
    raise _expected("a tag", value)


def _undeclared(description: Wire) -> Fault:
    try:
        code, rest = _open_union(description)
    except Mismatch:
        code, rest = "", [description]
    text = f"{code}: {', '.join(map(_shown, rest))}" if rest else code
    return Fault(Kind.UNDECLARED, text, code=code, argument=[_any(item) for item in rest] or None)


def _error_text(error: Tagged) -> str:
    match error.argument:
        case None:
            return error.tag
        case tuple() | list():
            return f"{error.tag}: {', '.join(str(item) for item in error.argument)}"
        case argument:
            return f"{error.tag}: {argument!s}"


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


def _any(value: Wire) -> Value:
    """An untyped value: kept as the wire said."""
    match value:
        case DateTime():
            return value.text
        case list():
            return [_any(item) for item in value]
        case dict():
            return {name: _any(item) for name, item in value.items()}
        case _:
            return value


def _any_wire(value: Value) -> Wire:
    """An untyped value: an integer with its tag, since without one it would be read as a string."""
    match value:
        case Tagged():
            return [value.tag, _any_wire(value.argument)] if value.argument is not None else value.tag
        case list() | tuple():
            return [_any_wire(item) for item in value]
        case dict():
            return {name: _any_wire(item) for name, item in value.items()}
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
    "any": _any,
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


def _read_dict(read: Read) -> Read:
    def read_dict(value: Wire) -> Value:
        if not isinstance(value, dict):
            raise _expected("a dictionary", value)
        return {name: read(item) for name, item in value.items()}

    return read_dict


def _write_as_is(value: Value) -> Wire:
    assert value is None or isinstance(value, (bool, str, float))
    return value


def _write_float(value: Value) -> Wire:
    assert isinstance(value, (int, float))
    return float(value)


_BASIC_WRITERS: Final[dict[str, Write]] = {
    "int": str,
    "int32": str,
    "int64": str,
    "float": _write_float,
    "any": _any_wire,
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
