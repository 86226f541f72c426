"""What the bridge's own verbs do, whichever way they came (`control_doors`)."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Final

from bridges import cutover, evidence, routing
from bridges.calls import Door, Side
from bridges.capture.recorder import CaptureRefused, Recorder
from bridges.cutover import Keeper, Stage
from bridges.dispatch import HOLD_SECONDS
from bridges.durable import NotDurable
from bridges.endpoints import Endpoints, settings_doors
from bridges.findings import Finding, Verdict
from bridges.flip import FlipRefused, Receipt, move, note
from bridges.journal import Journal
from bridges.ledger import Ledger
from bridges.routing import Reason
from bridges.situation import DoorError
from bridges.state import NotWritten, Order, State
from xenstore_rpc.errors import XenstoreError

CALLS_NAMED: Final = 5
# What an operator does about an alarm.
_MEND: Final = {
    "SPLIT_OWNER": "end the daemon that the text names, restart the bridge, then xcp-bridge acknowledge; or kill",
    "NAME_TAKEN": "end the daemon that owns the name; then xcp-bridge acknowledge",
    "ACCOUNTS": "keep the log and report it: this is a defect of the bridge; xcp-bridge kill brings legacy back",
    "NO_AUTHORITY": "start the daemon that the text names, or xcp-bridge kill",
    "BUS_LOST": "start xcp-bus.service; xcp-bridge kill works without it",
    "STORE_LOST": "start xenstored",
    "TREE_LOST": "mend what the text says, then restart the bridge",
    "DOORS": "correct the path or the daemon that the text names",
    "STATE": "free space in the state directory",
    "ANOTHER_BRIDGE": "end the other bridge",
}


class WrongRequest(Exception):
    """A request that names something that does not exist, or lacks what its verb needs."""


class NotNow(Exception):
    """A verb that was understood and not carried out; the text says why and what to do."""


class Control:
    """The verbs."""

    def __init__(
        self, services: Mapping[str, Endpoints], state: State, journal: Journal, ledger: Ledger, recorder: Recorder
    ) -> None:
        self._services = services
        self._state = state
        self._journal = journal
        self._ledger = ledger
        self._recorder = recorder
        self.on_change: Callable[[Receipt], None] | None = None

    def status(self) -> dict[str, dict[str, Any]]:
        return {
            name: {**endpoints.status(), **self._recorder.status_of(name), **self.farewell(name)}
            for name, endpoints in self._services.items()
        }

    def epoch(self, service: str) -> int:
        return self._find(service).situation.standing.epoch

    def audit(self, service: str | None, limit: int) -> list[dict[str, Any]]:
        """What was done with a service, or with all. Raises WrongRequest for one of which nothing is known."""
        entries = self._state.audit(service, limit)
        if service is not None and not entries:
            self._find(service)
        return entries

    def steps(self, service: str, stage: str, *, skips: bool = True) -> list[str]:
        """What SetStage would do. Raises WrongRequest or IllegalMove."""
        endpoints, target = self._find(service), _stage(stage)
        doors = settings_doors(endpoints.settings)
        found: list[str] = []
        here = endpoints.situation.standing.stage
        for there in cutover.moves(here, target, skips=skips):
            parts = cutover.plan(
                here,
                there,
                sockets=bool(endpoints.sockets),
                tree=Door.XENSTORE in doors,
                datagrams=Door.DATAGRAM in doors,
            )
            found += [f"{here} to {there}: {part}" for part in parts]
            here = there
        return found

    async def plan(self, service: str, stage: str, order: Order) -> dict[str, Any]:
        """The steps of a move, its gates and how long callers would wait at most. Raises also FlipRefused."""
        steps = self.steps(service, stage, skips=order.skip is not None)
        self._check_order(service, _stage(stage))
        gates, refused = [], None
        try:
            gates = await self._find(service).gates(_stage(stage))
        except DoorError as error:
            refused = f"{service} cannot be moved now: {error}"
        return {"plan": steps, "gates": gates, "refused": refused, "promised": {"held_seconds_limit": HOLD_SECONDS}}

    async def set_stage(
        self, service: str, stage: str, order: Order, *, accept_in_doubt: bool = False
    ) -> list[Receipt]:
        """Moves a service. Raises WrongRequest, IllegalMove or FlipRefused."""
        endpoints, target = self._find(service), _stage(stage)
        _need_reason(order)
        try:
            self._check_order(service, target)
        except FlipRefused as refusal:
            note(endpoints, self._state, target, order, f"refused: {refusal}")
            raise
        return await self._move(endpoints, target, order, accept_in_doubt=accept_in_doubt)

    async def kill(self, service: str, order: Order, *, accept_in_doubt: bool = False) -> tuple[list[Receipt], str]:
        """Brings a service back to legacy authority, whatever its gates, its freeze and other services say."""
        endpoints = self._find(service)
        _need_reason(order)
        # Where it stands is asked once a move that is on its way is over, under that one's lock.
        receipts = await self._move(endpoints, Stage.RELAY, order, accept_in_doubt=accept_in_doubt)
        here = endpoints.situation.standing.stage
        if not receipts:
            return [], f"{service} is {here}: the legacy daemon is the authority already"
        left_behind = self._waiting_for(service, here)
        text = f"{service} is {here}: the legacy daemon is the authority"
        if left_behind:
            text += f"; these were to be moved after it only: {', '.join(left_behind)}"
        return receipts, text

    async def _move(self, endpoints: Endpoints, target: Stage, order: Order, *, accept_in_doubt: bool) -> list[Receipt]:
        receipts = await move(endpoints, self._state, target, order, accept_in_doubt=accept_in_doubt)
        for receipt in receipts:
            if self.on_change is not None:
                self.on_change(receipt)
        return receipts

    def _check_order(self, service: str, target: Stage) -> None:
        """Services that must be moved first, or be moved back first. Raises FlipRefused."""
        unmet = cutover.unmet(target, self._find(service).settings.requires, self._stages())
        if unmet:
            first = unmet[0]
            text = (
                f"{service} requires {', '.join(map(str, unmet))}: {first.service} is {self._stages()[first.service]}"
            )
            raise FlipRefused(f"{text}; xcp-bridge stage {first.service} {first.stage} first")
        if left_behind := self._waiting_for(service, target):
            raise FlipRefused(
                f"{', '.join(left_behind)} requires more of {service} than {target}: move that back first"
            )

    def _waiting_for(self, service: str, target: Stage) -> list[str]:
        """Services that would stand where they may not, were this one moved there."""
        stages = {**self._stages(), service: target}
        return [
            name
            for name, other in self._services.items()
            if any(each.service == service for each in other.settings.requires)
            and any(each.service == service for each in cutover.unmet(stages[name], other.settings.requires, stages))
        ]

    def _stages(self) -> dict[str, Stage]:
        return {name: endpoints.situation.standing.stage for name, endpoints in self._services.items()}

    def farewell(self, service: str) -> dict[str, Any]:
        """What is left to do, for a service that is complete."""
        endpoints = self._find(service)
        if endpoints.situation.standing.stage is not Stage.COMPLETE:
            return {}
        doors = tuple(map(str, settings_doors(endpoints.settings)))
        return {"checklist": evidence.checklist(service, doors, endpoints.witness.unused())}

    async def acknowledge(self, service: str, order: Order) -> dict[str, Any]:
        """Somebody has looked: ends a freeze, and the writes in doubt are not held against the service any more."""
        endpoints = self._find(service)
        _need_reason(order)
        situation = endpoints.situation
        was = situation.frozen
        try:
            self._state.freeze(service, None)
            count = await self._journal.acknowledge(service, f"{order.who}: {order.reason}")
        except (NotWritten, NotDurable) as error:
            raise NotNow(str(error)) from None
        situation.frozen = None
        if situation.meaning.tree is Keeper.LEGACY:  # while the tree is ours the other one must end, and we start anew
            situation.calm("SPLIT_OWNER")
        thawed = f"no longer frozen ({was})" if was else "was not frozen"
        note(endpoints, self._state, situation.standing.stage, order, f"{thawed}; {count} calls in doubt")
        return {"text": f"{service} {thawed}", "in_doubt": count}

    def explain(self, service: str, method: str, door: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Which rule would route a call, and which would not. Raises WrongRequest."""
        endpoints = self._find(service)
        try:
            at = Door(door)
        except ValueError:
            raise WrongRequest(f"no door {door!r}; doors: {', '.join(Door)}") from None
        call: dict[str, Any] = {"service": service, "method": method, "arguments": arguments}
        known = endpoints.on_bus.service.method(method)
        reasons, result = routing.explain(
            service, endpoints.situation.standing.stage, at, is_held=endpoints.dispatch.is_held
        )
        if known is None:
            text = f"{method} is not written down: it passes untouched to a legacy daemon, else it is refused by name"
            reasons.append(Reason("unknown method", routing.Verdict.PASSES, text))
        else:
            call |= {"effect": str(known.effect), "deadline": known.deadline}
            comes_to_us = reasons[-1].verdict is routing.Verdict.DECIDES
            beside = routing.beside(endpoints.situation.standing.stage, known)
            reasons += [reason for reason in beside if comes_to_us or reason.rule != "journal"]
        return {"call": call, "door": door, **_rules(reasons), "result": result}

    async def explain_recorded(self, service: str, number: int) -> dict[str, Any]:
        """Which rule routed a write that was made. Raises WrongRequest when the journal does not have it."""
        self._find(service)
        entry = await self._journal.entry(number)
        if entry is None or entry["service"] != service:
            raise WrongRequest(f"the journal has no call {number} of {service}; it has writes only, the newest")
        stage, door = Stage(entry["stage"]), Door(entry["door"])
        reasons, result = routing.explain(service, stage, door, is_held=False)
        result = f"{result}, in epoch {entry['epoch']}: {entry['outcome'] or 'in flight'}"
        call = {name: value for name, value in entry.items() if name != "kept"}
        return {"call": call, "door": str(door), **_rules(reasons), "result": result}

    async def handles(self, service: str) -> dict[str, Any]:
        """The handles that callers know, and what is kept in the store. Raises WrongRequest, NotNow."""
        endpoints = self._find(service)
        try:
            rows = [{"handle": row.pop("alias"), **row} for row in await self._ledger.rows(service)]
            kept = await endpoints.reservations()
        except (NotDurable, XenstoreError) as error:
            raise NotNow(f"{service}: {error}") from None
        reservations = None
        if endpoints.settings.xenstore is not None:
            reservations = [
                {
                    "session": name.partition("/")[0],
                    "id": name.partition("/")[2],
                    "kib": value.decode("ascii", "replace"),
                }
                | {"state": "in the store, adopted by whoever rules"}
                for name, value in kept.items()
            ]
        summary = Counter(f"{row['kind']} {row['state']}" for row in rows)
        if reservations:
            summary["reservations"] = len(reservations)
        return {"handles": rows, "reservations": reservations, "summary": dict(summary)}

    async def capture(self, action: str, services: list[str], name: str | None) -> dict[str, Any]:
        """Starts or stops capturing services, none named: all. Raises WrongRequest, NotNow.

        `unheard` are those whose calls on the bus pass us by and cannot be listened to yet: it is tried again.
        """
        for each in services:
            self._find(each)
        services = list(dict.fromkeys(services))
        try:
            match action:
                case "start":
                    chosen = services or list(self._services)
                    directory = await self._recorder.start(chosen, name)
                    heard = await asyncio.gather(*(self._services[each].attend_capture() for each in chosen))
                    unheard = [each for each, is_heard in zip(chosen, heard, strict=True) if not is_heard]
                    return {"directory": str(directory), "services": chosen, "unheard": unheard}
                case "stop":
                    try:
                        directory, ended = await self._recorder.stop(services or None)
                    finally:  # also of a capture that ended badly
                        await asyncio.gather(*(each.attend_capture() for each in self._services.values()))
                    return {"directory": str(directory), "services": ended, "running": self._recorder.status()}
                case "status":
                    return {"running": self._recorder.status()}
        except CaptureRefused as refusal:
            raise NotNow(str(refusal)) from None
        raise WrongRequest(f"action: expected start, stop or status, got {action!r}")

    async def doctor(self) -> list[dict[str, str]]:
        """What the running bridge knows to be wrong, and how to mend it."""
        found: list[Finding] = []
        for name, endpoints in self._services.items():
            found += await self._look_at(name, endpoints)
        return [{"place": f.place, "verdict": f.verdict, "text": f.text, "mend": f.mend} for f in found]

    async def _look_at(self, name: str, endpoints: Endpoints) -> list[Finding]:
        situation = endpoints.situation
        place = f"{name} ({situation.standing.stage})"
        found = [
            Finding(place, Verdict.BAD, f"{alarm}: {text}", _MEND.get(alarm, ""))
            for alarm, text in situation.alarms.items()
        ]
        if situation.frozen is not None:
            mend = f"when that is mended: xcp-bridge acknowledge {name} --reason TEXT"
            found.append(Finding(place, Verdict.BAD, f"is frozen: {situation.frozen}", mend))
        if self._journal.in_doubt_count(name):
            found.append(await self._in_doubt(name, place))
        if endpoints.bus.owner_of_candidate() is not None and situation.meaning.authority is Side.LEGACY:
            try:
                missing = await endpoints.bus.check_candidate(endpoints.on_bus)
            except DoorError as error:
                found.append(Finding(f"{name} candidate", Verdict.BAD, str(error), "it cannot be moved to until then"))
            else:
                text = f"does not offer {', '.join(missing[:3])}" if missing else "is fit to be moved to"
                found.append(Finding(f"{name} candidate", Verdict.WARNING if missing else Verdict.GOOD, text))
        return found or [Finding(place, Verdict.GOOD, f"authority {situation.meaning.authority}, nothing is wrong")]

    async def _in_doubt(self, name: str, place: str) -> Finding:
        """Which calls somebody has to look at, by their numbers."""
        try:
            calls = await self._journal.in_doubt(name)
        except NotDurable as error:
            return Finding(place, Verdict.WARNING, f"calls are in doubt; the journal cannot be read: {error}")
        newest = ", ".join(f"{call['id']} ({call['method']})" for call in calls[:CALLS_NAMED])
        more = f" and {len(calls) - CALLS_NAMED} more" if len(calls) > CALLS_NAMED else ""
        mend = f"xcp-bridge explain {name} --call NUMBER; look whether it was executed; xcp-bridge acknowledge {name}"
        return Finding(place, Verdict.WARNING, f"{len(calls)} calls are in doubt: {newest}{more}", mend)

    def _find(self, service: str) -> Endpoints:
        endpoints = self._services.get(service)
        if endpoints is None:
            raise WrongRequest(f"no service {service!r} in the settings; known: {', '.join(self._services) or 'none'}")
        return endpoints


def _stage(stage: str) -> Stage:
    try:
        return Stage(stage)
    except ValueError:
        raise WrongRequest(f"no stage {stage!r}; stages: {', '.join(cutover.LADDER)}") from None


def _need_reason(order: Order) -> None:
    if not order.reason.strip():
        raise WrongRequest("a move needs a reason")


def _rules(reasons: list[Reason]) -> dict[str, Any]:
    return {"rules": [{"rule": r.rule, "verdict": str(r.verdict), "text": r.text} for r in reasons]}
