"""Calls in the store."""

from __future__ import annotations

from functools import partial

from bridges import xenstore_translation
from bridges.calls import Value
from bridges.capture import legs, natives
from bridges.capture.legs import Answered, Asked, Context, Json, Native, NotSeen
from bridges.capture.messages import StoreAnswer, StoreCall
from bridges.capture.unreadable import Unread, misfit
from bridges.comparison import Outcome
from bridges.faults import Fault, Kind
from bridges.interfaces.model import Method
from xenstore_rpc.records import UNKNOWN_FUNCTION, Response


class StoreLeg(legs.LegReader):
    """A call in the store."""

    def __init__(self, context: Context, message: StoreCall) -> None:
        super().__init__(message.function, context.service.by_xenstore_function.get(message.function))
        self._service = context.service
        self._redactor = context.redactor
        self._arguments: dict[str, Value] = {}

    def ask(self, message: StoreCall) -> Asked:
        method = self.method
        if method is None:
            raise Unread("no function of the service")
        request = message.request
        if request is None:
            return Asked(None, partial(self._native, message, []), lambda _: {})
        form = method.xenstore
        assert form is not None
        _check_names(request.arguments)
        try:
            self._arguments = xenstore_translation.read_arguments(method, request)
        except Fault as fault:
            if fault.kind is Kind.DECLARED:
                raise Unread(fault.text) from None  # which argument is missing, by its declared name
            raise misfit("arguments", fault.text, form.arguments) from None

        def anew(others: dict[str, Value]) -> Native:
            _, written = xenstore_translation.write_arguments(method, others)
            return self._native(message, natives.nodes(written))

        return Asked(
            self._arguments,
            lambda: self._native(message, natives.nodes(request.arguments)),
            anew,
            form.variadic or len(request.arguments) == len(form.arguments),
        )

    def _native(self, message: StoreCall, found: Json) -> Native:
        request_id = self._redactor.text(natives.clean(message.request_id))
        return {"function": message.function, "request_id": request_id, "nodes": found}

    def answer(self, message: StoreAnswer) -> Answered | NotSeen:
        method, response = self.method, message.response
        if response is None:
            return NotSeen()
        assert method is not None
        _check_names(response.results)
        outcome: Outcome
        try:
            outcome = xenstore_translation.read_response(self._service, method, self._arguments, response)
        except Fault as fault:
            if not response.is_error:
                names = () if method.xenstore is None else method.xenstore.results
                raise misfit("result", fault.text, names) from None
            outcome = fault
        return Answered(
            outcome,
            lambda: {"nodes": natives.nodes(response.results)},
            lambda other: {"nodes": natives.nodes(self._anew(method, other).results)},
            self._is_whole(method, response),
        )

    @staticmethod
    def _is_whole(method: Method, response: Response) -> bool:
        if response.is_error:
            return len(response.results) == 2
        form = method.xenstore
        return form is not None and (form.variadic or len(form.results) == len(response.results))

    def _anew(self, method: Method, outcome: Outcome) -> Response:
        if isinstance(outcome, Fault):
            return xenstore_translation.write_fault(self._service, self._arguments, outcome)
        return xenstore_translation.write_response(method, outcome)

    def outline(self, message: StoreAnswer) -> Answered | NotSeen:
        response = message.response
        if response is None:
            return NotSeen()
        if not response.is_error:
            return legs.outline(None)
        if response.code == UNKNOWN_FUNCTION:
            return legs.outline(Fault(Kind.UNKNOWN_METHOD, ""))
        entry = self._service.xenstore_errors.get(response.code)
        return legs.outline(legs.fault_of(self._service, "" if entry is None else entry.error))


def _check_names(found: tuple[tuple[str, bytes], ...]) -> None:
    """Raises Unread for a node whose name's bytes are no UTF-8: it would be an argument's name in `echo`."""
    if any(natives.clean(name) != name for name, _ in found):
        raise Unread("a node's name that is no text")
