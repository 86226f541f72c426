"""D-Bus bodies to neutral values and back, and the interface data as D-Bus interfaces.

What this cannot carry
    * a string with NUL or a lone surrogate (NOT_REPRESENTABLE, refused before it is marshalled)
    * a record member, constructor or method that is not written down: refused by name, never guessed
    * a 63-bit legacy `int` beyond its range, which `x` could hold: refused towards the legacy side
    * whether nothing was said or an absent option was said: both are an absent key
    * in an untyped value: which integer type a daemon chose, and whether it sent a struct or an array

Shapes (the interface data decides, never the value):
    bool b · int32 i · int, int64 x · float d · string, char s · list aT · map a{sT} · tuple (...) · record a{sv}
    union without any argument s, else (sv) with "" for a constructor that carries nothing
    option outside a record aT of 0 or 1 · any v, in it nil is the empty g, an array av, a map a{sv}
    a tuple result is several out arguments · unit is no argument · named options are one last argument `options` a{sv}

Errors: name `org.xen.xcp.SERVICE.Error.CODE`, body text and then the constructor's arguments. What is not written down
has its arguments as variants; a code that can be no name goes to `...Error.Other`, with the code behind the text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from bridges import numbers
from bridges.calls import Tagged, Value
from bridges.faults import FROM_DBUS, OURS, Fault, Kind
from bridges.interfaces.model import (
    Basic,
    DictOf,
    Effect,
    ListOf,
    Method,
    Option,
    Parameter,
    Record,
    Service,
    TupleOf,
    Type,
    Union,
    bare,
)
from dbus_side import introspection, names
from dbus_side.errors import BusRefused, SignatureMismatch
from dbus_side.signatures import Variant

# A D-Bus value is what the signature beside it says, in the bus room's own form, checked there before it is marshalled.
Wire = Any
Convert = Callable[[Any], Any]

LEGACY_NAME: Final = "org.xen.xcp.LegacyName"
EFFECT: Final = "org.xen.xcp.Effect"
_BASIC: Final = {
    "bool": "b",
    "int": "x",
    "int32": "i",
    "int64": "x",
    "float": "d",
    "string": "s",
    "char": "s",
    "any": "v",
}
_NOTHING: Final = Variant("s", "")
_NIL: Final = Variant("g", "")  # an untyped nil: the empty signature occurs as no other untyped value


class Mismatch(Exception):
    """A D-Bus value that does not fit its type, with the path to it."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path: list[str] = []

    @property
    def sentence(self) -> str:
        return f"{'.'.join(reversed(self.path))}: {self.reason}" if self.path else self.reason


def signature(kind: Type) -> str:
    """The D-Bus signature of a type; unit has none."""
    match kind:
        case Basic(name):
            return _BASIC.get(name, "")
        case Option(item) | ListOf(item):
            return "a" + signature(item)
        case TupleOf(items):
            return "(" + "".join(signature(item) for item in items) + ")"
        case DictOf(item):
            return "a{s" + signature(item) + "}"
        case Record():
            return "a{sv}"
        case Union():
            return "(sv)" if kind.carries_arguments else "s"


