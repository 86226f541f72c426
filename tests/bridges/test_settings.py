"""The settings file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridges.cutover import Requirement, Stage
from bridges.interfaces import model
from bridges.settings import (
    HttpDoorSettings,
    LegacyCommands,
    LegacyUnit,
    ServiceSettings,
    Settings,
    SettingsError,
    SocketSettings,
    decode,
    parse,
)

SAMPLE = """
[bus]
address = "unix:path=/run/xcp/bus"
[xenstore]
socket = "/var/run/xenstored/socket"
[state]
directory = "/var/lib/xcp-bridge"
[control]
socket = "/run/xcp-bridge/control"

[services.squeezed]
legacy = { start = ["/usr/sbin/squeezed"], stop = ["/bin/kill"], pidfile = "/var/run/squeezed.pid" }
xenstore = "squeezed"
reach = "xenstore"
stale_at_start = "execute"
[services.xenopsd]
legacy = { unit = "xenopsd.service" }
[services.xenopsd.http]
socket = "/var/lib/xcp/xenopsd"
legacy = "/var/lib/xcp/xenopsd.old"
dialect = "rpclib"
listen = ["tcp:127.0.0.1:8080", "tcp:[::1]:8080"]
"""


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        parse(data, {})
    assert str(caught.value) == "; ".join(caught.value.problems)
    return caught.value.problems


def test_a_complete_file() -> None:
    """Every key reaches its place."""
    assert decode(SAMPLE.encode(), {}) == Settings(
        bus_address="unix:path=/run/xcp/bus",
        xenstore_socket="/var/run/xenstored/socket",
        state_directory=Path("/var/lib/xcp-bridge"),
        control_socket=Path("/run/xcp-bridge/control"),
        services={
            "squeezed": ServiceSettings(
                "squeezed",
                legacy=LegacyCommands(("/usr/sbin/squeezed",), ("/bin/kill",), Path("/var/run/squeezed.pid")),
                xenstore="squeezed",
                reach="xenstore",
                stale_at_start="execute",
            ),
            "xenopsd": ServiceSettings(
                "xenopsd",
                legacy=LegacyUnit("xenopsd.service"),
                http=HttpDoorSettings(
                    Path("/var/lib/xcp/xenopsd"),
                    Path("/var/lib/xcp/xenopsd.old"),
                    listen=(("127.0.0.1", 8080), ("::1", 8080)),
                ),
            ),
        },
    )


def test_everything_has_a_default() -> None:
    """An empty file is a bridge without services; the daemon's own socket stands beside ours."""
    assert parse({}, {}) == Settings()
    parsed = parse({"services": {"xenopsd": {"http": {"socket": "/run/x"}}}}, {})
    assert parsed.services["xenopsd"].http == HttpDoorSettings(Path("/run/x"), Path("/run/x.legacy"))


def test_the_environment_stands_above_the_file() -> None:
    """XCP_BUS_ADDRESS wins, and the key it covers is still a known one."""
    data = {"bus": {"address": "unix:path=/a"}}
    assert parse(data, {"XCP_BUS_ADDRESS": "unix:path=/b"}).bus_address == "unix:path=/b"
    assert parse(data, {"XCP_BUS_ADDRESS": ""}).bus_address == "unix:path=/a"


def test_all_mistakes_are_reported_at_once() -> None:
    """One reading finds the mistakes of every table, each with its place."""
    found = problems(
        {
            "bus": {"address": 3},
            "xenstore": {"sokcet": "/a"},
            "state": {"directory": "relative"},
            "console": {"listen": "unix:/a"},
            "services": {
                "squeezed": {"legacy": {"start": "cmd"}, "stale_at_start": "maybe"},
                "nosuch": {"xenstore": "nosuch"},
            },
        }
    )
    assert sorted(found) == sorted(
        [
            "bus.address: expected text, got 3",
            "xenstore.sokcet: unknown key",
            "state.directory: expected an absolute path, got 'relative'",
            "console: the console is not available in this version; remove the key",
            "services.squeezed.legacy.start: expected a command as a list of texts, got 'cmd'",
            "services.squeezed.legacy.stop: is missing: expected a command as a list of texts",
            "services.squeezed.legacy.pidfile: is missing: expected an absolute path",
            "services.squeezed.stale_at_start: expected 'refuse' or 'execute', got 'maybe'",
            "services.squeezed: needs a legacy door: one of http, framed, xenstore, datagram",
            f"services.nosuch: no interface is written down for 'nosuch'; known: {', '.join(model.services())}",
        ]
    )


