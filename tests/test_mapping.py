"""The mapping reference: made from the interface data, complete, its links lead somewhere, its lines can be pasted."""

from __future__ import annotations

import asyncio
import re
import shlex
import shutil
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bridges.dbus_translation import Translation
from bridges.interfaces import model
from dbus_side import names
from dbus_side.bus import Bus
from dbus_side.messages import MethodCall
from dbus_side.signatures import Variant
from scripts.busctl_line import ADDRESS, Lines, words
from scripts.mapping import anchor
from scripts.publish import ROOT, present, published

PAGES = {path: path.read_text() for path in sorted((ROOT / "docs" / "mapping").rglob("*.md"))}
TRANSLATIONS = {stem: Translation(model.load(stem)) for stem in model.available()}
METHODS = [
    (translation, method, translation.of(method))
    for translation in TRANSLATIONS.values()
    for method in translation.service.methods()
]
FORMS = {(form.interface, form.member): form for _, _, form in METHODS}


def test_everything_generated_is_as_the_data_say() -> None:
    """dbus_side/idl and docs/mapping: after a change of bridges/interfaces, `make idl`."""
    there, wanted = present(), published()
    assert sorted(name for name in there | wanted if there.get(name) != wanted.get(name)) == []


def lines_of(text: str) -> list[str]:
    """Every line to paste of a page: the blocks, and the rows of fields put behind their head."""
    whole = re.findall(r"^busctl .*$", text, re.MULTILINE)
    if "## Fields\n" in text:
        head = whole.pop()
        rows = re.findall(r"^\| .*\| `([^|]*)` \|$", text.partition("## Fields\n")[2], re.MULTILINE)
        whole += [f"{head} {row}" for row in rows]
    return whole


PASTED = [shlex.split(line) for text in PAGES.values() for line in lines_of(text)]


def target_of(words: list[str]) -> tuple[str, str, str, str]:
    """Service, object path, interface and member of a line."""
    at = words.index("call")
    service, path, interface, member = words[at + 1 : at + 5]
    return service, path, interface, member


def test_every_method_has_its_line() -> None:
    """Once each, at the right object; its page shows the legacy name."""
    expected = [(names.service_name(m.service), form.path, form.interface, form.member) for _, m, form in METHODS]
    assert Counter(map(target_of, PASTED)) == Counter(expected)
    for _, method, form in METHODS:
        page = ROOT / "docs" / "mapping" / method.service / f"{method.object}{method.version}.md"
        assert f"# {form.interface}\n" in PAGES[page]
        assert f"## {method.name}\n" in PAGES[page] or f"`{method.name}`" in PAGES[page]


def test_links_lead_somewhere() -> None:
    """To a file that is there, and to a heading in it; no two headings of a page have one anchor."""
    anchors = {path: Counter(map(anchor, re.findall(r"^#+ (.*)$", text, re.MULTILINE))) for path, text in PAGES.items()}
    for path, text in PAGES.items():
        assert [name for name, count in anchors[path].items() if count > 1] == [], path
        for target in set(re.findall(r"\]\(([^)]*)\)", text)):
            file, _, heading = target.partition("#")
            found = (path.parent / file).resolve()
            assert found.exists(), (path, target)
            assert not heading or heading in anchors[found], (path, target)


def test_tables_are_whole() -> None:
    """Every row has as many cells as the head of its table."""
    for path, text in PAGES.items():
        for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
            assert len({row.count("|") for row in table.splitlines()}) == 1, (path, table[:200])


@pytest.mark.parametrize(
    ("signature", "body", "written"),
    [
        ("", (), []),
        ("sbxd", ("a b", True, -1, 0.5), ["a b", "true", "-1", "0.5"]),
        ("asaax", (["a", "b"], [[1, 2], []]), ["2", "a", "b", "2", "2", "1", "2", "0"]),
        ("a{s(xs)}b", ({"k": (1, "v"), "l": (2, "w")}, False), ["2", "k", "1", "v", "l", "2", "w", "false"]),
        (
            "(sv)v",
            (("Idle", Variant("s", "")), Variant("av", [Variant("g", "")])),
            ["Idle", "s", "", "av", "1", "g", ""],
        ),
    ],
)
def test_a_body_in_words(signature: str, body: tuple[Any, ...], written: list[str]) -> None:
    """Arrays begin with their length, variants with their signature."""
    assert list(words(signature, body)) == written


def test_the_examples_fit() -> None:
    """Whatever a line sends is taken by the bridge; what may be left out is."""
    for translation, method, form in METHODS:
        arguments = Lines(translation).arguments(method)
        assert form.read_arguments(form.write_arguments(arguments)) == {
            name: value for name, value in arguments.items() if value is not None
        }, method.name


@pytest.fixture
async def received(bus_address: str) -> AsyncIterator[list[MethodCall]]:
    """The calls that reach any of our services on a private bus; each is answered without a result."""
    calls: list[MethodCall] = []

    async def answer(call: MethodCall) -> tuple[str, tuple[Any, ...]]:
        calls.append(call)
        return "", ()

    bus = await Bus.connect(bus_address)
    bus.serve(answer)
    for service in model.services():
        await bus.request_name(names.service_name(service))
    yield calls
    await bus.close()


def different_lines() -> list[list[str]]:
    """One line of every form: lines that differ in nothing but texts are alike to busctl."""
    texts = {p.name for _, method, _ in METHODS for p in method.parameters}
    found: dict[tuple[str, ...], list[str]] = {}
    for line in PASTED:
        options = tuple(line[2 : line.index("call")])
        tail = tuple("text" if w in texts or w.startswith("OpaqueRef:") else w for w in line[line.index("call") + 5 :])
        found.setdefault(options + tail, line)
    return list(found.values())


async def test_busctl_takes_the_lines(received: list[MethodCall], bus_address: str) -> None:
    """A line of every form, pasted: it arrives with the declared signature, and the bridge takes its arguments."""
    assert shutil.which("busctl"), "busctl is missing: install systemd"
    two_at_once = asyncio.Semaphore(2)

    async def paste(line: list[str]) -> None:
        command = [word.replace(ADDRESS, bus_address) for word in line]
        assert command != line
        async with two_at_once:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
            )
            output, _ = await process.communicate()
        assert (process.returncode, output) == (0, b""), line

    lines = different_lines()
    async with asyncio.TaskGroup() as tasks:
        for line in lines:
            tasks.create_task(paste(line))
    assert Counter((c.destination, c.path, c.interface, c.member) for c in received) == Counter(map(target_of, lines))
    for call in received:
        form = FORMS[str(call.interface), call.member]
        assert call.signature == form.input_signature
        form.read_arguments(call.body)
