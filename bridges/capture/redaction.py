"""Redaction of neutral values, before anything is written.

A text is replaced when one of these says so:
    the interface    a secret parameter or result, and what ADDED says; the types of handles that are credentials
                     (sessions of xapi), wherever they occur
    a name           of a parameter, member, map key or union case; of a method, for its result and its `value`; the
                     text of `key` or `name`, for the `value` beside it. Not where the interface has a handle
    the text itself  `rules.without_secrets`; not in declared references to other things than sessions
    nobody           a member or an argument that is not written down
    an earlier find  what was secret in one message of a call is replaced in all others, inside other texts too

References become tokens: equal ones stay equal, and they still look like references. All else becomes a constant,
since a short secret could be guessed from its digest. Types stay as they are: numbers, booleans and times are kept, in
untyped values too unless what holds them is secret. Below a secret name or mark every text is secret.

A closure is compiled per type on first use (as in `xmlrpc_values`); a value in which nothing is secret is not copied.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple

from bridges.calls import Value
from bridges.capture import rules
from bridges.capture.redacting import MEMBERS, UNTYPED, Kinds
from bridges.capture.rules import REFERENCE, is_secret_name, is_token
from bridges.capture.texts import Change, Pass, Texts
from bridges.comparison import SECRET
from bridges.faults import Fault, Kind
from bridges.interfaces.model import ASYNC, Method, Service

__all__ = ["SECRET", "Redacted", "Redactor", "is_token"]

# Secrets that the interface data do not mark: SERVICE METHOD, and the parameters or `result`.
ADDED: Final[Mapping[str, tuple[str, ...]]] = {
    "xapi pool.initial_auth": ("result",),  # the pool secret
    "xapi host.license_add": ("contents",),
    "xapi host.license_apply": ("contents",),
    "xenopsd VM.run_script": ("script",),  # is run in the guest, whose passwords it may hold
}
_NAMES_OF_A_VALUE: Final = ("key", "name")  # parameters whose text names what `value` beside them is


class Redacted(NamedTuple):
    """A value without secrets. `paths` are the places that were changed, in the style of `comparison`.

    `secrets` are the clear texts that were found, to be passed on for the rest of the same call.
    """

    value: Any
    paths: list[str]
    secrets: frozenset[str]


class _Plan(NamedTuple):
    """What is done with a method's arguments and its result.

    `named_by` are the parameters whose text may make `value` a secret. `guarded`: its faults may show a secret.
    """

    arguments: Mapping[str, Change | None]
    result: Change | None
    named_by: tuple[str, ...]
    secret_value: Change | None
    guarded: bool


class Redactor:
    """The rules with one key. `policy` and `key_id` are digests of 16 hex digits.

    `policy` changes when a rule does; the same key makes the same tokens.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.policy = rules.policy((sorted(ADDED.items()), sorted(MEMBERS), _NAMES_OF_A_VALUE))
        self.key_id = hashlib.sha256(b"the id of a key\0" + key).hexdigest()[:16]
        self._texts = Texts(self.token)
        self._kinds: dict[Service, Kinds] = {}
        self._plans: dict[Method, _Plan] = {}

    def token(self, text: str) -> str:
        """What stands for a reference: the same for the same text; a token is its own."""
        if is_token(text):
            return text
        digest = hmac.digest(self._key, text.encode("utf-8", "surrogatepass"), "sha256").hex()
        prefix = REFERENCE if text.startswith(REFERENCE) else ""
        return f"{prefix}5ec3e700-{digest[:4]}-{digest[4:8]}-{digest[8:12]}-{digest[12:24]}"

    def arguments(self, service: Service, method: Method, arguments: dict[str, Value]) -> Redacted:
        """The arguments of a call by parameter name."""
        plan = self._plan(service, method)

        is_named_secret = any(is_secret_name(str(arguments.get(name, ""))) for name in plan.named_by)
        members = {**plan.arguments, "value": plan.secret_value} if is_named_secret else plan.arguments
        return self._run(partial(self._of(service).members, members), arguments, "arguments", frozenset())

    def result(self, service: Service, method: Method, value: Value, secrets: frozenset[str]) -> Redacted:
        """The result of a call in which `secrets` were found before."""
        change = self._plan(service, method).result
        return Redacted(value, [], frozenset()) if change is None else self._run(change, value, "result", secrets)

    def fault(
        self, service: Service, method: Method | None, fault: Fault, secrets: frozenset[str]
    ) -> tuple[Fault, list[str]]:
        """The fault of a call in which `secrets` were found before, and the places that were changed.

        Where the method has secrets, or is not known, what is quoted in the fault's texts may be one.
        """
        kinds = self._of(service)
        case = None if method is None or fault.kind is not Kind.DECLARED else method.errors.by_name.get(fault.code)
        guarded = method is None or self._plan(service, method).guarded
        of_argument = UNTYPED if case is None or case.argument is None else case.argument
        paths: list[str] = []

        def run(change: Change | None, value: Any, place: str) -> Any:
            if change is None:
                return value
            found = self._run(change, value, f"fault.{place}", secrets, guarded=guarded)
            paths.extend(found.paths)
            return found.value

        text, code = (run(kinds.text, getattr(fault, place), place) for place in ("text", "code"))
        argument = run(kinds.open(of_argument), fault.argument, "argument")
        return (Fault(fault.kind, text, code=code, argument=argument), paths) if paths else (fault, paths)

    def text(self, text: str, secrets: frozenset[str] = frozenset()) -> str:
        """A text of any origin that belongs to a call in which `secrets` were found."""
        return self._texts.redacted(text, Pass(secrets))

    def headers(self, headers: Iterable[tuple[str, str]]) -> list[list[str]]:
        """Headers of HTTP: of all but a few harmless ones the name alone is kept."""
        return [
            [self.text(name), self.text(value) if name.lower() in rules.HEADERS else SECRET] for name, value in headers
        ]

    def target(self, target: str) -> str:
        """A request's target: of all but a few harmless queries the name alone is kept."""
        path, mark, query = target.partition("?")
        return self.text(path) + mark + "&".join(map(self._query, query.replace(";", "&").split("&")))

    def _query(self, pair: str) -> str:
        name, mark, value = pair.partition("=")
        if not mark:
            return name if name in rules.QUERIES else name and SECRET
        return f"{self.text(name)}={self.text(value) if name in rules.QUERIES else value and SECRET}"

    def _run(
        self, change: Change, value: Any, place: str, secrets: frozenset[str], *, guarded: bool = False
    ) -> Redacted:
        """A secret that was found may stand in what was looked at before it, so that there is a second look then."""
        first = Pass(secrets, guarded=guarded)
        redacted = change(value, first)
        paths, found = first.paths, frozenset(first.found)
        if first.has_news:
            second = Pass(secrets | found, guarded=guarded)
            redacted = change(redacted, second)
            paths += second.paths
        return Redacted(redacted, [place + path for path in dict.fromkeys(paths)], found)

    def _of(self, service: Service) -> Kinds:
        kinds = self._kinds.get(service)
        if kinds is None:
            kinds = self._kinds[service] = Kinds(service, self._texts)
        return kinds

    def _plan(self, service: Service, method: Method) -> _Plan:
        plan = self._plans.get(method)
        if plan is None:
            plan = self._plans[method] = _make_plan(self._of(service), method)
        return plan


