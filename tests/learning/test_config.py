import re
from dataclasses import MISSING, fields

import pytest

from flagtrl.errors import ConfigError
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.settings import PPOSettings
from flagtrl.record import may_change

DEFAULTS = {
    f.name: f.default if f.default is not MISSING else f.default_factory for f in fields(PPOConfig)
}


def config(tmp_path, **kwargs) -> PPOConfig:
    return PPOConfig(output_dir=str(tmp_path), use_cpu=True, train_dtype="float32", **kwargs)


def spec_table(shared) -> dict[str, str]:
    """Section 4's table: the paper's names and defaults, one entry per name."""
    section = (
        (shared / "spec/flag_trader.md").read_text().partition("## 4.")[2].partition("## 5.")[0]
    )
    rows = [
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in section.splitlines()
        if line.startswith("| ")
    ]
    table = {}
    for names, values, *_ in rows[1:]:
        names, values = re.split(r"\s*/\s*", names), re.split(r"\s*/\s*", values)
        table |= dict(zip(names, values, strict=True))
    return table


def test_defaults_are_those_of_the_papers_table(shared):
    table = spec_table(shared)
    assert len(table) == 22 and table["learning_rate"] == "5e-4"  # the table was read whole
    assert DEFAULTS["llm"].rpartition("/")[2] == table.pop("llm")
    for name, text in table.items():
        default = DEFAULTS[name]
        assert (
            str(default) == text
            if isinstance(default, (str, bool, type(None)))
            else default == float(text)
        ), name


def test_defaults_are_accepted_where_there_is_no_gpu():
    made = PPOConfig(use_cpu=True)
    assert (made.train_dtype, made.fp16, made.bf16) == ("float16", False, False)
    # 13860 // 40, and 40 samples are 2 minibatches
    assert made.num_rollouts == 346 and made.optimizer_steps == 346 * 2


# ------------------------------------------------------------------------------------------- bounds

OUT_OF_BOUNDS = {
    "total_timesteps": [(0, "at least 1"), (-40, "at least 1"), (39, "num_steps x num_envs = 40")],
    "num_envs": [(0, "at least 1"), (-1, "at least 1"), (1.5, "a whole number")],
    "num_steps": [(0, "at least 1")],
    "max_episode_steps": [(0, "at least 1")],
    "update_epochs": [(0, "at least 1")],
    "minibatch_size": [(0, "at least 1")],
    "gamma": [
        (-0.01, "in [0, 1]"),
        (1.01, "in [0, 1]"),
        (float("nan"), "in [0"),
        ([1, 2], "in [0"),
        (None, "in [0"),
    ],
    "gae_lambda": [(-0.01, "in [0, 1]"), (1.01, "in [0, 1]")],
    "learning_rate": [(-1e-4, "at least 0"), (float("nan"), "finite"), (float("inf"), "finite")],
    "head_learning_rate": [(-1e-4, "at least 0"), (float("inf"), "finite")],
    "ent_coef": [(-0.1, "at least 0"), (float("nan"), "finite")],
    "vf_coef": [(-0.1, "at least 0")],
    "kl_coef": [(-0.1, "at least 0")],
    "language_kl_coef": [(-0.1, "at least 0")],
    "max_grad_norm": [(-0.1, "at least 0")],
    "clip_coef": [(0.0, "between 0 and 1"), (1.0, "between 0 and 1")],
    "early_stopping_patience": [(0, "at least 1"), (1, "it needs eval_strategy steps")],
    "target_kl": [(0.0, "above 0"), (-1.0, "above 0")],
    "dropout": [(-0.1, "at least 0"), (1.0, "below 1")],
    "advantage": [("grpo", "gae, leave_one_out, exact")],
    "risk": [("loss", "none, turnover, drawdown, cvar")],
    "risk_coef": [(-0.1, "at least 0")],
    "risk_level": [(0.0, "between 0 and 1"), (1.0, "between 0 and 1")],
    "risk_limit": [(0.0, "above 0"), (-1.0, "above 0")],
    "risk_rate": [(-0.1, "at least 0")],
    "train_dtype": [("float8", "float16, bfloat16, float32")],
    "overwrite_output_dir": [("false", "true or false")],
    "anneal_lr": [("no", "true or false"), (None, "true or false")],
    "norm_adv": [("false", "true or false"), (0, "true or false")],
    "clip_vloss": [("false", "true or false")],
    "ddp_find_unused_parameters": [("false", "true or false, or left out")],
    "ddp_broadcast_buffers": [("false", "true or false, or left out")],
    "gradient_accumulation_steps": [
        (0, "smallest minibatch has 20"),
        (21, "smallest minibatch has 20"),
    ],
}
UNBOUNDED = {
    *("output_dir", "llm"),
    *("save_steps", "logging_steps", "report_to"),  # read by transformers' Trainer
}


