"""Writes what is generated from the interface data: dbus_side/idl (introspection XML) and docs/mapping (reference)."""

import itertools
from pathlib import Path

from bridges import candidates, control_doors
from bridges.dbus_translation import Translation, interfaces
from bridges.interfaces import model
from bridges.replay.targets import SANDBOX
from dbus_side import introspection
from scripts import mapping

ROOT = Path(__file__).parents[1]


def published() -> dict[str, str]:
    """Path below the checkout to text, for every file that is generated."""
    services = [interfaces(Translation(model.load(stem))).values() for stem in model.available()]
    described = [*itertools.chain.from_iterable(services), candidates.CANDIDATE, control_doors.INTERFACE, SANDBOX]
    xml = {f"dbus_side/idl/{one.name}.xml": introspection.to_xml((one,)) for one in described}
    assert len(xml) == len(described), "two interfaces have one name"
    return xml | {f"docs/mapping/{path}": text for path, text in mapping.pages().items()}


def present() -> dict[str, str]:
    """The files that are there, as `published` gives them."""
    found = [*(ROOT / "dbus_side" / "idl").glob("*.xml"), *(ROOT / "docs" / "mapping").rglob("*.md")]
    return {str(path.relative_to(ROOT)): path.read_text() for path in found}


if __name__ == "__main__":
    wanted = published()
    for name in present().keys() - wanted.keys():
        (ROOT / name).unlink()
    for name, text in wanted.items():
        (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
        (ROOT / name).write_text(text)
