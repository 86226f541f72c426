"""A bus daemon under migration, as the bridge talks to it: Assume, Yield, and is it fit to be the authority?"""

from __future__ import annotations

from typing import Final

from bridges import dbus_translation, processes
from bridges.faults import FROM_DBUS, Kind
from bridges.situation import DoorError
from dbus_side import introspection, names
from dbus_side.bus import Bus
from dbus_side.errors import BusError, BusRefused

# What a bus daemon offers at /org/xen/xcp/SERVICE: Assume and Yield make it the authority and no more, by epoch.
_EPOCH: Final = introspection.Argument("epoch", "t")
CANDIDATE: Final = introspection.Interface(
    name="org.xen.xcp.Candidate1",
    methods=(introspection.Method("Assume", (_EPOCH,), ()), introspection.Method("Yield", (_EPOCH,), ())),
    properties=(introspection.Property("Epoch", "t", "read"),),
)
_PROPERTIES: Final = "org.freedesktop.DBus.Properties"
_INTROSPECTABLE: Final = "org.freedesktop.DBus.Introspectable"
PATIENCE: Final = 10.0


class CandidateRefused(DoorError):
    """The candidate answered, with an error: it did not do what it was told."""


async def process(bus: Bus, owner: str) -> str | None:
    """The process behind a unique name as `PID:START:BOOT`; None when it has ended. Raises BusError."""
    return processes.identity(await bus.process_of(owner, timeout=PATIENCE))


async def tell(bus: Bus, owner: str, service: str, member: str, epoch: int) -> None:
    """Assume or Yield. Raises CandidateRefused when it said no, DoorError when nobody knows what it did."""
    try:
        path = names.service_path(service)
        await bus.call(owner, path, CANDIDATE.name, member, "t", (epoch,), timeout=PATIENCE)
    except BusError as error:
        text = f"the candidate {owner} did not accept {member}({epoch}): {error}"
        if isinstance(error, BusRefused) and FROM_DBUS.get(error.name) is not Kind.IN_DOUBT:
            raise CandidateRefused(text) from None
        raise DoorError(text) from None


async def check_epoch(bus: Bus, owner: str, service: str, ours: int) -> None:
    """A candidate must not come from a later epoch than ours. Raises DoorError, BusError."""
    path = names.service_path(service)
    reply = await bus.call(owner, path, _PROPERTIES, "Get", "ss", (CANDIDATE.name, "Epoch"), timeout=PATIENCE)
    epoch = reply.body[0].value
    if not isinstance(epoch, int) or epoch > ours:
        text = f"the candidate {owner} says epoch {epoch!r}, {service} is in epoch {ours}"
        raise DoorError(f"{text}: its state is another's, or ours is older; start it anew")


async def missing(bus: Bus, owner: str, translation: dbus_translation.Translation) -> tuple[str, ...]:
    """The methods that are written down and not offered. Raises DoorError for one that looks otherwise, BusError."""
    absent: list[str] = []
    service = translation.service
    for name in service.objects:
        wanted = dbus_translation.interface_of(translation, name)
        path = names.object_path(service.name, name)
        try:
            reply = await bus.call(owner, path, _INTROSPECTABLE, "Introspect", "", (), timeout=PATIENCE)
        except BusRefused:
            absent.append(name)
            continue
        node = introspection.from_xml(reply.body[0])
        offered = {m.name: m for each in node.interfaces if each.name == wanted.name for m in each.methods}
        for method in wanted.methods:
            found = offered.get(method.name)
            if found is None:
                absent.append(f"{name}.{method.name}")
            elif _form(found) != _form(method):
                text = f"the candidate {owner} offers {wanted.name}.{method.name}{_form(found)}"
                raise DoorError(f"{text}, written down is {_form(method)}: mend it, or use the version that fits")
    return tuple(absent)


def _form(method: introspection.Method) -> str:
    inputs, outputs = ("".join(each.signature for each in side) for side in (method.inputs, method.outputs))
    return f"({inputs}) -> ({outputs})"
