"""The public names of the package's files, read from their source: signatures stand as they were written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Public(NamedTuple):
    """A public definition of a file."""

    module: str
    name: str
    """Within the module, as in `Class.method`."""
    kind: str
    """What Python's domain of Sphinx calls it."""
    signature: str
    docstring: str
    options: tuple[str, ...] = ()
    fields: str = ""
    """The fields of a record with their comments, as they stand in the source."""

    @property
    def full(self) -> str:
        """The name by which it is imported."""
        return f"{self.module}.{self.name}"


class Module(NamedTuple):
    """A file of the package."""

    name: str
    path: Path
    docstring: str
    public: tuple[Public, ...]


@cache
def modules() -> dict[str, Module]:
    """Returns all modules of lrenv by name, agents included."""
    found = {}
    for path in sorted((ROOT / "lrenv").rglob("*.py")) + sorted((ROOT / "agents").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[:2] == ("lrenv", "agents"):
            continue  # the link, in Pythons that follow it
        name = ".".join(("lrenv", *parts) if parts[0] == "agents" else parts).removesuffix(".__init__")
        source = path.read_text()
        tree = _Full(ast.parse(source), name).tree
        public = tuple(_definitions(tree, name, "", source))
        found[name] = Module(name, path.relative_to(ROOT), ast.get_docstring(tree) or "", public)
    return found


class _Full(ast.NodeTransformer):
    """Gives types in annotations the full names of what a file imports from lrenv, or defines."""

    def __init__(self, tree: ast.Module, module: str) -> None:
        self._names = {node.name: f"{module}.{node.name}" for node in tree.body if isinstance(node, ast.ClassDef)}
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lrenv"):
                self._names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                target = ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0])
                self._names[target] = f"{module}.{target}"
        self.tree: ast.Module = self.visit(tree)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        """Changes the annotations of arguments and of what is returned."""
        for argument in ast.walk(node.args):
            if isinstance(argument, ast.arg) and argument.annotation:
                argument.annotation = self._full(argument.annotation)
        if node.returns:
            node.returns = self._full(node.returns)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        """Changes the annotation of a field."""
        node.annotation = self._full(node.annotation)
        return node

    def _full(self, annotation: ast.expr) -> ast.expr:
        names = self._names

        class Rename(ast.NodeTransformer):
            def visit_Name(self, node: ast.Name) -> ast.Name:
                return ast.Name(names.get(node.id, node.id), node.ctx)

        renamed: ast.expr = Rename().visit(annotation)
        return renamed


def exported(module: str) -> list[str]:
    """Returns the names in a module's `__all__`; none if it has no such list."""
    tree = ast.parse((ROOT / modules()[module].path).read_text())
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    return []


def _definitions(node: ast.Module | ast.ClassDef, module: str, prefix: str, source: str) -> Iterator[Public]:
    for i, child in enumerate(node.body):
        if isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            marks = {ast.unparse(mark).rpartition(".")[2] for mark in child.decorator_list}
            if not marks & {"setter", "overload"}:
                yield _function(child, module, prefix, marks)
        elif isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield _class(child, module, prefix, source)
            yield from _definitions(child, module, f"{prefix}{child.name}.", source)
        elif isinstance(child, ast.Assign | ast.AnnAssign):
            following = node.body[i + 1] if i + 1 < len(node.body) else None
            yield from _variable(child, following, module, prefix)


def _function(node: ast.FunctionDef, module: str, prefix: str, marks: set[str]) -> Public:
    docstring = ast.get_docstring(node) or ""
    name = f"{prefix}{node.name}"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    if marks & {"property", "cached_property"}:
        type_ = f":type: {ast.unparse(node.returns)}" if node.returns else ""
        return Public(module, name, "property", "", docstring, (type_,) if type_ else ())
    arguments = node.args
    if prefix and "staticmethod" not in marks:
        arguments = _without_first(arguments)
    options = tuple(f":{mark}:" for mark in ("classmethod", "staticmethod", "abstractmethod") if mark in marks)
    kind = "method" if prefix else "function"
    return Public(module, name, kind, f"({ast.unparse(arguments)}){returns}", docstring, options)


def _without_first(arguments: ast.arguments) -> ast.arguments:
    """The arguments without `self` or `cls`."""
    copied = ast.arguments(**{name: getattr(arguments, name) for name in arguments._fields})
    copied.posonlyargs, copied.args = arguments.posonlyargs[1:], arguments.args[not arguments.posonlyargs :]
    return copied


def _class(node: ast.ClassDef, module: str, prefix: str, source: str) -> Public:
    docstring = ast.get_docstring(node) or ""
    fields = [
        child
        for child in node.body
        if isinstance(child, ast.AnnAssign)
        and not ast.unparse(child.annotation).startswith("ClassVar")
        and not ast.unparse(child.target).startswith("_")
    ]
    record = any("NamedTuple" in ast.unparse(base) for base in node.bases) or any(
        "dataclass" in ast.unparse(mark) for mark in node.decorator_list
    )
    init = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
    if init:
        signature = f"({ast.unparse(_without_first(init[0].args))})"
    elif record and fields:
        signature = f"({', '.join(ast.unparse(field) for field in fields)})".replace(" = ", "=")
    else:
        signature = ""
    shown = ""
    if record and fields and "Attributes:" not in docstring and "Args:" not in docstring:
        lines = source.splitlines()
        shown = "\n".join(lines[i].strip() for field in fields for i in range(field.lineno - 1, field.end_lineno or 0))
    return Public(module, f"{prefix}{node.name}", "class", signature, docstring, (), shown)


def _variable(
    node: ast.Assign | ast.AnnAssign, following: ast.stmt | None, module: str, prefix: str
) -> Iterator[Public]:
    """A variable with a docstring, which is the string after it."""
    target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
    if not isinstance(target, ast.Name) or target.id.startswith("_"):
        return
    if not isinstance(following, ast.Expr) or not isinstance(following.value, ast.Constant):
        return
    if isinstance(following.value.value, str):
        options = [f":type: {ast.unparse(node.annotation)}"] if isinstance(node, ast.AnnAssign) else []
        value = ast.unparse(node.value) if node.value is not None else ""
        if value and len(value) <= 60:
            options.append(f":value: {value}")
        kind = "attribute" if prefix else "data"
        yield Public(module, f"{prefix}{target.id}", kind, "", following.value.value, tuple(options))
