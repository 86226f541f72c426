"""Which names D-Bus allows, and how this project names services, objects, methods and errors.

Sources: the D-Bus specification, "Valid Names" and "Valid Object Paths"; the house mapping is in docs/house.md.
"""

from __future__ import annotations

import re
from typing import Final

from dbus_side.errors import NameInvalid

_ELEMENT: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_INTERFACE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+")
_WELL_KNOWN: Final = re.compile(r"[A-Za-z_-][A-Za-z0-9_-]*(\.[A-Za-z_-][A-Za-z0-9_-]*)+")
_UNIQUE: Final = re.compile(r":[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)+")
_PATH: Final = re.compile(r"/|(/[A-Za-z0-9_]+)+")
_SEPARATORS: Final = re.compile(r"[_\- ]+")
_LONGEST: Final = 255
_PREFIX: Final = "org.xen.xcp"


def is_bus_name(name: str) -> bool:
    """Whether it is a well-known or unique bus name."""
    return len(name) <= _LONGEST and (_WELL_KNOWN.fullmatch(name) or _UNIQUE.fullmatch(name)) is not None


def is_object_path(path: str) -> bool:
    """Whether it is an object path; paths have no length limit of their own."""
    return _PATH.fullmatch(path) is not None


def is_interface(name: str) -> bool:
    """Whether it is an interface name; error names follow the same rule."""
    return len(name) <= _LONGEST and _INTERFACE.fullmatch(name) is not None


def is_member(name: str) -> bool:
    """Whether it is a method, signal or property name."""
    return len(name) <= _LONGEST and _ELEMENT.fullmatch(name) is not None


def is_error_name_element(name: str) -> bool:
    """Whether it can stand between two dots of an error name."""
    return is_member(name)


def service_name(service: str) -> str:
    """`squeezed` is `org.xen.xcp.squeezed`. Raises NameInvalid."""
    return _interface(f"{_PREFIX}.{service}")


def candidate_name(service: str) -> str:
    """The name that a daemon under migration owns until it is in charge: `org.xen.xcp.squeezed.Candidate`."""
    return _interface(f"{_PREFIX}.{service}.Candidate")


def object_path(service: str, object_name: str) -> str:
    """`storage`, `DATA.MIRROR` is `/org/xen/xcp/storage/DATA/MIRROR`. Raises NameInvalid."""
    return "/" + _interface(f"{_PREFIX}.{service}.{object_name}").replace(".", "/")


def service_path(service: str) -> str:
    """The object that stands for a service as a whole: `squeezed` is `/org/xen/xcp/squeezed`. Raises NameInvalid."""
    path = f"/{_PREFIX}.{service}".replace(".", "/")
    if not is_object_path(path):
        raise NameInvalid("object path", path)
    return path


def interface_name(service: str, object_name: str, version: int = 1) -> str:
    """`storage`, `DATA.MIRROR` is `org.xen.xcp.storage.DATA.MIRROR1`: the version is part of it. Raises NameInvalid."""
    return _interface(f"{_PREFIX}.{service}.{object_name}{version}")


def member_name(wire: str) -> str:
    """The wire name in CamelCase: `get_all_records` is `GetAllRecords`, `reserve-memory-range` is `ReserveMemoryRange`.

    `_`, `-` and space separate words. The first letter of every word becomes a capital, the rest is kept as it is
    (`get_VIFs` is `GetVIFs`). Raises NameInvalid when nothing legal comes out.
    """
    name = "".join(word[0].upper() + word[1:] for word in _SEPARATORS.split(wire) if word)
    if not is_member(name):
        raise NameInvalid("method name", wire)
    return name


def error_prefix(service: str) -> str:
    """What every error name of the service starts with, the last dot included."""
    return f"{service_name(service)}.Error."


def error_name(service: str, code: str) -> str:
    """The error name of a failure code; `...Error.Other` for a code that no name can hold (the empty one too)."""
    name = error_prefix(service) + code
    return name if is_error_name_element(code) and is_interface(name) else error_prefix(service) + "Other"


def bridge_error(kind: str) -> str:
    """The name of a failure of our own: `Busy` is `org.xen.xcp.Error.Busy`. Raises NameInvalid."""
    return _interface(f"{_PREFIX}.Error.{kind}")


def _interface(name: str) -> str:
    if not is_interface(name):
        raise NameInvalid("name", name)
    return name
