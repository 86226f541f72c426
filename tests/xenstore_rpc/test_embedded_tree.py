"""The embedded store's tree against a plain dictionary, and its transactions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xenstore_rpc.embedded_tree import Change, Node, NodePath, Refused, Snapshot, View

PATHS = st.lists(st.sampled_from("ab"), min_size=1, max_size=3).map(tuple)
STEPS = st.lists(st.tuples(st.sampled_from(["write", "mkdir", "rm"]), PATHS, st.binary(max_size=2)), max_size=12)


def apply(view: View, steps: list[tuple[str, NodePath, bytes]]) -> None:
    for kind, path, value in steps:
        try:
            if kind == "write":
                view.write(path, value)
            elif kind == "mkdir":
                view.mkdir(path)
            else:
                view.rm(path)
        except Refused:
            pass


def flat(node: Node, path: NodePath = ()) -> dict[NodePath, bytes]:
    found = {path: node.value}
    for name, child in node.children.items():
        found |= flat(child, (*path, name))
    return found


def model(steps: list[tuple[str, NodePath, bytes]]) -> dict[NodePath, bytes]:
    nodes: dict[NodePath, bytes] = {(): b""}
    for kind, path, value in steps:
        if kind == "rm":
            nodes = {key: held for key, held in nodes.items() if key[: len(path)] != path}
            continue
        for end in range(len(path)):
            nodes.setdefault(path[:end], b"")
        nodes[path] = value if kind == "write" else nodes.get(path, b"")
    return nodes


@given(STEPS)
def test_tree_is_a_dictionary_of_paths(steps: list[tuple[str, NodePath, bytes]]) -> None:
    """Writes, directories and removals give what a flat model gives."""
    view = View(Node())
    apply(view, steps)
    assert flat(view.root) == model(steps)


@given(STEPS, STEPS)
def test_lone_transaction_equals_direct_changes(
    before: list[tuple[str, NodePath, bytes]], steps: list[tuple[str, NodePath, bytes]]
) -> None:
    """A transaction that nobody disturbs gives the same tree and tells watchers the same."""
    direct, live = View(Node()), View(Node())
    apply(direct, before)
    apply(live, before)
    direct.changes.clear()
    live.changes.clear()
    apply(direct, steps)
    snapshot = Snapshot(live.root)
    apply(snapshot, steps)
    assert live.changes == []
    snapshot.commit(live)
    assert flat(live.root) == flat(direct.root)
    assert live.changes == direct.changes


def committed(inside: str, outside: str) -> bool:
    view = View(Node())
    for path in (("a",), ("a", "x"), ("b",)):
        view.write(path, b"0")
    actions = {
        "read a": lambda view: view.read(("a",)),
        "list a": lambda view: view.directory(("a",)),
        "mkdir new": lambda view: view.mkdir(("new",)),
        "write a": lambda view: view.write(("a",), b"1"),
        "write new": lambda view: view.write(("new",), b"1"),
        "write b": lambda view: view.write(("b",), b"1"),
        "add a/y": lambda view: view.mkdir(("a", "y")),
        "add a/z": lambda view: view.mkdir(("a", "z")),
        "rm a": lambda view: view.rm(("a",)),
        "perms a": lambda view: view.set_perms(("a",), ("r0",)),
        "write a/x": lambda view: view.write(("a", "x"), b"1"),
    }
    snapshot = Snapshot(view.root)
    actions[inside](snapshot)
    snapshot.write(("log",), b"")
    actions[outside](view)
    try:
        snapshot.commit(view)
    except Refused:
        return False
    return True


@pytest.mark.parametrize(
    ("inside", "outside", "commits"),
    [
        ("read a", "write a", False),
        ("read a", "write b", True),
        ("read a", "add a/y", True),
        ("read a", "rm a", False),
        ("read a", "perms a", False),
        ("read a", "write a/x", True),
        ("list a", "add a/y", False),
        ("list a", "write b", True),
        ("mkdir new", "write new", False),
        ("add a/y", "add a/z", True),
        ("add a/y", "add a/y", False),
        ("write a", "write a", False),
        ("rm a", "add a/y", False),
        ("rm a", "write b", True),
    ],
)
def test_conflicts(inside: str, outside: str, *, commits: bool) -> None:
    """A transaction fails when what it looked at or changed is different now, and only then."""
    assert committed(inside, outside) is commits


def test_generation_grows_with_the_children_and_the_value() -> None:
    """Clients that list in parts see that a directory changed under them."""
    view = View(Node())
    seen = [view.root.generation]
    view.mkdir(("a",))
    seen.append(view.root.generation)
    view.mkdir(("b",))
    seen.append(view.root.generation)
    view.rm(("a",))
    seen.append(view.root.generation)
    assert seen == sorted(set(seen))
    inner = view.root.generation
    view.write(("b",), b"v")
    assert view.root.generation == inner


def test_root_stays() -> None:
    """The root cannot be removed."""
    with pytest.raises(Refused, match="EINVAL"):
        View(Node()).rm(())


def test_removal_is_told_once_for_the_subtree() -> None:
    """Watchers learn of a removal as one change with everything below."""
    view = View(Node())
    view.write(("a", "b"), b"")
    view.rm(("a",))
    view.rm(("a",))
    assert view.changes == [Change(("a", "b")), Change(("a",), subtree=True)]