class Translation:
    """All methods of one service on the bus."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._forms: dict[Method, MethodForm] = {}
        self._writers: dict[int, tuple[Type, Convert]] = {}
        self._readers: dict[int, tuple[Type, Convert]] = {}

    def of(self, method: Method) -> MethodForm:
        """How that method looks on the bus."""
        form = self._forms.get(method)
        if form is None:
            form = self._forms[method] = MethodForm(self, method)
        return form

    def writer(self, kind: Type) -> Convert:
        """The function from a neutral value to its D-Bus form."""
        known = self._writers.get(id(kind))
        if known is None:
            known = self._writers[id(kind)] = (kind, self._make_writer(kind))
        return known[1]

    def reader(self, kind: Type) -> Convert:
        """The function from a D-Bus value (its signature already checked) to neutral; it raises Mismatch."""
        known = self._readers.get(id(kind))
        if known is None:
            known = self._readers[id(kind)] = (kind, self._make_reader(kind))
        return known[1]

    def _make_writer(self, kind: Type) -> Convert:
        match kind:
            case Basic(name):
                return _any_to_bus if name == "any" else _as_is
            case Option(item):
                write = self.writer(item)
                return lambda value: [] if value is None else [write(value)]
            case ListOf(item):
                write = self.writer(item)
                return _as_is if write is _as_is else lambda value: [write(element) for element in value]
            case TupleOf(items):
                writers = [self.writer(item) for item in items]
                return lambda value: tuple([w(element) for w, element in zip(writers, value, strict=True)])
            case DictOf(item):
                write = self.writer(item)
                return _as_is if write is _as_is else lambda value: {k: write(v) for k, v in value.items()}
            case Record():
                return self._write_record(kind)
            case Union():
                return self._write_union(kind) if kind.carries_arguments else lambda value: value.tag

    def _write_record(self, record: Record) -> Convert:
        plan = [(f.name, signature(bare(f.type)), self.writer(bare(f.type))) for f in record.fields]

        def write(value: dict[str, Value]) -> Wire:
            return {name: Variant(sig, item(value[name])) for name, sig, item in plan if name in value}

        return write

    def _write_union(self, union: Union) -> Convert:
        cases = {
            c.name: None if c.argument is None else (signature(c.argument), self.writer(c.argument))
            for c in union.constructors
        }

        def write(value: Tagged) -> Wire:
            case = cases[value.tag]
            return (value.tag, _NOTHING if case is None else Variant(case[0], case[1](value.argument)))

        return write

    def _make_reader(self, kind: Type) -> Convert:
        match kind:
            case Basic(name):
                return _any_from_bus if name == "any" else _read_native if name == "int" else _as_is
            case Option(item):
                return _read_option(self.reader(item))
            case ListOf(item):
                read = self.reader(item)
                return _as_is if read is _as_is else lambda value: [read(element) for element in value]
            case TupleOf(items):
                readers = [self.reader(item) for item in items]
                return lambda value: tuple([r(element) for r, element in zip(readers, value, strict=True)])
            case DictOf(item):
                read = self.reader(item)
                return _as_is if read is _as_is else lambda value: {k: read(v) for k, v in value.items()}
            case Record():
                return self._read_record(kind)
            case Union():
                return self._read_union(kind)

    def _read_record(self, record: Record) -> Convert:
        plan = {f.name: (signature(bare(f.type)), self.reader(bare(f.type))) for f in record.fields}
        required = [f.name for f in record.fields if f.required]

        def read(value: dict[str, Variant]) -> Value:
            found = _read_members(value, plan)
            for name in required:
                if name not in found:
                    raise Mismatch(f"the record needs a member {name!r}")
            return found

        return read

    def _read_union(self, union: Union) -> Convert:
        cases = {
            c.name: None if c.argument is None else (signature(c.argument), self.reader(c.argument))
            for c in union.constructors
        }

        def case_of(tag: str) -> tuple[str, Convert] | None:
            if tag not in cases:
                raise Mismatch(f"unknown constructor {tag!r}; known: {', '.join(cases)}")
            return cases[tag]

        def read_tag(value: str) -> Value:
            case_of(value)
            return Tagged(value)

        def read(value: tuple[str, Variant]) -> Value:
            tag, carried = value
            case = case_of(tag)
            if case is None:
                if carried != _NOTHING:
                    raise Mismatch(f"constructor {tag!r} carries nothing: its variant must be an empty string")
                return Tagged(tag)
            return Tagged(tag, _read_variant(tag, carried, case))

        return read if union.carries_arguments else read_tag


class MethodForm:
    """One method on the bus: member, signatures, conversion of arguments, result and errors."""

    def __init__(self, translation: Translation, method: Method) -> None:
        self._method = method
        self._translation = translation
        self.path = names.object_path(method.service, method.object)
        self.interface = names.interface_name(method.service, method.object)
        self.member = names.member_name(method.member)
        parameters = [p for p in method.parameters if signature(p.type)]
        self._plain = [p for p in parameters if not _is_optional(p)]
        self._optional = [p for p in parameters if _is_optional(p)]
        self._plain_writes = [(p.name, translation.writer(p.type)) for p in self._plain]
        self._plain_reads = [(p.name, translation.reader(p.type)) for p in self._plain]
        self._options = {
            p.name: (signature(bare(p.type)), translation.reader(bare(p.type)), translation.writer(bare(p.type)))
            for p in self._optional
        }
        self._option_reads = {name: (sig, read) for name, (sig, read, _) in self._options.items()}
        self.input_signature = "".join(signature(p.type) for p in self._plain) + ("a{sv}" if self._optional else "")
        self._outputs = method.result.items if isinstance(method.result, TupleOf) else (method.result,)
        self.output_signature = "".join(signature(item) for item in self._outputs)
        self._write_result = translation.writer(method.result)
        self._read_result = translation.reader(method.result)

    def describe(self) -> introspection.Method:
        """The method for introspection; the legacy wire name and the effect are annotations."""
        inputs = [introspection.Argument(_element(p.name), signature(p.type)) for p in self._plain]
        if self._optional:
            inputs.append(introspection.Argument("options", "a{sv}"))
        outputs = [s for item in self._outputs if (s := signature(item))]
        named = ["result"] if len(outputs) == 1 else [f"result{number}" for number in range(len(outputs))]
        return introspection.Method(
            name=self.member,
            inputs=tuple(inputs),
            outputs=tuple(introspection.Argument(name, sig) for name, sig in zip(named, outputs, strict=True)),
            annotations=((LEGACY_NAME, self._method.name), (EFFECT, str(self._method.effect))),
        )

    def write_arguments(self, arguments: dict[str, Value]) -> tuple[Wire, ...]:
        """The body of the call, from arguments by parameter name."""
        body = [write(arguments.get(name)) for name, write in self._plain_writes]
        if self._options:
            body.append(
                {
                    name: Variant(sig, write(arguments[name]))
                    for name, (sig, _, write) in self._options.items()
                    if name in arguments
                }
            )
        return tuple(body)

    def read_arguments(self, body: tuple[Wire, ...]) -> dict[str, Value]:
        """Arguments by parameter name, from a body of `input_signature`.

        Raises Fault INVALID_ARGUMENT naming the field.
        """
        arguments: dict[str, Value] = {}
        try:
            for (name, read), value in zip(self._plain_reads, body, strict=False):
                try:
                    found = read(value)
                except Mismatch as mismatch:
                    mismatch.path.append(name)
                    raise
                if found is not None:
                    arguments[name] = found
            if self._options:
                arguments.update(_read_members(body[-1], self._option_reads))
        except Mismatch as mismatch:
            raise Fault(Kind.INVALID_ARGUMENT, f"{self._method.name}: {mismatch.sentence}") from None
        return arguments

    def write_result(self, value: Value) -> tuple[Wire, ...]:
        """The body of the reply."""
        if not self.output_signature:
            return ()
        result = self._write_result(value)
        return result if isinstance(self._method.result, TupleOf) else (result,)

    def read_result(self, reply_signature: str, body: tuple[Wire, ...]) -> Value:
        """The neutral result. Raises Fault NOT_REPRESENTABLE when the daemon answered something else than declared."""
        if reply_signature != self.output_signature:
            raise Fault(
                Kind.NOT_REPRESENTABLE,
                f"{self._method.name}: the bus daemon answered with signature {reply_signature!r}, "
                f"declared is {self.output_signature!r}",
            )
        if not body:
            return None
        try:
            return self._read_result(body if isinstance(self._method.result, TupleOf) else body[0])  # type: ignore[no-any-return]
        except Mismatch as mismatch:
            raise Fault(Kind.NOT_REPRESENTABLE, f"{self._method.name}: result: {mismatch.sentence}") from None

    def write_fault(self, fault: Fault) -> BusRefused:
        """The error reply of a fault: name, text message, then the arguments."""
        declared = self._translation.service.errors
        if fault.kind is Kind.DECLARED and fault.code in declared:
            sig, arguments = self._write_carried(declared[fault.code].argument, fault.argument)
            return BusRefused(names.error_name(self._method.service, fault.code), "s" + sig, (fault.text, *arguments))
        if fault.kind not in (Kind.DECLARED, Kind.UNDECLARED):
            return own_error(fault)
        carried = fault.argument if isinstance(fault.argument, list) else []
        variants = [_any_to_bus(item) for item in carried]
        if fault.code in declared or not names.is_error_name_element(fault.code):
            body: tuple[Wire, ...] = (fault.text, fault.code, *variants)
            return BusRefused(names.error_prefix(self._method.service) + OTHER, "ss" + "v" * len(variants), body)
        name = names.error_name(self._method.service, fault.code)
        return BusRefused(name, "s" + "v" * len(variants), (fault.text, *variants))

    def _write_carried(self, kind: Type | None, argument: Value) -> tuple[str, tuple[Wire, ...]]:
        if kind is None:
            return "", ()
        written = self._translation.writer(kind)(argument)
        return (_carried_signature(kind), written) if isinstance(kind, TupleOf) else (signature(kind), (written,))

    def read_fault(self, refusal: BusRefused) -> Fault:
        """The fault that an error reply stands for."""
        text = refusal.body[0] if refusal.signature.startswith("s") else refusal.name
        prefix = names.error_prefix(self._method.service)
        if refusal.name.startswith(prefix):
            return self._read_service_error(refusal, refusal.name.removeprefix(prefix), text)
        if refusal.name.startswith(OUR_ERRORS):
            kind = refusal.name.removeprefix(OUR_ERRORS)
            return Fault(Kind(kind) if kind in _OURS else Kind.INTERNAL, text)
        found = FROM_DBUS.get(refusal.name)
        if found is Kind.IN_DOUBT and self._method.effect is Effect.READ:
            found = Kind.UNAVAILABLE
        if found is not None:
            return Fault(found, text)
        return _undeclared(refusal.name, text, refusal.body)

    def _read_service_error(self, refusal: BusRefused, code: str, text: str) -> Fault:
        if code == OTHER and refusal.signature.startswith("ss"):
            return _undeclared(refusal.body[1], text, refusal.body[2:])
        case = self._translation.service.errors.get(code)
        if case is not None and refusal.signature == "s" + _carried_signature(case.argument):
            if case.argument is None:
                return Fault(Kind.DECLARED, text, code=code)
            carried = refusal.body[1:] if isinstance(case.argument, TupleOf) else refusal.body[1]
            try:
                return Fault(Kind.DECLARED, text, code=code, argument=self._translation.reader(case.argument)(carried))
            except Mismatch as mismatch:
                text = f"{text} ({mismatch.sentence})"
        return _undeclared(code, text, refusal.body[1:])


OTHER: Final = "Other"
OUR_ERRORS: Final = "org.xen.xcp.Error."
_OURS: Final = frozenset(str(kind) for kind in OURS)


def own_error(fault: Fault) -> BusRefused:
    """The error reply of a fault that is no service's own."""
    if fault.kind is Kind.UNKNOWN_METHOD:
        return BusRefused("org.freedesktop.DBus.Error.UnknownMethod", "s", (fault.text,))
    return BusRefused(names.bridge_error(fault.kind), "s", (fault.text,))