@pytest.mark.parametrize(
    ("name", "value", "bound"), [(n, v, b) for n, cases in OUT_OF_BOUNDS.items() for v, b in cases]
)
def test_a_value_out_of_bounds_is_refused_with_value_and_bound(tmp_path, name, value, bound):
    with pytest.raises(ConfigError) as caught:
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: value})
    message = str(caught.value)
    assert message.startswith(f"{name} is {value!r}") and bound in message and "\n" not in message


def test_every_field_has_a_bound_or_is_known_to_need_none():
    assert set(OUT_OF_BOUNDS) | UNBOUNDED == set(PPOSettings.__annotations__)


@pytest.mark.parametrize(
    "edge",
    [
        {"gamma": 0.0, "gae_lambda": 0.0},
        {"gamma": 1.0, "gae_lambda": 1.0},
        {"learning_rate": 0.0, "head_learning_rate": 0.0, "max_grad_norm": 0.0},
        {"ent_coef": 0.0, "vf_coef": 0.0, "kl_coef": 0.0},
        {"total_timesteps": 40},
        {"gradient_accumulation_steps": 20},
        {
            "num_steps": 1,
            "total_timesteps": 1,
            "minibatch_size": 1,
            "gradient_accumulation_steps": 1,
        },
        {"target_kl": 1e-9, "dropout": 0.99, "clip_coef": 0.99},
    ],
)
def test_values_on_their_bounds_are_accepted(tmp_path, edge):
    made = config(tmp_path, **edge)
    assert all(getattr(made, name) == value for name, value in edge.items())


# -------------------------------------------------------------------------------- counting of steps


def test_40_samples_in_minibatches_of_32_are_2_minibatches(tmp_path):
    assert config(tmp_path).num_minibatches == 2


@pytest.mark.parametrize(
    ("settings", "rollouts", "minibatches", "steps"),
    [
        # total, envs, steps, minibatch, epochs
        ((13_860, 1, 40, 32, 1), 346, 2, 692),
        ((160, 1, 40, 32, 1), 4, 2, 8),
        ((160, 1, 40, 40, 3), 4, 1, 12),
        ((100, 2, 10, 8, 2), 5, 3, 30),
        ((119, 4, 10, 8, 2), 2, 5, 20),  # 39 steps do not fill a rollout
        ((7, 1, 1, 32, 5), 7, 1, 35),
    ],
)
def test_optimizer_steps_are_rollouts_times_epochs_times_minibatches(
    tmp_path, settings, rollouts, minibatches, steps
):
    names = ("total_timesteps", "num_envs", "num_steps", "minibatch_size", "update_epochs")
    made = config(
        tmp_path, gradient_accumulation_steps=1, **dict(zip(names, settings, strict=True))
    )
    assert (made.num_rollouts, made.num_minibatches) == (rollouts, minibatches)
    assert made.optimizer_steps == made.max_steps == steps
    assert made.steps_per_rollout * made.num_rollouts == steps


def test_steps_that_fill_no_rollout_are_warned_of(tmp_path, caplog):
    config(tmp_path, total_timesteps=32, num_steps=16)
    config(tmp_path, total_timesteps=13_860, num_steps=40)  # the paper's: 20 too many
    assert not caplog.messages
    config(tmp_path, total_timesteps=31, num_steps=16)
    [said] = [each for each in caplog.records if each.levelname == "WARNING"]
    told = said.getMessage()
    assert told.startswith("total_timesteps is 31") and "rollouts of 16" in told
    assert "16 are trained, 15 do not fill a rollout" in told and "\n" not in told


def test_max_steps_in_conflict_with_total_timesteps_is_refused(tmp_path):
    with pytest.raises(
        ConfigError, match=r"max_steps is 7, but total_timesteps=80 makes 4 .*leave max_steps out"
    ):
        config(tmp_path, total_timesteps=80, max_steps=7)
    assert config(tmp_path, total_timesteps=80, max_steps=4).max_steps == 4


def test_without_annealing_the_learning_rate_is_constant(tmp_path):
    assert str(config(tmp_path).lr_scheduler_type) in ("linear", "SchedulerType.LINEAR")
    assert config(tmp_path, anneal_lr=False).lr_scheduler_type == "constant_with_warmup"
    assert (
        config(tmp_path, anneal_lr=False, lr_scheduler_type="cosine").lr_scheduler_type == "cosine"
    )
    with pytest.raises(
        ConfigError, match="warmup_steps is 5, which lr_scheduler_type constant does not read"
    ):
        config(tmp_path, anneal_lr=False, lr_scheduler_type="constant", warmup_steps=5)
    with pytest.raises(
        ConfigError, match=r"anneal_lr is a linear decay, but lr_scheduler_type is 'cosine'"
    ):
        config(tmp_path, lr_scheduler_type="cosine")