def _make_plan(kinds: Kinds, method: Method) -> _Plan:
    added = ADDED.get(f"{method.service} {method.name.removeprefix(ASYNC)}", ())
    is_async = method.name.startswith(ASYNC)
    has_secret_name = is_secret_name(method.member)
    secret = {p.name for p in method.parameters if p.secret or p.name in added}
    secret |= {p.name for p in method.parameters if p.name not in method.consumes and is_secret_name(p.name)}
    types = {p.name: p.type for p in method.parameters}
    if has_secret_name and method.member.removeprefix("Async_").startswith(("set_", "add_")) and "value" in types:
        secret.add("value")
    arguments = {name: (kinds.secret if name in secret else kinds.open)(kind) for name, kind in types.items()}
    is_secret = not is_async and (method.secret_result or "result" in added or has_secret_name)
    handles = frozenset(place.split(".")[1] for place in method.produces if place.count(".") == 1)
    result = kinds.secret(method.result) if is_secret else kinds.open_with_handles(method.result, handles)
    return _Plan(
        arguments=arguments,
        result=result,
        named_by=tuple(name for name in _NAMES_OF_A_VALUE if name in types and "value" in types),
        secret_value=kinds.secret(types["value"]) if "value" in types else None,
        guarded=bool(secret) or (is_secret and result is not None),
    )