def not_representable(where: str, mismatch: SignatureMismatch) -> Fault:
    """A value that the bus cannot carry, found before it was marshalled."""
    return Fault(Kind.NOT_REPRESENTABLE, f"{where}: {mismatch}")


def interfaces(translation: Translation) -> dict[str, introspection.Interface]:
    """Object name to its D-Bus interface, for every object of the service."""
    service = translation.service
    return {
        name: introspection.Interface(
            name=names.interface_name(service.name, name),
            methods=tuple(translation.of(method).describe() for method in methods),
        )
        for name, methods in service.objects.items()
    }


def _read_members(value: dict[str, Variant], plan: dict[str, tuple[str, Convert]]) -> dict[str, Value]:
    found: dict[str, Value] = {}
    for name, variant in value.items():
        if name not in plan:
            raise Mismatch(f"unknown member {name!r}; known: {', '.join(plan)}")
        found[name] = _read_variant(name, variant, plan[name])
    return found


def _read_variant(name: str, variant: Variant, case: tuple[str, Convert]) -> Value:
    expected, read = case
    try:
        if variant.signature != expected:
            raise Mismatch(f"expected signature {expected!r}, got {variant.signature!r}")
        return read(variant.value)  # type: ignore[no-any-return]
    except Mismatch as mismatch:
        mismatch.path.append(name)
        raise


