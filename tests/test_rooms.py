"""What the import contracts cannot say of the rooms: no method's name decides anything outside its package."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from amvl_core.contracts.method import METHODS, configurations

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("amvl_core", "data_prep", "flows", "infra", "benchmarks")
FILES = [
    path
    for room in ROOMS
    for path in sorted((ROOT / room).rglob("*.py"))
    if not path.is_relative_to(ROOT / "amvl_core" / "methods")
]


def test_the_import_contracts_name_every_method() -> None:
    """They cannot take all packages of a folder in which other modules stand."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    apart = next(c["forbidden_modules"] for c in contracts if c["name"].startswith("a method is reached"))
    independent = next(c["modules"] for c in contracts if c["name"].startswith("latent methods share"))
    latent = [name for name, method in configurations().items() if method.model_validate({}).has_latents]
    assert sorted(apart) == sorted(f"amvl_core.methods.{name}" for name in METHODS)
    assert sorted(independent) == sorted(f"amvl_core.methods.{name}" for name in latent)


def named(tree: ast.AST) -> Iterator[int]:
    """Lines on which a value is compared or matched with a method's name, or looked for among such."""
    for node in ast.walk(tree):
        values: list[ast.expr] = []
        if isinstance(node, ast.Compare):
            values = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            values = [node.value]
        for value in values:
            parts = value.elts if isinstance(value, (ast.Tuple, ast.List, ast.Set)) else [value]
            if any(isinstance(part, ast.Constant) and part.value in METHODS for part in parts):
                yield value.lineno


def test_the_search_finds_what_it_is_for() -> None:
    found = list(
        named(ast.parse("if kind == 'amvl':\n    pass\nif kind in ('x', 'sft'):\n    pass\nif kind == 'other': pass"))
    )
    assert found == [1, 3]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_method_is_told_apart_by_its_name_outside_its_package(path: Path) -> None:
    lines = list(named(ast.parse(path.read_text())))
    stages = {"benchmarks/trial.py"}  # names stages of its own, which are called as their methods are
    assert not lines or str(path.relative_to(ROOT)) in stages, lines
