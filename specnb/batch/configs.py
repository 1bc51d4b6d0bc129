"""Which config class a notebook reads its parameters into, found without running the notebook."""

from __future__ import annotations

import ast
import importlib.util
import operator
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from specnb import methods

PACKAGE = "specnb"


class NotImported(Exception):
    """A config class is there, but lies where it may not be imported from for a check."""


def config_of(path: Path, book: Any, trusted: Callable[[Path], bool]) -> Any:
    """The class of the first `<name>.from_notebook(globals())` in a notebook; None without any.

    The name is followed through the notebook's own imports. `trusted` says of a file outside this
    package whether it may be imported. NotImported where it may not, or where the class is made in
    the notebook itself; ValueError where it may, but fails or is not there.
    """
    found = _read(book)
    name = found.name
    if not name:
        return None
    if not found.origin:
        raise NotImported(f"{name} is not imported there")
    module, attributes = found.origin
    root = module.partition(".")[0]
    beside = path.parent / f"{root}.py"
    if root == PACKAGE:
        file = None
    elif beside.is_file():
        file = beside
    else:
        spec = importlib.util.find_spec(root) if root else None  # at the top: this runs nothing
        if spec is None or not spec.origin:
            raise NotImported(f"{module} is not found here")
        file = Path(spec.origin)
    if file and not trusted(file.resolve()):
        raise NotImported(f"{file} would have to be run for it")
    try:
        if file == beside and module == root:
            return operator.attrgetter(attributes)(methods.module_of(file))
        return pkgutil.resolve_name(f"{module}:{attributes}")
    except Exception as error:  # whatever stands in a file of the reader's own
        words = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path.name}: {name} cannot be imported ({words})") from error


def neighbours(path: Path, book: Any) -> list[Path]:
    """The files beside a notebook that it imports, `mine.py` or all of a package `mine/`."""
    found: list[Path] = []
    for root in sorted(_read(book).roots):
        file = path.parent / f"{root}.py"
        found += [file] if file.is_file() else sorted((path.parent / root).rglob("*.py"))
    return found


def _read(book: Any) -> _Finder:
    """What the notebook's code imports, and where it reads its parameters."""
    from IPython.core.inputtransformer2 import TransformerManager

    finder = _Finder()
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        try:
            # Magics and shell lines become calls, as in a kernel.
            finder.visit(ast.parse(TransformerManager().transform_cell(cell.source)))
        except SyntaxError:  # a kernel will say it; an exercise may be half written
            continue
    return finder


class _Finder(ast.NodeVisitor):
    """Follows which names stand for what was imported, up to the call that is looked for."""

    def __init__(self) -> None:
        self.name = ""  # the first one, as the notebook writes it
        self.origin: tuple[str, str] | None = None  # its module, and its name in there
        self.roots: set[str] = set()
        self._imported: dict[str, tuple[str, str]] = {}  # name -> module, name in there

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            root = alias.name.partition(".")[0]
            self.roots.add(root)
            self._imported[alias.asname or root] = (alias.name if alias.asname else root, "")

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        self.roots |= {module.partition(".")[0]} - {""}
        for alias in node.names:
            self._imported[alias.asname or alias.name] = (module, alias.name)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Store):  # from here on it is something else
            self._imported.pop(node.id, None)

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        origin = self._origin(ast.unparse(node.value)) if _is_dotted(node.value) else None
        for target in node.targets:
            self.visit(target)
            if isinstance(target, ast.Name) and origin:
                self._imported[target.id] = origin

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._imported.pop(node.name, None)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called = node.func
        if (
            not self.name
            and isinstance(called, ast.Attribute)
            and called.attr == "from_notebook"
            and _is_dotted(called.value)
            and [ast.unparse(one) for one in node.args] == ["globals()"]
        ):
            self.name = ast.unparse(called.value)
            self.origin = self._origin(self.name)
        self.generic_visit(node)

    def _origin(self, dotted: str) -> tuple[str, str] | None:
        first, _, rest = dotted.partition(".")
        if first not in self._imported:
            return None
        module, name = self._imported[first]
        return module, ".".join(filter(None, [name, rest]))


def _is_dotted(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) or (
        isinstance(node, ast.Attribute) and _is_dotted(node.value)
    )
