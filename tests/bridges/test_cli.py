"""The commands about moves, at a control socket that answers as a bridge does: requests, texts, JSON, exit codes."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from bridges import terminal
from bridges.cli import app
from tests.fixtures_host import INTERRUPTIBLE

SETTINGS = """
[bus]
address = "unix:path={directory}/bus"
[state]
directory = "{directory}"
[control]
socket = "{directory}/control"
[services.squeezed]
http = {{ socket = "{directory}/memory", legacy = "{directory}/memory.legacy" }}
"""
Answer = dict[str, Any] | bytes
Cli = Callable[..., tuple[int, str, str]]


class Bridge:
    """The far end of the control socket: what it answers to each verb, and what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "control"
        self.settings = directory / "bridge.toml"
        self.settings.write_text(SETTINGS.format(directory=directory))
        self.answers: dict[str, Answer | Callable[[], Answer]] = {}
        self.asked: list[dict[str, Any]] = []

    def answer(self, line: bytes) -> bytes:
        request = json.loads(line)
        self.asked.append(request)
        answer = self.answers[request["verb"]]
        if callable(answer):
            answer = answer()
        return answer if isinstance(answer, bytes) else json.dumps({"ok": True} | answer).encode() + b"\n"


@pytest.fixture
def bridge() -> Iterator[Bridge]:
    """A bridge that answers at its control socket."""

    class Connection(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            for line in self.rfile:
                answer = bridge.answer(line)
                if not answer:
                    return
                self.wfile.write(answer)

    directory = Path(f"/tmp/xc{secrets.token_hex(4)}")
    directory.mkdir()
    bridge = Bridge(directory)
    try:
        with socketserver.ThreadingUnixStreamServer(str(bridge.path), Connection) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                yield bridge
            finally:
                server.shutdown()
                thread.join()
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def cli(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """A function that runs `xcp-bridge` with arguments, 100 columns wide: exit code, output and errors."""
    monkeypatch.setattr(terminal.out, "_width", 100)
    runner = CliRunner(env={"XCP_BRIDGE_SETTINGS": str(bridge.settings)})

    def run(*arguments: str) -> tuple[int, str, str]:
        result = runner.invoke(app, arguments, catch_exceptions=False)
        return result.exit_code, _trimmed(result.stdout), result.stderr

    return run


def _trimmed(text: str) -> str:
    """Without the spaces that fill a line up."""
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


GREEN = {"gate": "alarms", "verdict": "pass", "text": "none", "mend": ""}
RED = {"gate": "reads", "verdict": "fail", "text": "2 of 90 differ [get]", "mend": "look at get"}
DATALESS = {"gate": "round trips", "verdict": "no data", "text": "none made", "mend": "let callers call"}
RECEIPT = {
    "service": "squeezed", "origin": "shadow", "target": "live", "epoch": 8,
    "held_seconds": 0.1483, "held_limit_seconds": 5.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("gates", "more", "code"),
    [
        ([GREEN], [], 0),
        ([GREEN, DATALESS], [], 3),
        ([DATALESS, RED], [], 1),
        ([DATALESS, RED], ["--override", "ticket 7"], 0),
        ([], [], 0),
    ],
)
def test_a_plan(bridge: Bridge, cli: Cli, gates: list[dict[str, str]], more: list[str], code: int) -> None:
    """A dry run's exit code says what its gates say; nobody has to give a reason for it."""
    bridge.answers["stage"] = {
        "plan": ["shadow to live: hold", "commit [durable]"], "gates": gates, "promised": {"held_seconds_limit": 5.0},
    }  # fmt: skip
    found, output, errors = cli("stage", "squeezed", "live", "--dry-run", *more)
    assert (found, errors) == (code, "")
    assert output.startswith("1. shadow to live: hold\n2. commit [durable]\n")
    assert output.endswith("new calls will wait for at most 5000 ms\n")
    found, output, _ = cli("stage", "squeezed", "live", "--dry-run", "--json", *more)
    assert found == code
    assert json.loads(output) == bridge.answers["stage"]
    assert bridge.asked[0] == {
        "verb": "stage", "service": "squeezed", "stage": "live", "reason": "", "skip": None,
        "override": more[-1] if more else None, "dry_run": True, "accept_in_doubt": False,
    }  # fmt: skip


GATES_SAID = """\
          pass  alarms: none
          fail  reads: 2 of 90 differ [get]
                -> look at get
       no data  round trips: none made
                -> let callers call
"""


def test_a_move(bridge: Bridge, cli: Cli) -> None:
    """The gates that it passed, and how long calls were held, against what was promised."""
    late = {**RECEIPT, "held_seconds": 12.2}
    bridge.answers["stage"] = {"receipts": [RECEIPT, late], "gates": [GREEN, RED, DATALESS]}
    move = ("stage", "squeezed", "live", "--reason", "week 2", "--skip", "s", "--override", "o", "--accept-in-doubt")
    assert cli(*move) == (
        0,
        GATES_SAID + "squeezed: shadow -> live, epoch 8, calls held for 148 ms of at most 5000 ms\n"
        "squeezed: shadow -> live, epoch 8, calls held for 12 s, more than 5000 ms\n",
        "",
    )
    assert json.loads(cli(*move, "--json")[1]) == [RECEIPT, late]
    assert bridge.asked[0] == {
        "verb": "stage", "service": "squeezed", "stage": "live", "reason": "week 2", "skip": "s",
        "override": "o", "dry_run": False, "accept_in_doubt": True,
    }  # fmt: skip


@pytest.mark.parametrize(("no_data", "code"), [(False, 1), (True, 3)])
def test_a_refused_move(bridge: Bridge, cli: Cli, no_data: bool, code: int) -> None:
    """The gates that refused it; a lack of data is no verdict."""
    refusal = {"ok": False, "error": "stays", "refused": True, "no_data": no_data, "gates": [GREEN, RED, DATALESS]}
    bridge.answers["stage"] = refusal
    move = ("stage", "squeezed", "live", "--reason", "r")
    assert cli(*move) == (code, GATES_SAID, "xcp-bridge: stays\n")
    found, output, errors = cli(*move, "--json")
    assert (found, errors) == (code, "xcp-bridge: stays\n")
    assert {"ok": False, **json.loads(output)} == refusal
    bridge.answers["stage"] = {"ok": False, "error": "no stage 'alive'", "refused": False}
    assert cli("stage", "squeezed", "alive", "--reason", "r") == (2, "", "xcp-bridge: no stage 'alive'\n")


def test_kill(bridge: Bridge, cli: Cli) -> None:
    """Back to the legacy daemon: each step's receipt, then what came of it."""
    bridge.answers["kill"] = {"receipts": [RECEIPT], "text": "the legacy daemon answers [pid 7]"}
    code, output, _ = cli("kill", "squeezed", "--reason", "3 a.m.", "--accept-in-doubt")
    assert code == 0
    assert output.splitlines()[1:] == ["the legacy daemon answers [pid 7]"]
    assert bridge.asked == [{"verb": "kill", "service": "squeezed", "reason": "3 a.m.", "accept_in_doubt": True}]
    assert json.loads(cli("kill", "squeezed", "--reason", "r", "--json")[1]) == bridge.answers["kill"]


def test_acknowledge(bridge: Bridge, cli: Cli) -> None:
    """What ended, and how many calls in doubt somebody knows of now."""
    bridge.answers["acknowledge"] = {"text": "squeezed may be moved again", "in_doubt": 2}
    acknowledge = ("acknowledge", "squeezed", "--reason", "looked")
    assert cli(*acknowledge) == (0, "squeezed may be moved again\ncalls in doubt taken note of: 2\n", "")
    assert bridge.asked == [{"verb": "acknowledge", "service": "squeezed", "reason": "looked"}]
    assert json.loads(cli(*acknowledge, "--json")[1]) == bridge.answers["acknowledge"]


EXPLAINED = {
    "call": {"number": 7, "method": "reserve_memory", "arguments": {"kib": 4}},
    "door": "http",
    "rules": [
        {"rule": "hold", "verdict": "does not apply", "text": "it is not being moved"},
        {"rule": "stage", "verdict": "decides", "text": "the authority in [relay] is legacy"},
        {"rule": "rest", "verdict": "not reached", "text": "as the one above decides"},
    ],
    "result": "executed by the legacy side",
}
RULES = """\
  1  does not apply  hold   it is not being moved
  2  decides         stage  the authority in [relay] is legacy
  3  not reached     rest   as the one above decides
-> executed by the legacy side
"""


def test_explain(bridge: Bridge, cli: Cli) -> None:
    """A call as it could be made, or one that was: every rule in its order, with why."""
    bridge.answers["explain"] = EXPLAINED
    heading = "reserve_memory of squeezed, at the http door\n"
    call = ("explain", "squeezed", "reserve_memory")
    assert cli(*call, "session_id=s", "kib=4", "--door", "http") == (0, heading + RULES, "")
    assert cli(*call)[0] == 0
    lines = '  number      7\n  method      reserve_memory\n  arguments   {"kib": 4}\n'
    assert cli("explain", "squeezed", "--call", "7") == (0, heading + lines + RULES, "")
    assert json.loads(cli(*call, "--json")[1]) == EXPLAINED
    given, without, made, _ = bridge.asked
    values = {"session_id": "s", "kib": 4, "debug_info": "xcp-bridge call"}
    assert given == {
        "verb": "explain", "service": "squeezed", "method": "reserve_memory", "arguments": values, "door": "http",
    }  # fmt: skip
    assert without == {**given, "arguments": None, "door": "bus"}
    assert made == {"verb": "explain", "service": "squeezed", "call": 7}


MOVES = [
    {
        "id": 1, "time": "2025-11-02T10:11:12.123+00:00", "service": "squeezed", "verb": "stage", "origin": "relay",
        "target": "live", "epoch": 2, "who": "uid 0", "reason": "week [2]", "skip": None, "override": None,
        "outcome": "gate reads is red", "held_seconds": None, "watched": None,
    },
    {
        "id": 2, "time": "2025-11-03T10:11:12.123+00:00", "service": "squeezed", "verb": "stage", "origin": "relay",
        "target": "live", "epoch": 2, "who": "uid 0", "reason": "again", "skip": "seen elsewhere", "override": "known",
        "outcome": "done", "held_seconds": 0.148, "watched": "quiet for 60 s",
    },
]  # fmt: skip
AUDITED = """\
id  when (UTC), who      what                  why, and what came of it
1   2025-11-02 10:11:12  squeezed: stage       week [2]
    uid 0                relay -> live         -> gate reads is red
                         epoch 2
2   2025-11-03 10:11:12  squeezed: stage       again
    uid 0                relay -> live         skip: seen elsewhere
                         epoch 2, held 148 ms  override: known
                                               watched: quiet for 60 s
                                               -> done
"""


def test_audit(bridge: Bridge, cli: Cli) -> None:
    """Attempts in the order in which they were made, with who, why, and what came of them."""
    bridge.answers["audit"] = {"entries": MOVES}
    assert cli("audit") == (0, AUDITED, "")
    assert json.loads(cli("audit", "squeezed", "--limit", "7", "--json")[1]) == MOVES
    assert bridge.asked == [
        {"verb": "audit", "service": None, "limit": 50},
        {"verb": "audit", "service": "squeezed", "limit": 7},
    ]
    bridge.answers["audit"] = {"entries": []}
    assert cli("audit") == (0, "nothing has been moved yet\n", "")


ID = "3f2b8a54-9a57-4d0c-9a27-0f6f2d4f1b11"
HANDLES = {
    "handles": [
        {
            "kind": "session", "handle": f"OpaqueRef:{ID}", "native": f"OpaqueRef:9{ID[1:]}", "home": "legacy",
            "side": "bus", "issued": "2025-11-03T10:11:12.123+00:00", "state": "open",
        },
        {
            "kind": "task", "handle": "7", "native": "7", "home": "legacy", "side": "legacy",
            "issued": "2025-11-03T10:11:12.123+00:00", "state": "closed",
        },
    ],
    "reservations": [{"session": "xenopsd", "id": ID, "kib": 1048576, "state": "open"}],
    "summary": {"open": 1, "by_kind": {"session": 1, "task": 1}},
}  # fmt: skip
HANDLED = """\
kind     handle                                           home    side    state   issued
session  OpaqueRef:3f2b8a54-9a57-4d0c-9a27-0f6f2d4f1b11   legacy  bus     open    11-03 10:11
         =OpaqueRef:9f2b8a54-9a57-4d0c-9a27-0f6f2d4f1b11
task     7                                                legacy  legacy  closed  11-03 10:11

reservations
session  id                                        kib  state
xenopsd  3f2b8a54-9a57-4d0c-9a27-0f6f2d4f1b11  1048576  open
squeezed: 1 open, by kind (1 session, 1 task)
"""


def test_handles(bridge: Bridge, cli: Cli) -> None:
    """The handle that callers know, the issuer's own below it where that is another; what the store keeps."""
    bridge.answers["handles"] = HANDLES
    assert cli("handles", "squeezed") == (0, HANDLED, "")
    assert json.loads(cli("handles", "squeezed", "--json")[1]) == HANDLES
    bridge.answers["handles"] = {"handles": [], "reservations": None, "summary": {}}
    assert cli("handles", "squeezed") == (0, "squeezed has given out no handle that is kept\n", "")
    assert bridge.asked[0] == {"verb": "handles", "service": "squeezed"}


def test_doctor(bridge: Bridge, cli: Cli) -> None:
    """What check finds comes first; a bridge that cannot be asked is a finding too."""
    bridge.answers["doctor"] = {
        "findings": [{"place": "journal", "verdict": "warning", "text": "is large [1 GB]", "mend": "restart"}]
    }
    code, output, errors = cli("doctor")
    checked = cli("check", "--message-switch", "/nosuch")[1]
    assert (code, errors) == (1, "")
    assert output == checked + "       warning  journal: is large [1 GB]\n                -> restart\n"
    *_, last = json.loads(cli("doctor", "--json")[1])
    assert bridge.answers["doctor"] == {"findings": [last]}
    bridge.answers["doctor"] = {"ok": False, "error": "unknown verb 'doctor'", "refused": False}
    assert cli("doctor")[:2] == (1, checked + "could not tell  bridge: unknown verb 'doctor'\n")


def calls(**more: int) -> dict[str, int]:
    return {"answered": 0, "in_flight": 0, "held": 0, "in_doubt": 0, "abandoned": 0, "refused": 0, **more}


STATUS: dict[str, dict[str, Any]] = {
    "squeezed": {
        "stage": "shadow", "authority": "legacy", "epoch": 7,
        "doors": {"bus": "bridge", "http": "bridge", "framed": "bridge", "xenstore": "legacy"},
        "alarms": {}, "calls": calls(answered=123456, in_flight=3), "faults": {"Declared": 12},
        "frozen": None, "in_doubt_open": 0, "held_now": 0, "watching": "",
        "comparison": {
            "sent": 90, "same": 80, "different": 2, "pending": 3, "dropped": {"queue full": 7, "late": 1},
            "methods": {"get_diagnostics": {"same": 80, "different": 2}},
            "fields": {
                f"get_diagnostics.{place}": {"count": 2, "legacy": "[1]", "bus": "[2]"} for place in "abcd"
            },
        },
        "round_trips": {"made": 123456, "same": 123456, "different": 0, "dropped": {}},
        "observed": {"exchanges": {"seen": 4096, "complete": 4090}},
        "unused": {"bus": None, "http": 0.4, "framed": 500000.0, "xenstore": 1300.0},
        "next": ["live", "relay", "observe", "off"],
    },
    "xenopsd": {
        "stage": "live", "authority": "bus", "epoch": 12, "doors": {"bus": "bus daemon", "http": "bridge"},
        "alarms": {"NO_AUTHORITY": "the [bus] daemon is gone"}, "calls": calls(answered=99, in_doubt=2), "faults": {},
        "frozen": "the stages [all] are those of stages.json; acknowledge it when they are right",
        "in_doubt_open": 2, "held_now": 4, "watching": "for 42 s more",
        "next": ["complete (with --override TEXT)", "shadow"],
    },
    "networkd": {
        "stage": "off", "authority": "legacy", "epoch": 0, "doors": {"bus": "closed", "http": "legacy"},
        "alarms": {}, "calls": calls(), "faults": {},
        "round_trips": {"made": 0, "same": 0, "different": 0, "dropped": {}}, "unused": {}, "next": [],
    },
}  # fmt: skip
STATUS_SAID = """\
service   stage   authority  epoch  doors             calls
squeezed  shadow  legacy     7      bus: bridge       123456 answered
                                    http: bridge      3 in flight
                                    framed: bridge    12 Declared
                                    xenstore: legacy
xenopsd   live    bus        12     bus: bus daemon   99 answered
                                    http: bridge      2 in doubt
networkd  off     legacy     0      bus: closed       0 answered
                                    http: legacy

squeezed  comparison   90 sent, 80 same, 2 different, 3 pending, 8 dropped (7 queue full, 1 late)
                       get_diagnostics.a differs, 2 times: legacy [1], bus [2]
                       get_diagnostics.b differs, 2 times: legacy [1], bus [2]
                       get_diagnostics.c differs, 2 times: legacy [1], bus [2]
          round trips  123456 made, 123456 same, 0 different
          observed     exchanges (4096 seen, 4090 complete)
          last call    bus never, http 0 s ago, framed 6 d ago, xenstore 22 min ago
          next         live, relay, observe, off
xenopsd   frozen       the stages [all] are those of stages.json; acknowledge it when they are right
          in doubt     2 calls; take note of them: xcp-bridge acknowledge xenopsd --reason TEXT
          held         new calls wait until the move is over
          watching     for 42 s more
          next         complete (with --override TEXT), shadow
"""


def test_status(bridge: Bridge, cli: Cli) -> None:
    """A table, below it what there is to say about each service, and the alarms."""
    bridge.answers["status"] = {"services": STATUS}
    assert cli("status") == (0, STATUS_SAID, "xenopsd: NO_AUTHORITY: the [bus] daemon is gone\n")
    assert json.loads(cli("status", "--json")[1]) == STATUS
    assert "squeezed  comparison" in cli("stage", "squeezed")[1]
    assert "next" not in cli("stage", "networkd")[1]
    assert json.loads(cli("stage", "networkd", "--json")[1]) == STATUS["networkd"]
    code, _, errors = cli("stage", "nosuch")
    assert (code, errors) == (
        2, "xcp-bridge: no service 'nosuch' in the settings; known: squeezed, xenopsd, networkd\n",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("stage", "squeezed", "live"), "a move needs --reason TEXT"),
        (("stage", "squeezed", "live", "--reason", "r", "--override", " "), "--override needs a TEXT"),
        (("kill", "squeezed"), "a kill needs --reason TEXT"),
        (("kill", "squeezed", "--reason", " "), "a kill needs --reason TEXT"),
        (("acknowledge", "squeezed"), "an acknowledgement needs --reason TEXT"),
        (("explain", "squeezed"), "explain needs a METHOD, or --call NUMBER"),
        (("explain", "squeezed", "login", "--call", "7"), "and not both"),
        (("explain", "nosuch", "login"), "no service 'nosuch' in the settings; known: squeezed"),
        (("explain", "squeezed", "reserve"), "squeezed has no method 'reserve'; did you mean reserve_memory?"),
        (("explain", "squeezed", "qqq"), "squeezed has no method 'qqq'; see xcp-bridge idl list squeezed"),
        (("explain", "squeezed", "reserve_memory", "kib=1"), "reserve_memory needs session_id=..."),
        (("explain", "squeezed", "reserve_memory", "kib"), "expected ARG=JSON, got 'kib'"),
        (("explain", "squeezed", "--call", "x"), "Invalid value for '--call'"),
        (("audit", "--limit", "0"), "Invalid value for '--limit'"),
        (("handles",), "Missing argument"),
        (("handles", "squeezed", "--door", "bus"), "No such option: --door"),
        (("doctor", "--settings", "/nosuch.toml"), "/nosuch.toml: cannot be read: No such file or directory"),
    ],
)
def test_wrong_usage(bridge: Bridge, cli: Cli, arguments: tuple[str, ...], said: str) -> None:
    """Exit code 2, what was expected, and nobody was asked."""
    code, output, errors = cli(*arguments)
    assert (code, output) == (2, "")
    assert said in errors
    assert bridge.asked == []


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("status", "status"),
        ("status", "status --watch"),
        ("status", "stage squeezed"),
        ("stage", "stage squeezed live --reason r"),
        ("kill", "kill squeezed --reason r"),
        ("acknowledge", "acknowledge squeezed --reason r"),
        ("explain", "explain squeezed login"),
        ("audit", "audit"),
        ("handles", "handles squeezed"),
    ],
)
def test_no_answer(bridge: Bridge, cli: Cli, verb: str, words: str) -> None:
    """Whatever becomes of the question, one line says so; a bridge without data or out of reach is 3."""
    arguments = words.split()
    said: Answer
    for said, code, text in (
        (b"", 3, f"the bridge at {bridge.path} closed the connection without an answer"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", 3, "is no bridge: it said b'HTTP/1.1 400 Bad Request"),
        (b"7\n", 3, "is no bridge"),
        ({"ok": False, "error": "nothing seen [yet]", "refused": True, "no_data": True}, 3, "nothing seen [yet]"),
        ({"ok": False, "error": "no", "refused": True}, 1, "no"),
        ({"ok": False, "error": "unknown verb", "refused": False}, 2, "unknown verb"),
    ):
        bridge.answers[verb] = said
        found, output, errors = cli(*arguments)
        assert (found, output) == (code, ""), errors
        assert errors.startswith("xcp-bridge: ")
        assert text in errors
        assert errors.count("\n") == 1
    bridge.path.unlink()
    code, _, errors = cli(*arguments)
    text = f"no bridge answers at {bridge.path}: No such file or directory; is xcp-bridge.service running?"
    assert (code, errors) == (3, f"xcp-bridge: {text}\n")


class Typed:
    """`xcp-bridge` as a person runs it: on a terminal of 100 columns."""

    def __init__(self, bridge: Bridge, *arguments: str) -> None:
        self._ours, theirs = os.openpty()
        environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        environment |= {"XCP_BRIDGE_SETTINGS": str(bridge.settings), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
        command = [sys.executable, "-c", INTERRUPTIBLE, *arguments]
        self.process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self.text = ""

    def __enter__(self) -> Typed:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def until(self, text: str) -> None:
        """Reads until that is on the terminal."""
        deadline = time.monotonic() + 30
        while text not in self.text:
            assert select.select([self._ours], [], [], deadline - time.monotonic())[0], self.text
            self.text += os.read(self._ours, 65536).decode()

    def end(self) -> int:
        """Reads to the end; the exit code."""
        with contextlib.suppress(OSError):  # the other end of a terminal that is closed
            while True:
                self.text += os.read(self._ours, 65536).decode()
        return self.process.wait(30)


def test_emphasis(bridge: Bridge) -> None:
    """On a terminal a refused attempt is red, and the rule that decides bold."""
    bridge.answers = {"audit": {"entries": MOVES}, "explain": EXPLAINED}
    with Typed(bridge, "audit") as audit:
        assert audit.end() == 0
    refused, done = audit.text.split("week [2]")[1].split("again")
    assert "\x1b[31m-> gate reads is red" in refused
    assert "\x1b[31m" not in done
    with Typed(bridge, "explain", "squeezed", "login") as explain:
        assert explain.end() == 0
    _, first, second, third, _ = explain.text.splitlines()
    assert ["\x1b[1m" in line for line in (first, second, third)] == [False, True, False]


def watched(bridge: Bridge) -> Callable[[], Answer]:
    """A status that counts how often it was asked for."""

    def answer() -> Answer:
        return {"services": {"xenopsd": STATUS["xenopsd"] | {"calls": calls(answered=100 + len(bridge.asked))}}}

    return answer


def test_watching_on_a_terminal(bridge: Bridge) -> None:
    """The picture is drawn again where it stands, alarms and all; Ctrl-C is a good end."""
    bridge.answers["status"] = watched(bridge)
    with Typed(bridge, "status", "--watch") as watch:
        watch.until("102 answered")
        watch.until("NO_AUTHORITY: the [bus] daemon is gone")
        watch.process.send_signal(signal.SIGINT)
        assert watch.end() == 0
    assert "\x1b[1A" in watch.text.split("101 answered")[1].split("102 answered")[0]
    assert "Traceback" not in watch.text


def test_watching_a_bridge_that_ends(bridge: Bridge) -> None:
    """The last picture stays, and below it stands what happened."""
    bridge.answers["status"] = watched(bridge)
    with Typed(bridge, "status", "--watch") as watch:
        watch.until("101 answered")
        bridge.answers["status"] = b""
        assert watch.end() == 3
    assert watch.text.rstrip().splitlines()[-1].endswith("closed the connection without an answer")


def test_watching_into_a_pipe(bridge: Bridge) -> None:
    """Printed again, without a terminal's codes."""
    bridge.answers["status"] = watched(bridge)
    command = [sys.executable, "-c", INTERRUPTIBLE, "status", "--watch", "--settings", str(bridge.settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            text = b""
            while b"102 answered" not in text:
                line = process.stdout.readline()
                assert line, text
                text += line
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert text.count(b"service  stage") == 2
    assert b"\x1b" not in text


# Ctrl-C in the moment in which a module is looked for.
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)

wanted, sys.argv = sys.argv[1], ["xcp-bridge", "status", "--settings", "/nosuch.toml"]

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
from bridges.__main__ import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "bridges.cli", "bridges.cli_status"])
def test_ctrl_c_while_python_loads(module: str) -> None:
    """It ends as any program does, without a word."""
    said = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, module],
        check=False,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        timeout=50,
    )
    assert (said.returncode, said.stdout, said.stderr) == (-signal.SIGINT, b"", b"")
