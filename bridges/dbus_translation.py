"""D-Bus bodies to neutral calls and back, and the interface data as D-Bus interfaces.

What this cannot carry
    * what `dbus_values` cannot carry
    * a method, parameter or option that is not written down: refused by name, never guessed

A tuple result is several out arguments; unit is no argument; what a caller may leave out is one last argument `options`
a{sv}.

Errors: name `org.xen.xcp.SERVICE.Error.CODE`, body text and then the constructor's arguments (xapi: an array of texts).
What is not written down has its arguments as variants; a code that can be no name goes to `...Error.Other`, with the
code behind the text.
"""

from __future__ import annotations

from typing import Final

from bridges.calls import Value
from bridges.dbus_values import (
    Mismatch,
    Values,
    Wire,
    read_members,
    signature,
    untyped_from_bus,
    untyped_to_bus,
)
from bridges.faults import FROM_DBUS, OURS, Fault, Kind
from bridges.interfaces.model import Effect, Method, Service, TupleOf, Type, bare
from dbus_side import introspection, names
from dbus_side.errors import BusRefused, SignatureMismatch
from dbus_side.signatures import Variant

LEGACY_NAME: Final = "org.xen.xcp.LegacyName"
EFFECT: Final = "org.xen.xcp.Effect"
DEADLINE: Final = "org.xen.xcp.Deadline"  # seconds; 0: none, a long poll that its caller ends
SECRET: Final = "org.xen.xcp.Secret"  # noqa: S105 -- on an argument: "true"; on `options`: the names of those that are
MEMBERS: Final = "org.xen.xcp.Options"  # on `options`: "NAME SIGNATURE, NAME SIGNATURE"
OPTIONS: Final = "options"
_SECRET: Final = ((SECRET, "true"),)


