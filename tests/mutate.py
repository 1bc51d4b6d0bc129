"""Planted bugs: copies of production functions with one piece of their source changed."""

import __future__

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator

LOOPS = 200  # rounds that a mutant may turn in one call; the real functions need a few


def _source(function: Callable) -> tuple[str, Callable]:
    plain = inspect.unwrap(function)  # the type checker of the tests wraps it
    return textwrap.dedent(inspect.getsource(plain)), plain


def _compiled(tree: ast.AST | str, name: str, plain: Callable) -> Callable:
    """Runs a definition in the globals of the original, so that other patches reach it."""
    flags = __future__.annotations.compiler_flag  # shapes in signatures are no expressions
    code = compile(tree, f"<mutant of {plain.__qualname__}>", "exec", flags, dont_inherit=True)
    found: dict = {}
    exec(code, plain.__globals__, found)
    return found[name]


def replaced(function: Callable, old: str, new: str) -> Callable:
    """A copy with `old`, which must stand in the source exactly once, replaced by `new`."""
    source, plain = _source(function)
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {plain}"
    return _compiled(source.replace(old, new), plain.__name__, plain)


class Endless(Exception):
    """A mutant turned too often in a `while` loop."""


def _blocks(tree: ast.AST) -> Iterator[list[ast.stmt]]:
    """Every list of statements, in a fixed order."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            statements = getattr(node, name, None)
            if isinstance(statements, list):
                yield statements


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def without_statement(function: Callable, number: int | None) -> tuple[str, Callable]:
    """What was deleted, and a copy without the statement of this number (None: a plain copy).

    Where the statement stood, and in every `while` loop, a counter ticks, so that no mutant hangs.
    IndexError where there are fewer statements.
    """
    source, plain = _source(function)
    module = ast.parse(source)
    definition = module.body[0]
    places = [
        (block, index)
        for block in _blocks(definition)
        for index, statement in enumerate(block)
        if not _is_docstring(statement)
    ]
    tick = "__tick__()"
    deleted = "nothing"
    if number is not None:
        block, index = places[number]
        deleted = ast.unparse(block[index])
        block[index] = ast.parse(tick).body[0]
    for node in ast.walk(definition):
        if isinstance(node, ast.While):
            node.body.insert(0, ast.parse(tick).body[0])
    outer = ast.parse("def outer(__tick__): pass").body[0]
    outer.body = [definition, ast.parse(f"return {plain.__name__}", mode="exec").body[0]]
    module = ast.fix_missing_locations(ast.Module([outer], []))
    n_ticks = 0

    def count():
        nonlocal n_ticks
        n_ticks += 1
        if n_ticks > LOOPS:
            raise Endless(deleted)

    mutant = _compiled(module, "outer", plain)(count)

    def call(*args, **kwargs):
        nonlocal n_ticks
        n_ticks = 0
        return mutant(*args, **kwargs)

    return deleted, call


def n_statements(function: Callable) -> int:
    """How many statements a function's body has, nested ones counted, docstring not."""
    definition = ast.parse(_source(function)[0]).body[0]
    return sum(not _is_docstring(s) for block in _blocks(definition) for s in block)
