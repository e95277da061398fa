"""What is read of transformers' source is what the class itself has."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments
from trl import TrlParser

from flagtrl.learning import inherited
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.inherited import Computed, Unread, as_dataclass, inherited_fields
from flagtrl.learning.settings import PPOSettings

COMPUTED = {  # by transformers, when it is imported: the class judges these alone
    ("optim", "default"),
    ("log_level", "choices"),
    ("log_level_replica", "choices"),
}


def options(kind):
    """What a parser makes of each field; a true setting has two options."""
    return [action for action in TrlParser(kind)._actions if action.dest != "help"]


def test_every_option_has_the_names_the_type_and_the_help_of_the_class():
    read, real = options(as_dataclass("Read", inherited_fields())), options(TrainingArguments)
    assert [action.dest for action in read] == [action.dest for action in real]
    assert len(read) > 100
    differing = set()
    for ours, theirs in zip(read, real, strict=True):
        for name in ("option_strings", "nargs", "const", "help", "metavar", "required"):
            assert getattr(ours, name) == getattr(theirs, name), (ours.dest, name)
        if ours.default != theirs.default:
            assert isinstance(ours.default, Computed)
            differing.add((ours.dest, "default"))
        if ours.choices != theirs.choices:
            assert ours.choices is None
            differing.add((ours.dest, "choices"))
        kinds = [getattr(action.type, "__name__", None) for action in (ours, theirs)]
        assert kinds[0] in (kinds[1], Unread.__name__), ours.dest
    assert differing <= COMPUTED


def test_an_enumeration_gives_the_choices_of_the_class():
    found = {
        action.dest: action.choices for action in options(as_dataclass("R", inherited_fields()))
    }
    assert {"linear", "cosine"} <= set(found["lr_scheduler_type"])
    assert {"adamw_torch", "sgd"} <= set(
        found["optim"]
    )  # of the module itself, the other is beside


def test_flagtrls_own_fields_win_and_keep_their_place():
    stand_in = as_dataclass("Training", inherited_fields(), PPOSettings)
    assert [f.name for f in fields(stand_in)] == [f.name for f in fields(PPOConfig)]
    ours = {f.name: f for f in fields(stand_in)}
    for f in fields(PPOSettings):
        assert ours[f.name].default == f.default and ours[f.name].metadata == f.metadata


@pytest.mark.parametrize(
    "source", [None, "class Else:\n    x: int = 1\n", "class TrainingArguments(\n"]
)
def test_where_the_source_cannot_be_read_the_class_is_imported(monkeypatch, tmp_path, source):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    if source is not None:
        (folder / "training_args.py").write_text(source)
    found = type("Spec", (), {"submodule_search_locations": [str(folder)]})
    monkeypatch.setattr(inherited, "find_spec", lambda name: found)
    inherited_fields.cache_clear()
    try:
        names = [name for name, _, _ in inherited_fields()]
    finally:
        inherited_fields.cache_clear()
    assert names == [f.name for f in fields(TrainingArguments)]
    read = as_dataclass("Read", inherited_fields())
    assert [f.name for f in fields(read)] == names


def test_a_source_of_another_form_is_read_too(tmp_path):
    """Defaults without `field`, factories, texts that are computed, names that nothing explains."""
    (tmp_path / "kinds.py").write_text("class Kind(str, Enum):\n    A = 'a'\n    B = 'b'\n")
    path = tmp_path / "settings.py"
    path.write_text(
        "from .kinds import Kind\n"
        "class Settings:\n"
        "    plain: int = 3\n"
        "    kind: Kind | str = field(default='a', metadata={'help': ABOUT, 'aliases': '-k'})\n"
        "    many: list[str] = field(default_factory=list)\n"
        "    made: str = field(default_factory=now)\n"
        "    other: Strange | None = None\n"
    )
    found = {name: (kind, f) for name, kind, f in inherited._Source(path).fields("Settings")}
    assert (found["plain"][0], found["plain"][1].default) == (int, 3)
    assert [member.value for member in found["kind"][0].__args__[0]] == ["a", "b"]
    assert dict(found["kind"][1].metadata) == {"aliases": "-k"}
    assert found["many"][1].default_factory is list
    assert isinstance(found["made"][1].default, Computed)
    assert found["other"][0] == Unread | None
