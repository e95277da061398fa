"""A file of the package is read in one sitting, a function without scrolling."""

import ast
from pathlib import Path

import pytest

import flagtrl

ROOT = Path(flagtrl.__file__).parent
FILE_LINES, FUNCTION_LINES = 350, 60


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= FILE_LINES, "does it still do one thing?"
    functions = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )
    long = {f.name: n for f in functions if (n := f.end_lineno - f.lineno + 1) > FUNCTION_LINES}
    assert not long
