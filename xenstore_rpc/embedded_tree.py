"""The node tree of the embedded store: immutable nodes, and transactions as snapshots that are replayed at commit.

Behaviour was taken from oxenstored of Xen 4.17 by trying: parents are created silently, a child inherits its parent's
permissions, a transaction conflicts when something it looked at or changed has changed meanwhile, and two transactions
that add different children to one directory do not conflict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

NodePath = tuple[str, ...]
"""Node names from the root; the root itself is ()."""


class Refused(Exception):
    """The operation is refused with `error`, an errno name as sent on the wire."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One node. Never changed: a change makes new nodes from here up to the root."""

    value: bytes = b""
    perms: tuple[str, ...] = ("n0",)
    children: Mapping[str, Node] = field(default_factory=dict)
    generation: int = 0
    """Grows with every change of this node or of its list of children; clients see it in DIRECTORY_PART."""


@dataclass(frozen=True, slots=True)
class Change:
    """What watchers are told: this node changed, or (`subtree`) it went away with everything below."""

    path: NodePath
    subtree: bool = False


class View:
    """The tree as one client sees it: the live tree itself, or a transaction's snapshot of it."""

    def __init__(self, root: Node) -> None:
        self.root = root
        self.changes: list[Change] = []
        self._generation = root.generation

    def read(self, path: NodePath) -> bytes:
        """The node's value. Refused ENOENT when missing, as for the other readers."""
        return self.node(path).value

    def directory(self, path: NodePath) -> list[str]:
        """Names of the children, oldest first."""
        return list(self.node(path).children)

    def perms(self, path: NodePath) -> tuple[str, ...]:
        """Permissions in wire form."""
        return self.node(path).perms

    def write(self, path: NodePath, value: bytes) -> None:
        """Sets the value, creating the node and its parents."""
        self._put(path, lambda node: replace(node, value=value, generation=self._generation))

    def mkdir(self, path: NodePath) -> None:
        """Creates the node and its parents; nothing happens, and nobody is told, when it exists."""
        if find(self.root, path) is None:
            self._put(path, lambda node: node)

    def set_perms(self, path: NodePath, perms: tuple[str, ...]) -> None:
        """Replaces the permissions; Refused ENOENT when the node is missing."""
        self.node(path)
        self._put(path, lambda node: replace(node, perms=perms, generation=self._generation))

    def rm(self, path: NodePath) -> None:
        """Removes the node and all below. A missing node is fine when its parent exists, ENOENT otherwise."""
        if not path:
            raise Refused("EINVAL")
        if path[-1] not in self.node(path[:-1]).children:
            return
        self._generation += 1

        def without(parent: Node) -> Node:
            children = {name: child for name, child in parent.children.items() if name != path[-1]}
            return replace(parent, children=children, generation=self._generation)

        self.root = self._rebuilt(self.root, path[:-1], without)
        self.changes.append(Change(path, subtree=True))

    def node(self, path: NodePath) -> Node:
        """The node; Refused ENOENT when missing."""
        node = find(self.root, path)
        if node is None:
            raise Refused("ENOENT")
        return node

    def _put(self, path: NodePath, change: Callable[[Node], Node]) -> None:
        self._generation += 1
        self.root = self._rebuilt(self.root, path, change)
        self.changes.append(Change(path))

    def _rebuilt(self, node: Node, path: NodePath, change: Callable[[Node], Node]) -> Node:
        if not path:
            return change(node)
        name = path[0]
        child = node.children.get(name)
        generation = node.generation if child is not None else self._generation
        new = self._rebuilt(child or Node(perms=node.perms, generation=self._generation), path[1:], change)
        return replace(node, children={**node.children, name: new}, generation=generation)


class Snapshot(View):
    """A transaction: sees the tree as it was at its start plus its own changes, and notes what it relied on."""

    def __init__(self, root: Node) -> None:
        super().__init__(root)
        self._base = root
        self._looked_at: set[NodePath] = set()
        self._listed: set[NodePath] = set()
        self._writes: list[Callable[[View], None]] = []

    def node(self, path: NodePath) -> Node:
        self._looked_at.add(path)
        return super().node(path)

    def directory(self, path: NodePath) -> list[str]:
        self._listed.add(path)
        return super().directory(path)

    def write(self, path: NodePath, value: bytes) -> None:
        super().write(path, value)
        self._changed(path, lambda view: view.write(path, value))

    def mkdir(self, path: NodePath) -> None:
        super().mkdir(path)
        self._changed(path, lambda view: view.mkdir(path))

    def set_perms(self, path: NodePath, perms: tuple[str, ...]) -> None:
        super().set_perms(path, perms)
        self._changed(path, lambda view: view.set_perms(path, perms))

    def rm(self, path: NodePath) -> None:
        super().rm(path)
        self._listed.add(path)
        self._changed(path, lambda view: view.rm(path))

    def _changed(self, path: NodePath, again: Callable[[View], None]) -> None:
        self._looked_at.add(path)
        self._writes.append(again)

    def commit(self, current: View) -> None:
        """Applies the changes to `current`; Refused EAGAIN when it is not what this transaction relied on."""
        if not self._writes:
            return
        if current.root is not self._base and not self._holds_in(current.root):
            raise Refused("EAGAIN")
        for write in self._writes:
            write(current)

    def _holds_in(self, root: Node) -> bool:
        for path in self._looked_at:
            before, now = find(self._base, path), find(root, path)
            if before is now:
                continue
            if before is None or now is None or (before.value, before.perms) != (now.value, now.perms):
                return False
        return all(_names(find(self._base, path)) == _names(find(root, path)) for path in self._listed)


def find(root: Node, path: NodePath) -> Node | None:
    """The node at `path`, None when missing."""
    node: Node | None = root
    for name in path:
        if node is None:
            return None
        node = node.children.get(name)
    return node


def _names(node: Node | None) -> list[str] | None:
    return None if node is None else list(node.children)
