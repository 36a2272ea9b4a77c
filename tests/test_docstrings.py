"""Every public class, function and method outside the tests says what it is, and every file what its subject is.

What carries out a Protocol of this project says it there once; its own docstring may add to that, and need not.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = sorted(path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "tests")
FILES = [ROOT / "app.py", *(file for folder in PACKAGES for file in sorted(folder.rglob("*.py")))]
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def members(node: ast.ClassDef) -> set[str]:
    """Public names that a class's body gives: functions, properties, attributes."""
    named = [child.name for child in node.body if isinstance(child, FUNCTIONS)]
    assigned = [target for child in node.body if isinstance(child, ast.Assign) for target in child.targets]
    named += [name.id for target in assigned for name in ast.walk(target) if isinstance(name, ast.Name)]
    return {name for name in named if not name.startswith("_")}


def is_protocol(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any("Protocol" in ast.unparse(base) for base in node.bases)


def undocumented(node: ast.AST, where: str, protocols: list[set[str]]) -> Iterator[str]:
    """Public definitions in a module or class without a docstring; what a function defines inside is its own business."""
    said = [names for names in protocols if isinstance(node, ast.ClassDef) and names <= members(node)]
    excused = set().union(*said) if not is_protocol(node) else set()
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*FUNCTIONS, ast.ClassDef)) or child.name.startswith("_") or child.name in excused:
            continue
        if ast.get_docstring(child) is None:
            yield f"{where}.{child.name}"
        if isinstance(child, ast.ClassDef):
            yield from undocumented(child, f"{where}.{child.name}", protocols)


def test_every_public_name_has_a_docstring() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    protocols = [members(node) for tree in trees.values() for node in ast.walk(tree) if is_protocol(node)]
    found = [
        name for path, tree in trees.items() for name in undocumented(tree, str(path.relative_to(ROOT)), protocols)
    ]
    assert not found


def test_every_file_names_its_subject() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
    assert not [
        str(path.relative_to(ROOT)) for path, tree in trees.items() if tree.body and ast.get_docstring(tree) is None
    ]