def _as_is(value: Any) -> Any:
    return value


def _read_native(value: int) -> int:
    low, high = numbers.RANGES["int"]
    if low <= value <= high:
        return value
    raise Mismatch(f"expected a 63-bit integer ({low} to {high}), got {value}")


def _read_option(read: Convert) -> Convert:
    def read_option(value: list[Any]) -> Value:
        if len(value) > 1:
            raise Mismatch(f"expected an option (an array of 0 or 1), got {len(value)} elements")
        return read(value[0]) if value else None

    return read_option


def _any_to_bus(value: Value) -> Variant:
    match value:
        case None:
            return _NIL
        case bool():
            return Variant("b", value)
        case int():
            return Variant("x", value)
        case float():
            return Variant("d", value)
        case str():
            return Variant("s", value)
        case bytes():
            return Variant("ay", value)
        case list():
            return Variant("av", [_any_to_bus(item) for item in value])
        case dict():
            return Variant("a{sv}", {name: _any_to_bus(item) for name, item in value.items()})
    raise AssertionError(f"no untyped value: {type(value).__name__}")


def _any_from_bus(value: Any) -> Value:
    """A daemon may use any signature inside a variant: what it means to the legacy side is in the value."""
    match value:
        case Variant():
            return None if value == _NIL else _any_from_bus(value.value)
        case list() | tuple():
            return [_any_from_bus(item) for item in value]
        case dict():
            if not all(isinstance(name, str) for name in value):
                raise Mismatch("expected a map with strings as keys in an untyped value")
            return {name: _any_from_bus(item) for name, item in value.items()}
        case _:
            return value  # type: ignore[no-any-return]


def _carried_signature(kind: Type | None) -> str:
    """The signature of an error's arguments: a tuple is several."""
    if kind is None:
        return ""
    return "".join(map(signature, kind.items)) if isinstance(kind, TupleOf) else signature(kind)


def _undeclared(code: str, text: str, carried: tuple[Wire, ...]) -> Fault:
    try:
        argument: Value = [_any_from_bus(item) for item in carried] or None
    except Mismatch as mismatch:
        text, argument = f"{text} ({mismatch.sentence})", None
    return Fault(Kind.UNDECLARED, text, code=code, argument=argument)


def _is_optional(parameter: Parameter) -> bool:
    return parameter.named and isinstance(parameter.type, Option)


def _element(name: str) -> str:
    """An argument's name for introspection (documentation only): a name element."""
    return name.replace("-", "_").replace(" ", "_")
