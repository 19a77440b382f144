"""The order of the rooms: a room imports only from the floors below it, also inside functions.

The floors are those of docs/architecture.md.  Within a floor and within a room there is no circle.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "nse_plugin"

FLOORS = (
    ("errors", "version"),
    ("printable", "request_fields"),
    ("files", "requests", "table"),
    ("marks",),
    ("hparams",),
    ("model",),
    ("statistics", "objectives"),
    ("locate",),
    ("session",),
    ("methods",),
    ("data",),
    ("evaluation",),
    ("easyedit", "editor"),
    ("host",),
    ("runs",),
    ("report", "export"),
    ("compare", "tune"),
    ("cli",),
)
"""From the ground up; rooms of one floor do not import each other."""

LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = ("nse_plugin", *path.relative_to(PACKAGE).with_suffix("").parts)
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> Iterator[tuple[str, int, bool]]:
    """(module of ours, line, whether it is only for the type checker), wherever in the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("nse_plugin"):
            for name in node.names:
                inner = f"{node.module}.{name.name}"
                yield (
                    inner if inner in known else str(node.module),
                    node.lineno,
                    id(node) in for_types,
                )
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("nse_plugin"):
                    yield name.name, node.lineno, id(node) in for_types


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def test_every_room_has_a_floor():
    rooms = {room(module) for module in modules()} - {""}
    assert rooms - {"blame"} == set(LEVEL), "name the room in FLOORS and in docs/architecture.md"


def test_nobody_imports_upwards():
    known = modules()
    upward = [
        f"{path.relative_to(PACKAGE)}:{line} imports {target}"
        for module, path in known.items()
        if room(module)  # the package itself only names where its parts live
        for target, line, _ in imports(path, known)
        if room(target) not in ("", room(module)) and LEVEL[room(target)] >= LEVEL[room(module)]
    ]
    assert not upward, "\n".join(upward)


def test_no_circle_within_a_room():
    known = modules()
    edges = {
        module: {
            target
            for target, _, for_types in imports(path, known)
            if room(target) == room(module) and target != module and not for_types
        }
        for module, path in known.items()
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        if module in trail:
            pytest.fail(" -> ".join((*trail[trail.index(module) :], module)))
        if module not in done:
            for target in sorted(edges.get(module, ())):
                visit(target, (*trail, module))
            done.add(module)

    for module in edges:
        visit(module, ())