ADDRESS = "9" * 5000


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({"stage": "live"}, [".stage: unknown key; known here: xenstore"]),
        ({"framed": {}}, [".framed.socket: is missing: expected an absolute path"]),
        (
            {"datagram": "@x"},
            [".datagram: no method of squeezed can be called there; its doors: framed, http, xenstore"],
        ),
        (
            {"http": {"socket": "/a", "legacy": "/c"}, "framed": {"socket": "/a", "legacy": "/b"}},
            [": /a is also a door of squeezed"],
        ),
        (
            {"dialect": "rpclib-2012", "http": {"socket": "/a", "dialect": "rpclib"}},
            [".http.dialect: is 'rpclib' here, and 'rpclib-2012' before: a service has one daemon"],
        ),
        ({"http": {"socket": "/a", "format": "yaml"}}, [".http.format: expected 'xml' or 'json', got 'yaml'"]),
        ({"xenstore": "a/b"}, [".xenstore: expected the name of a tree such as 'squeezed', got 'a/b'"]),
        ({"legacy": {}}, [".legacy: expected unit, or start, stop and pidfile"]),
        ({"legacy": 3}, [".legacy: expected a table, got 3"]),
        ({"legacy": {"unit": "a", "start": ["b"]}}, [".legacy.start: unknown key; known here: unit"]),
        (
            {"legacy": {"start": [], "stop": ["a", 3], "pidfile": "a\0"}},
            [
                ".legacy.start: expected a command as a list of texts, got []",
                ".legacy.stop: expected a command as a list of texts, got ['a', 3]",
                ".legacy.pidfile: expected an absolute path, got 'a\\x00'",
            ],
        ),
        ({"http": "x"}, [".http: expected a table, got 'x'"]),
        ({"http": {}}, [".http.socket: is missing: expected an absolute path"]),
        ({"http": {"socket": "/a", "legacy": "/a"}}, [".http.legacy: must differ from socket"]),
        (
            {"http": {"socket": "/a/x", "legacy": "/b/x"}},
            [".http.legacy: must be in the directory of socket: it is made by a hard link and given back by a rename"],
        ),
        (
            {"http": {"socket": "/a", "dialect": "xenapi"}},
            [".http.dialect: expected 'rpclib' or 'rpclib-2012', got 'xenapi'"],
        ),
        (
            {"http": {"socket": "/a", "listen": ["unix:/a", "tcp:h:70000", "tcp::80", 3, f"tcp:h:{ADDRESS}"]}},
            [
                ".http.listen: expected 'tcp:HOST:PORT', got 'unix:/a'",
                ".http.listen: expected 'tcp:HOST:PORT', got 'tcp:h:70000'",
                ".http.listen: expected 'tcp:HOST:PORT', got 'tcp::80'",
                ".http.listen: expected 'tcp:HOST:PORT', got 3",
                f".http.listen: expected 'tcp:HOST:PORT', got 'tcp:h:{ADDRESS}'",
            ],
        ),
    ],
)
def test_each_mistake_of_a_service_has_its_sentence(service: dict[str, Any], expected: list[str]) -> None:
    """Unknown keys, wrong types and contradictions name the key, the value and what was expected."""
    found = problems({"services": {"squeezed": {"xenstore": "squeezed"} | service}})
    assert found == [f"services.squeezed{line}" for line in expected]


