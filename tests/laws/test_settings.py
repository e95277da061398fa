"""Every setting is read by some stage."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import TrainingArguments

import flagtrl
from flagtrl.language.settings import PromptSettings
from flagtrl.learning.settings import PPOSettings
from flagtrl.market.env import MarketSettings
from flagtrl.policy.settings import PolicySettings
from flagtrl.runs.data import DataSettings

ROOT = Path(flagtrl.__file__).parent
ACTING = {"PPOSettings", "PPOConfig"}  # whose __post_init__ also acts on its values
VALIDATION = {"_check_bounds", "__post_init__"}  # a bound alone is no use of a value


def attributes_read(tree: ast.AST) -> set[str]:
    """Names of the attributes that code reads, outside validation."""
    found, stack = set(), [(tree, False)]
    while stack:
        node, acting = stack.pop()
        if (
            isinstance(node, ast.FunctionDef)
            and node.name in VALIDATION
            and not (acting and node.name == "__post_init__")
        ):
            continue
        if isinstance(node, ast.ClassDef):
            acting = node.name in ACTING
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.add(node.attr)
        stack += [(child, acting) for child in ast.iter_child_nodes(node)]
    return found


@pytest.fixture(scope="module")
def read() -> set[str]:
    files = [*ROOT.rglob("*.py"), *(ROOT.parents[1] / "recipes").glob("*.py")]
    return set().union(*(attributes_read(ast.parse(file.read_text())) for file in files))


def test_the_reader_of_attributes_sees_reads_and_nothing_else():
    source = """
class Settings:
    declared: int = 1
    def __post_init__(self):
        if self.checked < 0: raise ValueError
    def act(self):
        self.written = self.used
class PPOConfig:
    def __post_init__(self):
        self.max_steps = self.acted_on
    def _check_bounds(self):
        assert self.bounded
"""
    assert attributes_read(ast.parse(source)) == {"used", "acted_on"}


@pytest.mark.parametrize(
    "record", [PPOSettings, MarketSettings, PromptSettings, PolicySettings, DataSettings]
)
def test_every_setting_is_read(read, record):
    # Trainer reads these
    inherited = {f.name for f in fields(TrainingArguments)} if record is PPOSettings else set()
    unread = set(record.__annotations__) - inherited - read
    assert not unread
