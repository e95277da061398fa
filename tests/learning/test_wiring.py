"""What a trainer is made of, looked at before it is made."""

import pytest
from transformers import EarlyStoppingCallback, PrinterCallback, TrainingArguments

from flagtrl.errors import ConfigError
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.wiring import check_kinds
from flagtrl.policy.settings import EngineSettings


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"args": {"gamma": 0.9}}, "args is of type dict; pass a PPOConfig"),
        ({"args": {}}, "args is of type dict; pass a PPOConfig"),
        ({"args": TrainingArguments(use_cpu=True)}, "args is of type TrainingArguments; pass a PP"),
        ({"engine": "plain"}, "engine is of type str; pass EngineSettings"),
        ({"callbacks": PrinterCallback()}, "callbacks is of type PrinterCallback; pass a list"),
        ({"callbacks": "wandb"}, "callbacks is of type str; pass a list"),
        ({"callbacks": [print]}, "one of callbacks is of type builtin_function_or_method; pass"),
    ],
)
def test_an_argument_of_another_kind_is_refused_in_one_line(change, said):
    with pytest.raises(ConfigError) as caught:
        check_kinds(**{"args": None, "engine": None, "callbacks": ()} | change)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


def test_arguments_of_their_own_kinds_are_taken(tmp_path):
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True)
    check_kinds(args, EngineSettings(), [PrinterCallback, EarlyStoppingCallback(2)])
    check_kinds(None, None, ())