def test_a_service_is_a_table_with_the_door_it_is_reached_by() -> None:
    """A service that is no table, or whose way to the legacy daemon is no door of it, is refused."""
    assert problems({"services": {"squeezed": 3}}) == ["services.squeezed: expected a table, got 3"]
    assert problems({"services": {"squeezed": {"http": {"socket": "/a"}, "reach": "xenstore"}}}) == [
        "services.squeezed.reach: xenstore is no door of this service"
    ]


def test_a_service_may_have_other_doors_and_another_dialect() -> None:
    """The dialect stands in the service's table or beside a socket; what the HTTP socket speaks comes from the data."""
    framed = {"socket": "/a.json"}
    for table in ({"framed": framed, "dialect": "rpclib-2012"}, {"framed": framed | {"dialect": "rpclib-2012"}}):
        parsed = parse({"services": {"xenopsd": table}}, {}).services["xenopsd"]
        assert parsed.framed == SocketSettings(Path("/a.json"), Path("/a.json.legacy"))
        assert (parsed.dialect, parsed.reach) == ("rpclib-2012", "framed")
    services = parse(
        {"services": {"cluster": {"http": {"socket": "/c"}}, "xapi": {"http": {"socket": "/x"}}}}, {}
    ).services
    assert services["cluster"].http is not None
    assert services["cluster"].http.format == "json"
    assert services["xapi"].dialect == "xenapi"
    assert parse({"services": {"perfmon": {"datagram": "@perfmon"}}}, {}).services["perfmon"].reach == "datagram"


def test_two_services_cannot_share_a_door() -> None:
    """A socket, a listening address and a tree belong to one service."""
    door = {"http": {"socket": "/a", "listen": ["tcp:h:1"]}, "xenstore": "tree"}
    assert problems({"services": {"squeezed": door, "xenopsd": door}}) == [
        "services.xenopsd.xenstore: no method of xenopsd can be called there; its doors: framed, http",
        "services.xenopsd: xenstore tree /tree is also a door of squeezed",
        "services.xenopsd: /a is also a door of squeezed",
        "services.xenopsd: /a.legacy is also a door of squeezed",
        "services.xenopsd: tcp:h:1 is also a door of squeezed",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[bus", "Expected ']' at the end of a table"),
        (b"x\xff", "expected UTF-8 text, got byte 0xff at 1"),
        (b"x = 1", "x: unknown key"),
    ],
)
def test_what_is_no_settings_file(content: bytes, expected: str) -> None:
    """Content that is no text, no TOML or has mistakes is refused by what is wrong with it."""
    with pytest.raises(SettingsError, match=expected):
        decode(content, {})


def tables(**requires: Any) -> dict[str, Any]:
    """Services with a socket each, and what they require."""
    return {
        "services": {
            name: {"http": {"socket": f"/{name}"}, **({} if wanted is None else {"requires": wanted})}
            for name, wanted in requires.items()
        }
    }


def test_a_service_may_require_others_and_be_quiet_for_as_long_as_is_wanted() -> None:
    """Both have a default; requirements keep their order, and two services may need the same one."""
    data = tables(squeezed=None, networkd=[], xenopsd=["squeezed.relay", "networkd.live"], xapi=["squeezed.complete"])
    data["services"]["xapi"]["quiet_hours"] = 0.5
    data["services"]["squeezed"]["quiet_hours"] = 0
    services = parse(data, {}).services
    assert services["squeezed"].requires == services["networkd"].requires == ()
    assert services["xenopsd"].requires == (Requirement("squeezed", Stage.RELAY), Requirement("networkd", Stage.LIVE))
    assert services["xapi"].requires == (Requirement("squeezed", Stage.COMPLETE),)
    hours = {name: service.quiet_hours for name, service in services.items()}
    assert hours == {"squeezed": 0.0, "networkd": 168.0, "xenopsd": 168.0, "xapi": 0.5}
    assert all(isinstance(each, float) for each in hours.values())


FORM = "expected 'SERVICE.STAGE' such as 'squeezed.relay', got"


