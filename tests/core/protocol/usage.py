"""Finds which fields of record classes a code base writes and reads, by type inference over its syntax trees.

An attribute counts as a read of a field only where its owner may be a record that has the field. The types
come from annotations: of parameters, variables, attributes, fields and functions (the last three by name),
followed through assignments, loops, awaits, `isinstance` and `match`.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Sequence

Field = tuple[str, str]
Function = ast.FunctionDef | ast.AsyncFunctionDef
SAME = {
    "aiter", "anext", "cast", "ensure_future", "filter", "list", "next", "replace", "reversed", "shield",
    "sorted",
}  # fmt: skip
"""Calls whose result is their argument, or has it in it."""
OF_ITS_OWNER = {"_replace", "get", "items", "pop", "result", "union", "values"}
"""Methods whose result is their owner, or something in it."""


class Usage:
    """Fields of records that these modules write and read.

    Parameters
    ----------
    trees
        All modules, the ones that define the records included.
    records
        Names of the record classes.
    """

    def __init__(self, trees: Sequence[ast.Module], records: Iterable[str]) -> None:
        self.fields: dict[str, list[str]] = {}
        self.bases: dict[str, list[str]] = {}
        self.read: set[Field] = set()
        self.written: set[Field] = set()
        self._aliases: dict[str, ast.expr] = {}
        self._attributes: dict[str, set[str]] = defaultdict(set)
        self._returns: dict[str, set[str]] = defaultdict(set)
        names = set(records)
        for tree in trees:
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and node.name in names:
                    self.bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                    self.fields[node.name] = [
                        each.target.id
                        for each in node.body
                        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
                    ]
                elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    self._aliases.setdefault(node.targets[0].id, node.value)
        for tree in trees:
            self._collect(tree)
        for tree in trees:
            _Scope(self, {}).visit_all(tree.body)

    def missing(self) -> dict[str, list[str]]:
        """Return the fields that are never read, and those that are never written."""
        own = [(name, field) for name, fields in self.fields.items() for field in fields]
        return {
            "never read": [f"{name}.{field}" for name, field in own if (name, field) not in self.read],
            "never written": [f"{name}.{field}" for name, field in own if (name, field) not in self.written],
        }

    def classes(self, annotation: ast.expr | None) -> set[str]:
        """Return the record classes that an annotation names."""
        found: set[str] = set()
        for node in ast.walk(annotation) if annotation is not None else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                try:
                    found |= self.classes(ast.parse(node.value, mode="eval").body)
                except SyntaxError:
                    continue
            elif isinstance(node, ast.Name) and node.id in self.fields:
                found.add(node.id)
            elif isinstance(node, ast.Name) and node.id in self._aliases:
                value = self._aliases[node.id]
                if isinstance(value, ast.BinOp | ast.Subscript):
                    found |= self.classes(value)
        return found

    def all_fields(self, name: str) -> list[Field]:
        """Return the fields of a record in the order of its constructor, each with its own class."""
        inherited = [
            field for base in self.bases[name] if base in self.fields for field in self.all_fields(base)
        ]
        return inherited + [(name, field) for field in self.fields[name]]

    def note(self, into: set[Field], owners: Iterable[str], field: str) -> None:
        """Count a use of a field of whichever of these records has it."""
        for owner in owners:
            into |= {each for each in self.all_fields(owner) if each[1] == field}

    def _collect(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            if isinstance(node, ast.AnnAssign):
                target = node.target
                name = target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")
                self._attributes[name] |= self.classes(node.annotation)
            elif isinstance(node, Function):
                found = self.classes(node.returns)
                is_property = any(getattr(each, "id", "") == "property" for each in node.decorator_list)
                (self._attributes if is_property else self._returns)[node.name] |= found
            elif isinstance(node, ast.ClassDef):
                self._collect_assigned(node)

    def _collect_assigned(self, node: ast.ClassDef) -> None:
        """Take the types of attributes from `self.x = x` in a method, where `x` is an annotated parameter."""
        for method in node.body:
            if not isinstance(method, Function):
                continue
            known = {each.arg: self.classes(each.annotation) for each in _parameters(method)}
            for statement in ast.walk(method):
                if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
                    for target in statement.targets:
                        if isinstance(target, ast.Attribute):
                            self._attributes[target.attr] |= known.get(statement.value.id, set())

    def attribute(self, name: str) -> set[str]:
        """Return the records that an attribute of this name may be."""
        return self._attributes[name]

    def returned(self, name: str) -> set[str]:
        """Return the records that a function of this name may return."""
        return self._returns[name]


class _Scope(ast.NodeVisitor):
    """One function, or a module: the types of its names."""

    def __init__(self, usage: Usage, names: dict[str, set[str]]) -> None:
        self._usage = usage
        self._names = defaultdict(set, {name: set(found) for name, found in names.items()})

    def visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)

    # --- types ----------------------------------------------------------------------------------

    def types(self, node: ast.AST | None) -> set[str]:
        """Return the records that an expression may be, or may have in it."""
        found: set[str] = set()
        match node:
            case ast.Name(id=name):
                found = self._names[name]
            case ast.Attribute(attr=name):
                found = self._usage.attribute(name)
            case ast.Call():
                found = self._made_by(node)
            case ast.Subscript(value=value) | ast.NamedExpr(value=value):
                found = self.types(value)
            case ast.GeneratorExp() | ast.ListComp() | ast.SetComp() | ast.DictComp():
                for loop in node.generators:
                    self._bind(loop.target, self.types(loop.iter))
                found = self._inside(node)
            case ast.Await() | ast.IfExp() | ast.BoolOp() | ast.Starred() | ast.Tuple() | ast.List():
                found = self._inside(node)
        return found

    def _inside(self, node: ast.AST) -> set[str]:
        return {each for child in ast.iter_child_nodes(node) for each in self.types(child)}

    def _made_by(self, call: ast.Call) -> set[str]:
        """Return the records that a call may return."""
        function = call.func
        name = getattr(function, "id", getattr(function, "attr", ""))
        if name in self._usage.fields:
            return {name}
        found = set(self._usage.returned(name))
        if name in SAME:
            found |= {each for arg in call.args for each in self.types(arg)}
        if name in OF_ITS_OWNER:
            found |= self.types(getattr(function, "value", None))
        return found | (self._usage.classes(call.args[0]) if name == "cast" else set())

    def _bind(self, target: ast.AST, found: set[str]) -> None:
        if isinstance(target, ast.Name):
            self._names[target.id] |= found
        elif isinstance(target, ast.Starred):
            self._bind(target.value, found)
        elif isinstance(target, ast.Tuple | ast.List):
            for owner in found:
                fields = self._usage.all_fields(owner)
                if len(fields) == len(target.elts):
                    self._usage.read |= set(fields)
                for field, element in zip(fields, target.elts, strict=False):
                    self._bind(element, self._usage.attribute(field[1]))
            for element in target.elts:
                self._bind(element, found)

    # --- names ----------------------------------------------------------------------------------

    def _function(self, node: Function) -> None:
        inner = _Scope(self._usage, self._names)
        for each in _parameters(node):
            inner._names[each.arg] = self._usage.classes(each.annotation)
        # Twice: a name may be used above the place where it gets its type.
        inner.visit_all(node.body)
        inner.visit_all(node.body)

    visit_FunctionDef = visit_AsyncFunctionDef = _function  # noqa: N815 - ast's names

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._bind(target, self.types(node.value))
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self._bind(node.target, self._usage.classes(node.annotation))
        if node.value is not None:
            self.visit(node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._bind(node.target, self.types(node.value))
        self.generic_visit(node)

    def _loop(self, node: ast.For | ast.AsyncFor | ast.comprehension) -> None:
        self._bind(node.target, self.types(node.iter))
        self.generic_visit(node)

    visit_For = visit_AsyncFor = visit_comprehension = _loop  # noqa: N815 - ast's names

    def _comprehension(self, node: ast.AST) -> None:
        self.types(node)  # binds its names before they are used
        self.generic_visit(node)

    visit_GeneratorExp = visit_ListComp = _comprehension  # noqa: N815 - ast's names
    visit_SetComp = visit_DictComp = _comprehension  # noqa: N815 - ast's names

    def visit_Match(self, node: ast.Match) -> None:
        for case in node.cases:
            for pattern in ast.walk(case.pattern):
                if isinstance(pattern, ast.MatchClass):
                    self._match(pattern)
                elif isinstance(pattern, ast.MatchAs) and pattern.name and pattern.pattern is not None:
                    self._names[pattern.name] |= self._usage.classes(getattr(pattern.pattern, "cls", None))
                if isinstance(node.subject, ast.Name) and isinstance(pattern, ast.MatchClass):
                    self._names[node.subject.id] |= self._usage.classes(pattern.cls)
        self.generic_visit(node)

    def _match(self, pattern: ast.MatchClass) -> None:
        for owner in self._usage.classes(pattern.cls):
            for field in pattern.kwd_attrs:
                self._usage.note(self._usage.read, (owner,), field)
            self._usage.read |= set(self._usage.all_fields(owner)[: len(pattern.patterns)])

    # --- uses -----------------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.ctx, ast.Load):
            self._usage.note(self._usage.read, self.types(node.value), node.attr)
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        inner = _Scope(self._usage, self._names)
        if node.name in self._usage.fields:
            inner._names["self"] = inner._names["cls"] = {node.name}
        for each in node.body:
            if isinstance(each, Function) and node.name in self._usage.fields:
                own = _Scope(self._usage, inner._names)
                for parameter in _parameters(each):
                    if parameter.arg not in {"self", "cls"}:
                        own._names[parameter.arg] = self._usage.classes(parameter.annotation)
                own.visit_all(each.body)
            else:
                inner.visit(each)

    def visit_Call(self, node: ast.Call) -> None:
        usage = self._usage
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        made = {name} if name in usage.fields else set()
        if name == "cls":
            made = self._names["cls"] & set(usage.fields)
        for owner in made:
            fields = usage.all_fields(owner)
            usage.written |= set(fields[: len(node.args)])
            if any(keyword.arg is None for keyword in node.keywords):
                usage.written |= set(fields)
        if name == "replace":
            made = {each for arg in node.args for each in self.types(arg)}
        elif name == "_replace":
            made = self.types(getattr(node.func, "value", None))
        elif name == "isinstance" and isinstance(node.args[0], ast.Name):
            self._names[node.args[0].id] |= usage.classes(node.args[1])
        for keyword in node.keywords:
            if keyword.arg is not None:
                usage.note(usage.written, made, keyword.arg)
        self.generic_visit(node)


def _parameters(node: Function) -> list[ast.arg]:
    given = node.args
    return [*given.posonlyargs, *given.args, *given.kwonlyargs]