@pytest.mark.parametrize(
    ("setting", "value", "remedy"),
    [
        ("per_device_train_batch_size", 4, "set minibatch_size"),
        ("num_train_epochs", 2.0, "set total_timesteps"),
        ("gradient_checkpointing", True, "leave it out"),
        ("torch_compile", True, "leave it out"),
        ("eval_strategy", "epoch", "set it to steps"),
        ("seed", -1, "a whole number from 0"),
        ("seed", 2**32, "a whole number from 0"),
        ("label_smoothing_factor", 0.5, "leave it out"),
        ("neftune_noise_alpha", 5.0, "leave it out"),
        ("weight_decay", -1, "at least 0"),
        ("optim", "nope", "use adamw_torch_fused"),
    ],
)
def test_a_setting_that_would_be_ignored_is_refused(tmp_path, setting, value, remedy):
    with pytest.raises(ConfigError, match=f"^{setting} is {value!r}.*{remedy}"):
        config(tmp_path, **{setting: value})


def test_what_transformers_refuses_is_said_in_one_line(tmp_path):
    for setting in ({"logging_steps": 1.5}, {"lr_scheduler_type": "nope", "anneal_lr": False}):
        with pytest.raises(ConfigError, match=r"nope|1\.5") as caught:
            config(tmp_path, **setting)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dtype", "flag"),
    [("float32", "bf16"), ("float32", "fp16"), ("float16", "bf16"), ("bfloat16", "fp16")],
)
def test_a_precision_that_is_asked_for_twice_and_differently_is_refused(tmp_path, dtype, flag):
    with pytest.raises(ConfigError, match=f"^train_dtype is '{dtype}'.*, but {flag} is set.*leave"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, train_dtype=dtype, **{flag: True})


def test_float32_is_said_on_a_cpu_only_where_it_is_so(tmp_path, caplog):
    caplog.set_level("INFO", "flagtrl")
    asked = {"output_dir": str(tmp_path), "use_cpu": True, "train_dtype": "bfloat16"}
    assert PPOConfig(**asked, bf16=True).bf16 and "training in float32" not in caplog.text
    assert not PPOConfig(**asked).bf16 and "training in float32" in caplog.text


@pytest.mark.parametrize(
    ("metric", "greater"), [("standard_SR", True), ("paper_CR", True), ("standard_MDD", False)]
)
def test_of_risk_less_is_better(tmp_path, metric, greater):
    assert (
        config(tmp_path, eval_strategy="steps", metric_for_best_model=metric).greater_is_better
        is greater
    )


def test_what_is_shown_is_all_that_determines_the_course(tmp_path):
    """But not what follows from train_dtype: who reads it back may choose another."""
    made = config(tmp_path, weight_decay=0.1, optim="sgd", save_total_limit=2)
    shown = made.settings()
    assert (shown["weight_decay"], shown["optim"]) == (0.1, "sgd")
    assert {name for name in made.recorded() if not may_change(name)} - set(shown) == {
        "fp16",
        "bf16",
    }
    assert set(PPOSettings.__annotations__) <= set(shown) and "save_total_limit" not in shown
    made.train_dtype, made.fp16 = "float16", True  # as on a GPU
    assert "fp16" not in made.settings()


def test_a_minibatch_is_at_most_minibatch_size_over_all_processes(tmp_path, monkeypatch):
    settings = {
        "num_envs": 2,
        "num_steps": 5,
        "minibatch_size": 5,
        "gradient_accumulation_steps": 1,
        "total_timesteps": 10,
    }
    assert config(tmp_path, **settings).num_minibatches == 2  # 10 samples in minibatches of 5
    monkeypatch.setenv("WORLD_SIZE", "2")
    # of 5 over both processes
    assert PPOConfig.num_minibatches.fget(config_without_processes(tmp_path, settings)) == 2


def config_without_processes(tmp_path, settings):
    """The settings alone: a real PPOConfig would try to reach the other processes."""
    made = object.__new__(PPOConfig)
    made.__dict__.update(settings)
    return made


def test_a_token_is_in_no_repr(tmp_path):
    config = PPOConfig(output_dir=str(tmp_path), use_cpu=True, hub_token="hf_secret")
    assert "hf_secret" not in repr(config) + str(config) and "gamma" in repr(config)