@pytest.mark.parametrize(
    ("requires", "expected"),
    [
        ("squeezed.relay", ["expected a list of texts, got 'squeezed.relay'"]),
        ({"squeezed": "relay"}, ["expected a list of texts, got {'squeezed': 'relay'}"]),
        (3, ["expected a list of texts, got 3"]),
        (["squeezed"], [f"{FORM} 'squeezed'"]),
        ([".relay"], [f"{FORM} '.relay'"]),
        (["squeezed."], [f"{FORM} 'squeezed.'"]),
        (["squeezed.lvie", "squeezed.Relay"], [f"{FORM} 'squeezed.lvie'", f"{FORM} 'squeezed.Relay'"]),
        ([3, None, ["squeezed.relay"]], [f"{FORM} 3", f"{FORM} None", f"{FORM} ['squeezed.relay']"]),
        (["squeezed.relay", "nosuch.live"], ["no service 'nosuch' in these settings"]),
        (["xapi.live"], ["no service 'xapi' in these settings"]),
        (["b.live", "a.live", "a.relay"], ["no service 'a' in these settings", "no service 'b' in these settings"]),
        (["xenopsd.relay"], ["xenopsd wait for each other"]),
    ],
)
def test_what_is_no_requirement(requires: Any, expected: list[str]) -> None:
    """Each wrong one has its sentence; a service must be among these settings, be it known elsewhere or not."""
    found = problems(tables(squeezed=None, xenopsd=requires))
    assert found == [f"services.xenopsd.requires: {line}" for line in expected]


@pytest.mark.parametrize(
    ("requires", "expected"),
    [
        (
            {"squeezed": ["xenopsd.relay"], "xenopsd": ["squeezed.relay"]},
            "services.squeezed.requires: squeezed, xenopsd wait for each other",
        ),
        (
            {"squeezed": ["xenopsd.off"], "networkd": ["squeezed.live"], "xenopsd": ["networkd.relay"], "rrdd": None},
            "services.networkd.requires: networkd, squeezed, xenopsd wait for each other",
        ),
        (
            # rrdd waits for those in the circle, and is not in it
            {"squeezed": ["xenopsd.relay"], "xenopsd": ["squeezed.relay"], "rrdd": ["squeezed.live"]},
            "services.squeezed.requires: squeezed, xenopsd wait for each other",
        ),
    ],
)
def test_services_cannot_wait_for_each_other(requires: dict[str, Any], expected: str) -> None:
    """Such a circle could never be moved; those in it are named."""
    assert problems(tables(**requires)) == [expected]


def test_a_long_chain_of_requirements_is_no_circle() -> None:
    """Every service waits for the next, some for two."""
    names = ["squeezed", "networkd", "rrdd", "v6d", "gpumon", "xenopsd", "storage"]
    chain: dict[str, Any] = {name: [f"{after}.relay" for after in names[n + 1 : n + 3]] for n, name in enumerate(names)}
    assert len(parse(tables(**chain), {}).services) == len(names)
    chain[names[-1]] = [f"{names[0]}.relay"]
    (found,) = problems(tables(**chain))
    assert found.endswith(f"{', '.join(sorted(names))} wait for each other")


@pytest.mark.parametrize("hours", ["168", True, -1, -0.5, None, [1], float("nan"), float("inf"), 1e6, 10**400])
def test_what_is_no_number_of_hours(hours: Any) -> None:
    """Texts, negative numbers, and those that are none."""
    data = tables(squeezed=None)
    data["services"]["squeezed"]["quiet_hours"] = hours
    expected = f"services.squeezed.quiet_hours: expected a number of hours, 0 or more, got {hours!r}"
    assert problems(data) == [expected]


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "9" * 400, "1e400"])
def test_a_number_of_hours_as_the_file_spells_it(number: str) -> None:
    """What TOML allows and nobody can wait for is refused with its place."""
    content = f'services.squeezed.quiet_hours = {number}\nservices.squeezed.xenstore = "squeezed"'
    with pytest.raises(SettingsError) as caught:
        decode(content.encode(), {})
    assert len(caught.value.problems) == 1
