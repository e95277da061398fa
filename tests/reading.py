"""What code reads of a record: attributes of expressions that are known to be the record."""

import ast
from collections.abc import Iterable, Iterator, Mapping

ACTING = {"PPOSettings", "PPOConfig"}  # whose __post_init__ also acts on its values
VALIDATION = {"_check_bounds", "__post_init__"}  # a bound alone is no use of a value
Function = ast.FunctionDef | ast.AsyncFunctionDef


def named(annotation: ast.AST | None) -> str | None:
    """The class that an annotation names: X of `X`, `X | None`, `module.X` and `type[X]`."""
    match annotation:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.BinOp(left=left, right=ast.Constant(value=None)):
            return named(left)
        case ast.Subscript(value=ast.Name(id="type"), slice=inner):
            return named(inner)
    return None


def assigned(function: Function) -> Iterator[tuple[ast.AST, ast.AST]]:
    """What a function assigns to what."""
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                yield from zip(targets, values, strict=False)
            case ast.Assign(targets=[target]) | ast.NamedExpr(target=target):
                yield target, node.value


class Code:
    """The classes and functions of some modules, and which class an expression in them is of."""

    def __init__(self, trees: Iterable[ast.Module]):
        self.trees = list(trees)
        nodes = [node for tree in self.trees for node in tree.body]
        self.classes = {node.name: node for node in nodes if isinstance(node, ast.ClassDef)}
        self.functions = {node.name: node for node in nodes if isinstance(node, Function)}
        self.known: dict[tuple[str, str], str | None] = {}
        self.reads = [read for tree in self.trees for read in self._reads(tree, {}, None, "")]

    def lineage(self, name: str | None) -> list[str]:
        """A class and those it inherits from."""
        found = self.classes.get(name or "")
        bases = [named(base) for base in found.bases] if found else []
        return [name, *(each for base in bases for each in self.lineage(base))] if name else []

    def member(self, owner: str | None, name: str) -> str | None:
        """The class of an attribute, or what a method or a property gives."""
        for each in self.lineage(owner):
            if each in self.classes and (each, name) not in self.known:
                self.known[each, name] = None  # while it is being found out
                self.known[each, name] = self._member(self.classes[each], name)
            if found := self.known.get((each, name)):
                return found
        return None

    def _member(self, owner: ast.ClassDef, name: str) -> str | None:
        for part in owner.body:
            match part:
                case ast.AnnAssign(target=ast.Name(id=field)) if field == name:
                    return named(part.annotation)
                case ast.FunctionDef(name=method) if method == name:
                    return named(part.returns)
        for method in owner.body:
            if isinstance(method, Function):
                of = self.variables(method, {"self": owner.name})
                for target, value in assigned(method):
                    if ast.unparse(target) == f"self.{name}":
                        return self.kind(value, of)
        return None

    def kind(self, node: ast.AST, of: Mapping[str, str | None]) -> str | None:
        """The class of an expression, where the variables are of the classes `of`."""
        match node:
            case ast.Name(id=name):
                return of.get(name)
            case ast.Attribute(value=owner, attr=name):
                return self.member(self.kind(owner, of), name)
            case ast.Call(func=ast.Name(id=name)) if name in self.classes:
                return name
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                return named(self.functions[name].returns)
            case ast.Call(func=ast.Attribute() as method):
                return self.kind(method, of)
            case ast.BoolOp(values=[first, *_]) | ast.NamedExpr(value=first):
                return self.kind(first, of)
        return None

    def variables(self, function: Function, around: Mapping[str, str | None]) -> dict:
        """The class of each of a function's arguments and variables."""
        arguments = function.args
        of = dict(around) | {
            each.arg: named(each.annotation)
            for each in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
            if each.arg not in ("self", "cls")
        }
        for target, value in assigned(function):
            if isinstance(target, ast.Name):
                of[target.id] = self.kind(value, of)
        return of

    def _reads(self, node: ast.AST, of: Mapping, owner: str | None, function: str) -> Iterator:
        """Every attribute that is loaded: the class it is of, its name, and the class and the
        function that load it.
        """
        if isinstance(node, ast.ClassDef):
            owner, function = node.name, ""
        elif isinstance(node, Function):
            of = self.variables(node, of if function else {"self": owner, "cls": owner})
            function = function or node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            kind = self.kind(node.value, of)
            if kind is not None:
                yield kind, node.attr, owner, function
        children: Iterable[ast.AST] = ast.iter_child_nodes(node)
        if isinstance(node, ast.Raise):  # what is only refused has no effect
            children = ()
        elif isinstance(node, ast.If) and all(isinstance(each, ast.Raise) for each in node.body):
            children = node.orelse
        for child in children:
            yield from self._reads(child, of, owner, function)

    def unread(self, record: str, names: Iterable[str]) -> set[str]:
        """Those of a record's `names` that nothing outside it reads, nor a method of its own that
        is called; validation apart.
        """
        inside: list[tuple[str, str]] = []
        found: set[str] = set()
        for kind, name, owner, function in self.reads:
            if record not in self.lineage(kind):
                continue
            if record not in self.lineage(owner) and owner not in self.lineage(record):
                found.add(name)
            elif function not in VALIDATION or (owner in ACTING and function == "__post_init__"):
                inside.append((function, name))
        found.add("__post_init__")
        while more := {name for method, name in inside if method in found} - found:
            found |= more
        return set(names) - found
