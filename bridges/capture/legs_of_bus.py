"""Calls on the bus."""

from __future__ import annotations

from functools import partial
from typing import Any

from bridges.calls import Value
from bridges.capture import legs, natives
from bridges.capture.legs import Answered, Asked, Context, Json, Native
from bridges.capture.messages import BusAnswer, BusCall, BusFailure
from bridges.capture.unreadable import Unread, misfit
from bridges.faults import Fault
from bridges.interfaces.model import Method
from dbus_side.errors import NameInvalid


class BusLeg(legs.LegReader):
    """A call on the bus."""

    def __init__(self, context: Context, message: BusCall, method: Method | None) -> None:
        super().__init__(message.form.member, method)
        self._lenient = context.lenient

    def ask(self, message: BusCall) -> Asked:
        method, form = self.method, message.form
        if method is None:
            raise Unread("no method of the service")
        body = _checked(form.input_signature, message.body)
        try:
            arguments = self._lenient.of(method).read_arguments(message.body)
        except Fault as fault:
            raise misfit("arguments", fault.text, (p.name for p in method.parameters)) from None
        return Asked(arguments, partial(self._native, message, body), partial(self._anew, message))

    @staticmethod
    def _native(message: BusCall, body: Json) -> Native:
        form = message.form
        return {
            "sender": message.sender,
            "destination": message.destination,
            "serial": message.serial,
            "path": form.path,
            "interface": form.interface,
            "member": form.member,
            "signature": form.input_signature,
            "body": body,
        }

    def _anew(self, message: BusCall, arguments: dict[str, Value]) -> Native:
        body = message.form.write_arguments(arguments)
        return self._native(message, natives.bus_body(message.form.input_signature, body))

    def answer(self, message: BusAnswer | BusFailure) -> Answered:
        if isinstance(message, BusFailure):
            return self._failed(message)
        form = message.form
        body = _checked(message.signature, message.body)
        try:
            outcome = form.read_result(message.signature, message.body)
        except Fault as fault:
            if message.signature != form.output_signature:
                raise Unread(f"result: its signature is not the declared {form.output_signature!r}") from None
            raise misfit("result", fault.text, ()) from None

        def anew(other: Value) -> Native:
            return {
                "signature": message.signature,
                "body": natives.bus_body(message.signature, form.write_result(other)),
            }

        return Answered(outcome, lambda: {"signature": message.signature, "body": body}, anew)

    @staticmethod
    def _failed(message: BusFailure) -> Answered:
        form, refusal = message
        body = _checked(refusal.signature, refusal.body)

        def anew(other: Fault) -> Native:
            said = form.write_fault(other)
            if (said.name, said.signature) != (refusal.name, refusal.signature):
                raise Unread("an error of others, in their own form")
            return {
                "error": said.name,
                "signature": said.signature,
                "body": natives.bus_body(said.signature, said.body),
            }

        return Answered(
            form.read_fault(refusal),
            lambda: {"error": refusal.name, "signature": refusal.signature, "body": body},
            anew,
        )

    def outline(self, message: BusAnswer | BusFailure) -> Answered:
        return legs.outline(message.form.read_fault(message.refusal) if isinstance(message, BusFailure) else None)


def _checked(signature: str, body: tuple[Any, ...]) -> list[Json]:
    """A body of the bus as JSON. Raises Unread."""
    try:
        return natives.bus_body(signature, body)
    except (NameInvalid, ValueError):
        raise Unread("its body is not of its signature") from None