class Translation:
    """All methods of one service on the bus."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.values = Values(keeps_unknown=True)
        self.callers_values = Values(keeps_unknown=False)
        self._forms: dict[Method, MethodForm] = {}
        self._members: dict[str, dict[str, Method]] = {}
        self._objects = {names.object_path(service.name, name): name for name in service.objects}

    def members(self, object_name: str) -> dict[str, Method]:
        """The methods of one of its objects, by their names on the bus."""
        found = self._members.get(object_name)
        if found is None:
            methods = self.service.object_methods(object_name)
            found = self._members[object_name] = {names.member_name(each.member): each for each in methods}
        return found

    def find(self, path: str, interface: str, member: str) -> Method | None:
        """The method that a call names, None for what is not written down. A call may leave its interface out."""
        name, service = self._objects.get(path), self.service
        if name is None or interface not in ("", names.interface_name(service.name, name, service.version)):
            return None
        return self.members(name).get(member)

    def of(self, method: Method) -> MethodForm:
        """How that method looks on the bus."""
        form = self._forms.get(method)
        if form is None:
            form = self._forms[method] = MethodForm(self, method)
        return form


class MethodForm:
    """One method on the bus: member, signatures, conversion of arguments, result and errors."""

    def __init__(self, translation: Translation, method: Method) -> None:
        self._method = method
        self._translation = translation
        self.path = names.object_path(method.service, method.object)
        self.interface = names.interface_name(method.service, method.object, method.version)
        self.member = names.member_name(method.member)
        values, callers = translation.values, translation.callers_values
        parameters = [p for p in method.parameters if signature(p.type)]
        self._plain = [p for p in parameters if not p.may_be_absent]
        self._optional = [p for p in parameters if p.may_be_absent]
        self._plain_writes = [(p.name, values.writer(p.type)) for p in self._plain]
        self._plain_reads = [(p.name, callers.reader(p.type)) for p in self._plain]
        self._options = {
            p.name: (signature(bare(p.type)), callers.reader(bare(p.type)), values.writer(bare(p.type)))
            for p in self._optional
        }
        self._option_reads = {name: (sig, read) for name, (sig, read, _) in self._options.items()}
        self.input_signature = "".join(signature(p.type) for p in self._plain) + ("a{sv}" if self._optional else "")
        self._outputs = method.result.items if isinstance(method.result, TupleOf) else (method.result,)
        self.output_signature = "".join(signature(item) for item in self._outputs)
        self._write_result = values.writer(method.result)
        self._read_result = values.reader(method.result)

    def describe(self) -> introspection.Method:
        """The method for introspection; what its signature cannot say are annotations, see docs/mapping."""
        inputs = [
            introspection.Argument(_element(p.name), signature(p.type), _SECRET if p.secret else ())
            for p in self._plain
        ]
        if self._optional:
            inputs.append(self._describe_options())
        outputs = [s for item in self._outputs if (s := signature(item))]
        named = ["result"] if len(outputs) == 1 else [f"result{number}" for number in range(len(outputs))]
        secret = _SECRET if self._method.secret_result else ()
        return introspection.Method(
            name=self.member,
            inputs=tuple(inputs),
            outputs=tuple(introspection.Argument(name, sig, secret) for name, sig in zip(named, outputs, strict=True)),
            annotations=(
                (LEGACY_NAME, self._method.name),
                (EFFECT, str(self._method.effect)),
                (DEADLINE, f"{self._method.deadline or 0:g}"),
            ),
        )

    def _describe_options(self) -> introspection.Argument:
        taken = any(p.name == OPTIONS for p in self._plain)
        members = ", ".join(f"{name} {sig}" for name, (sig, _, _) in self._options.items())
        secret = ", ".join(p.name for p in self._optional if p.secret)
        annotations = ((MEMBERS, members), (SECRET, secret)) if secret else ((MEMBERS, members),)
        return introspection.Argument(f"further_{OPTIONS}" if taken else OPTIONS, "a{sv}", annotations)

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
                arguments.update(read_members(body[-1], self._option_reads))
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
        variants = [untyped_to_bus(item) for item in carried]
        if fault.code in declared or not names.is_error_name_element(fault.code):
            body: tuple[Wire, ...] = (fault.text, fault.code, *variants)
            return BusRefused(names.error_prefix(self._method.service) + OTHER, "ss" + "v" * len(variants), body)
        name = names.error_name(self._method.service, fault.code)
        return BusRefused(name, "s" + "v" * len(variants), (fault.text, *variants))

    def _write_carried(self, kind: Type | None, argument: Value) -> tuple[str, tuple[Wire, ...]]:
        if kind is None:
            return "", ()
        written = self._translation.values.writer(kind)(argument)
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
                return Fault(
                    Kind.DECLARED, text, code=code, argument=self._translation.values.reader(case.argument)(carried)
                )
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


def interface_of(translation: Translation, object_name: str) -> introspection.Interface:
    """The D-Bus interface of one object of the service."""
    service = translation.service
    return introspection.Interface(
        name=names.interface_name(service.name, object_name, service.version),
        methods=tuple(translation.of(method).describe() for method in service.object_methods(object_name)),
    )


def interfaces(translation: Translation) -> dict[str, introspection.Interface]:
    """Object name to its D-Bus interface, for every object of the service."""
    return {name: interface_of(translation, name) for name in translation.service.objects}


def _carried_signature(kind: Type | None) -> str:
    """The signature of an error's arguments: a tuple is several."""
    if kind is None:
        return ""
    return "".join(map(signature, kind.items)) if isinstance(kind, TupleOf) else signature(kind)


def _undeclared(code: str, text: str, carried: tuple[Wire, ...]) -> Fault:
    try:
        argument: Value = [untyped_from_bus(item) for item in carried] or None
    except Mismatch as mismatch:
        text, argument = f"{text} ({mismatch.sentence})", None
    return Fault(Kind.UNDECLARED, text, code=code, argument=argument)


def _element(name: str) -> str:
    """An argument's name for introspection (documentation only): a name element."""
    return name.replace("-", "_").replace(" ", "_")
