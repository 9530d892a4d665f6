"""Find the names that tests read and do not define, and where each of them comes from."""

import ast
import builtins
import sys
from collections.abc import Iterable


def names_to_fetch(source: str) -> set[str]:
    """Return the names that the tests take from the model's code.

    These are the names that the tests read and neither define nor import, without Python's own
    names. Python's own are not taken from the model's code, because it could define a `set` that
    makes all things equal. But if the tests read a single name and it is Python's own, then it is
    the name under test.

    >>> sorted(names_to_fetch("import math\\nx = 2\\nassert set(f(x)) == set(g(math.pi))"))
    ['f', 'g']
    >>> names_to_fetch("assert sum(10, 15) == 6"), names_to_fetch("assert sum([1]) == len([2])")
    ({'sum'}, set())
    """
    tree = ast.parse(source)
    foreign = _names_in(tree)
    for node in ast.walk(tree):
        foreign.difference_update(_names_bound_by(node))
    unknown_to_python = foreign.difference(vars(builtins), sys.stdlib_module_names)
    if unknown_to_python:
        return unknown_to_python
    return foreign if len(foreign) == 1 else set()


def modules_to_import(sources: Iterable[str], fetched: set[str]) -> set[str]:
    """Return the standard library's modules that the tests name and do not fetch.

    >>> modules_to_import(["assert f(math.pi) == 3"], fetched={"f"})
    {'math'}
    """
    names = set()
    for source in sources:
        names |= _names_in(ast.parse(source))
    return (names & sys.stdlib_module_names) - fetched


def _names_in(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            names.add(node.id)
    return names


def _names_bound_by(node: ast.AST) -> list[str]:
    """Return the names that this node, without its children, defines or imports."""
    if isinstance(node, ast.Name):
        return [] if isinstance(node.ctx, ast.Load) else [node.id]
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names: list[str] = []
        for alias in node.names:
            # `import os.path` binds `os`.
            names.append((alias.asname or alias.name).partition(".")[0])
        return names
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    # `except E:` binds nothing.
    if isinstance(node, ast.ExceptHandler) and node.name:
        return [node.name]
    if isinstance(node, ast.arg):
        return [node.arg]
    return []
