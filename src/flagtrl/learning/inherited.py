"""The options that a run inherits from transformers, read from their source: importing
TrainingArguments takes seconds, as torch comes with it.

Names, types, defaults and help are those of the installed transformers; none is kept by hand. A
test compares what is read with the class itself.
"""

from __future__ import annotations

import ast
import builtins
import typing
from collections.abc import Iterator
from dataclasses import MISSING, field, fields, make_dataclass
from enum import Enum
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CLASS, MODULE = "TrainingArguments", "training_args.py"
Field = tuple[str, Any, Any]  # as make_dataclass takes it: name, type, field


class Computed:
    """Stands for a default that transformers computes when it is imported."""

    def __repr__(self) -> str:
        return "chosen by transformers"


class Unread(str):
    """Stands for a type that only an import would tell: takes any text, for the class to judge."""


@lru_cache(maxsize=1)
def inherited_fields() -> tuple[Field, ...]:
    """The fields of the installed TrainingArguments, in their order.

    Where there is no source beside the package, or one that is written in another way, the class is
    imported: slow, and right.
    """
    found = find_spec("transformers")
    for folder in (found and found.submodule_search_locations) or ():
        try:
            return tuple(_Source(Path(folder) / MODULE).fields(CLASS))
        except (OSError, SyntaxError, ValueError, LookupError, TypeError):
            break
    return _imported()


def as_dataclass(name: str, own: tuple[Field, ...], *bases: type) -> type:
    """A dataclass with these fields; those of a base, which come later, win."""
    plain = make_dataclass(f"{name}Fields", own)
    return make_dataclass(name, (), bases=(*bases, plain))


def _imported() -> tuple[Field, ...]:
    from transformers import TrainingArguments

    hints = typing.get_type_hints(TrainingArguments)
    return tuple((each.name, hints[each.name], each) for each in fields(TrainingArguments))


class _Source:
    """A module of a package, as text: its dataclasses, and the enumerations that they name."""

    def __init__(self, path: Path):
        self.path, self.tree = path, ast.parse(path.read_text(encoding="utf-8"))

    def fields(self, name: str) -> Iterator[Field]:
        """The fields of the dataclass `name`."""
        for node in self._class(name).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                code = compile(ast.Expression(node.annotation), str(self.path), "eval")
                # An annotation alone: of names, `|` and brackets.
                kind = eval(code, {"__builtins__": {}}, _Names(self))
                yield node.target.id, kind, field(**_field_arguments(node.value))

    def enumeration(self, name: str) -> type[Enum] | None:
        """An enumeration of texts that this module defines, or imports from one beside it; None:
        neither.
        """
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ImportFrom) and any(a.name == name for a in node.names):
                beside = self.path.parent / f"{(node.module or '').replace('.', '/')}.py"
                known = node.level == 1 and beside.is_file() and beside != self.path
                return _Source(beside).enumeration(name) if known else None
        try:
            body = self._class(name).body
        except LookupError:
            return None
        members = {
            target.id: node.value.value
            for node in body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        return Enum(name, members) if members else None  # type: ignore[return-value]

    def _class(self, name: str) -> ast.ClassDef:
        for node in self.tree.body:
            if isinstance(node, ast.ClassDef) and node.name == name:
                return node
        raise LookupError(f"{self.path} defines no class {name}")


class _Names(dict[str, Any]):
    """What the names in a module's annotations stand for."""

    def __init__(self, source: _Source):
        super().__init__()
        self._source = source

    def __missing__(self, name: str) -> Any:
        known = getattr(builtins, name, None) or getattr(typing, name, None)
        self[name] = known or self._source.enumeration(name) or Unread
        return self[name]


def _field_arguments(node: ast.expr | None) -> dict[str, Any]:
    """What `dataclasses.field` is told of a default: a value, or a call of `field`."""
    if node is None:
        return {}
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return {"default": _literal(node, Computed())}
    told = {word.arg: word.value for word in node.keywords}
    found: dict[str, Any] = {}
    if "default" in told:
        found["default"] = _literal(told["default"], Computed())
    elif "default_factory" in told:
        made = {"list": list, "dict": dict}.get(ast.unparse(told["default_factory"]))
        found["default_factory" if made else "default"] = made or Computed()
    metadata = told.get("metadata")
    if isinstance(metadata, ast.Dict):
        entries = zip(metadata.keys, metadata.values, strict=True)
        read = {
            key.value: _literal(value) for key, value in entries if isinstance(key, ast.Constant)
        }
        found["metadata"] = {name: value for name, value in read.items() if value is not MISSING}
    return found


def _literal(node: ast.expr, otherwise: Any = MISSING) -> Any:
    """The value of a literal; `otherwise` where it is none."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return otherwise
