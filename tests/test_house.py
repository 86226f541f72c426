"""What holds for the house as a whole: its floors, its budgets, its documentation."""

from __future__ import annotations

import ast
import contextlib
import graphlib
import re
from pathlib import Path

import grimp
import pytest

from bridges import cutover, faults

ROOT = Path(__file__).parents[1]
PACKAGES = ("bridges", "xenstore_rpc", "xmlrpc_gateway", "dbus_side")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_modules_and_functions_keep_their_budget(module: Path) -> None:
    """A module has at most 600 lines and a function at most 60: over that, split by noun."""
    text = (ROOT / module).read_text()
    assert len(text.splitlines()) <= 600
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


def test_imports_have_no_cycle() -> None:
    """No module needs another one to have been imported before it."""
    graph = grimp.build_graph(*PACKAGES, exclude_type_checking_imports=True, cache_dir=None)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert imports["bridges.doors"] >= {"bridges.dispatch", "xenstore_rpc.records"}
    graphlib.TopologicalSorter(imports).prepare()


def test_the_documentation_lists_what_the_tables_hold() -> None:
    """docs/house.md names every stage that can be entered and every kind of fault."""
    text = (ROOT / "docs" / "house.md").read_text()
    assert [kind for kind in faults.Kind if f"`{kind}`" not in text] == []
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    table = {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}
    for stage, meaning in cutover.MEANINGS.items():
        assert table[stage] == [meaning.authority, meaning.sockets, meaning.tree, meaning.bus, meaning.compared]


def test_the_diagram_shows_the_moves_that_are_legal() -> None:
    """Every arrow of docs/house.md is one flip, and every flip an arrow; kill and skip stand where they belong."""
    text = (ROOT / "docs" / "house.md").read_text()
    arrows = re.findall(r"^    (\w+) --> (\w+)(?:: (\w+))?$", text, re.MULTILINE)
    drawn = {(origin, target): note for origin, target, note in arrows}
    expected: dict[tuple[str, str], str] = {}
    for origin in cutover.LADDER:
        for target in cutover.LADDER:
            with contextlib.suppress(cutover.IllegalMove):
                if cutover.moves(origin, target, skips=True) == (target,):
                    expected[origin, target] = ""
                    if cutover.kill_target(origin) is target:
                        expected[origin, target] = "kill"
                    if cutover.LADDER.index(target) - cutover.LADDER.index(origin) > 1:
                        expected[origin, target] = "skip"
    assert drawn == expected
