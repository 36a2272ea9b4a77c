"""pyproject.toml declares what the code imports, all of it and nothing else, and the requirements files say the same."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
IN_WHEEL = [name for name in PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"] if "/" not in name]
IN_SOURCE_ONLY = ["benchmarks", "recipes", "reliability", "tests"]
EXTRA_OF = {
    "app.py": "serve",
    "evaluation": "train",
    "mlx_backend": "mlx",
    "server": "serve",
    "space": "serve",
    "training": "train",
}
RUN = {"hatchling", "mkdocs-material", "mkdocstrings", "mypy", "pre-commit", "ruff"}  # programs, which nothing imports
OWN = {
    path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
}
PACKAGES = {"sklearn": "scikit-learn"}  # where a module has another name than its package
BEHIND = {
    "torch.utils.tensorboard": "tensorboard",
    "fastapi": "python-multipart",
}  # imported by the module on the left, not by us


def imports(path: Path) -> Iterable[tuple[str, bool]]:
    """(module, whether importing this file imports it)."""

    def walk(node: ast.AST, at_once: bool) -> Iterable[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((alias.name, at_once) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield child.module, at_once
            else:
                if isinstance(child, ast.Call) and ast.unparse(child.func) == "pytest.importorskip":
                    yield child.args[0].value, at_once
                yield from walk(child, at_once and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(ast.parse(path.read_text(encoding="utf-8")), True)


def third_party(folder: str, at_once_only: bool = False) -> set[str]:
    """Normalised names of the packages that the files of a folder import."""
    path = ROOT / folder
    found = set()
    for file in [path] if path.is_file() else path.rglob("*.py"):
        for module, at_once in imports(file):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in OWN or (at_once_only and not at_once):
                continue
            found |= {
                canonicalize_name(PACKAGES.get(top, top)),
                *(package for name, package in BEHIND.items() if module == name),
            }
    return found


def names(requirements: Iterable[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in requirements}


def lines(name: str) -> set[str]:
    """The requirements of a file in one spelling."""
    text = (ROOT / name).read_text(encoding="utf-8").splitlines()
    return {str(Requirement(line.partition(" #")[0])) for line in text if not line.startswith(("#", "-r "))}


def spelled(*groups: Iterable[str]) -> set[str]:
    return {str(Requirement(text)) for group in groups for text in group}


@pytest.mark.parametrize("folder", ["app.py", *IN_WHEEL])
def test_a_folder_imports_what_its_extra_and_the_dependencies_bring(folder: str) -> None:
    extra = EXTRAS[EXTRA_OF[folder]] if folder in EXTRA_OF else []
    assert third_party(folder, at_once_only=True) <= names(PROJECT["dependencies"]) | names(extra)


def test_all_that_is_imported_is_declared_and_all_that_is_declared_is_imported() -> None:
    shipped = set().union(*map(third_party, ["app.py", *IN_WHEEL]))
    declared = names(PROJECT["dependencies"]).union(*(names(EXTRAS[e]) for e in EXTRAS if e != "dev"))
    assert shipped == declared
    others = set().union(*map(third_party, IN_SOURCE_ONLY))
    assert others - declared == names(EXTRAS["dev"]) - RUN


def test_every_package_is_shipped_or_named_as_the_sources_own() -> None:
    assert sorted([*IN_WHEEL, *IN_SOURCE_ONLY]) == sorted(OWN - {"app"})


def test_the_requirements_files_say_what_pyproject_says() -> None:
    assert lines("requirements.txt") == spelled(PROJECT["dependencies"], EXTRAS["mlx"], EXTRAS["serve"])
    rest = (EXTRAS[extra] for extra in EXTRAS if extra not in ("mlx", "serve"))
    assert lines("requirements-dev.txt") == spelled(*rest)
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()


def test_the_builder_is_the_one_that_tests_use() -> None:
    assert set(PYPROJECT["build-system"]["requires"]) <= set(EXTRAS["dev"])
