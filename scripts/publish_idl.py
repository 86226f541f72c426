"""Writes dbus_side/idl/*.xml from the interface data: one file per D-Bus interface."""

import itertools
from pathlib import Path

from bridges import bus_presence, control
from bridges.dbus_translation import Translation, interfaces
from bridges.interfaces import model
from dbus_side import introspection


def published() -> dict[str, str]:
    """File name to text, for every interface that is written down."""
    services = [interfaces(Translation(model.load(service))).values() for service in model.available()]
    ours = [bus_presence.CANDIDATE, control.INTERFACE]
    found = [*itertools.chain.from_iterable(services), *ours]
    return {f"{interface.name}.xml": introspection.to_xml((interface,)) for interface in found}


if __name__ == "__main__":
    directory = Path(__file__).parent.parent / "dbus_side" / "idl"
    wanted = published()
    for path in directory.glob("*.xml"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (directory / name).write_text(text)
