import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.distributions import Categorical
from transformers import AutoModelForCausalLM, AutoTokenizer

from architectures import CONFIGS
from flagtrl.errors import AdapterError, ConfigError, NonFiniteLossError
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.meters import OF_ROLLOUTS, OF_UPDATES
from flagtrl.learning.steps import micro_batches
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.policy import heads
from flagtrl.policy.backbone import MEASURES
from flagtrl.policy.loading import load_policy
from training import (
    STEPS,
    AtStep,
    Rates,
    Spy,
    break_a_weight,
    digests,
    entries,
    equal,
    load,
    tiny_trainer,
    weights,
)

# the other architectures train 200 steps in the slow suite


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({"num_steps": 7, "minibatch_size": 5}, [5, 5, 4]),
        (
            {
                "num_envs": 1,
                "num_steps": 40,
                "minibatch_size": 32,
                "gradient_accumulation_steps": 8,
            },
            [20, 20],
        ),
        ({"num_steps": 6, "minibatch_size": 12, "gradient_accumulation_steps": 5}, [12]),
        ({"num_envs": 1, "num_steps": 11, "minibatch_size": 3}, [3, 3, 3, 2]),
    ],
)
def test_minibatches_respect_the_maximum_and_differ_by_one_at_most(
    small_model, tmp_path, settings, sizes
):
    trainer = tiny_trainer(small_model, tmp_path, **settings)
    samples, accumulation = trainer.args.rollout_samples, trainer.args.gradient_accumulation_steps
    schedule = micro_batches(trainer.args, 0, range(trainer.args.num_envs))
    assert len(schedule) == 2 * len(sizes) * accumulation
    for epoch in (schedule[: len(schedule) // 2], schedule[len(schedule) // 2 :]):
        assert sorted(row for rows, _, _ in epoch for row in rows) == list(range(samples))
        groups = [epoch[i : i + accumulation] for i in range(0, len(epoch), accumulation)]
        assert (
            sorted((sum(len(rows) for rows, _, _ in group) for group in groups), reverse=True)
            == sizes
        )
        for group in groups:
            assert {size for _, _, size in group} == {sum(len(rows) for rows, _, _ in group)}
            assert all(counted == len(rows) for rows, counted, _ in group)
            lengths = [len(rows) for rows, _, _ in group]
            assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1


# -------------------------------------------------------------------------------- the loss, by hand


def hand_advantages(rollout, gamma, gae_lambda) -> np.ndarray:
    """(T, B) in float64, from the definition."""
    r, v, after = (
        x.double().numpy() for x in (rollout.rewards, rollout.values, rollout.next_values)
    )
    stop, end = rollout.terminated.numpy(), rollout.ended.numpy()
    advantages = np.zeros_like(r)
    for b in range(r.shape[1]):
        later = 0.0
        for t in reversed(range(len(r))):
            delta = r[t, b] + (0.0 if stop[t, b] else gamma * after[t, b]) - v[t, b]
            later = delta + (0.0 if end[t, b] else gamma * gae_lambda * later)
            advantages[t, b] = later
    return advantages


def hand_loss(micro, rollout, reference, minibatch) -> float:
    """L of the micro-batch's samples with the paper's coefficients, divided by the minibatch's
    size.
    """
    advantages = hand_advantages(rollout, 0.95, 0.98)
    returns = (advantages + rollout.values.double().numpy()).ravel()
    white = ((advantages - advantages.mean()) / advantages.std(ddof=1)).ravel()
    old, actions, total = rollout.logprobs.flatten(0, 1).double(), rollout.actions.flatten(), 0.0
    old_values = rollout.values.flatten().double()
    for i, row in enumerate(micro.rows):
        new, value = micro.logprobs[i].double(), float(micro.values[i])
        legal = torch.isfinite(new)
        ratio = float((new[actions[row]] - old[row, actions[row]]).exp())
        surrogate = min(ratio * white[row], min(max(ratio, 0.8), 1.2) * white[row])
        near = float(old_values[row]) + min(max(value - float(old_values[row]), -0.2), 0.2)
        value_error = max((value - returns[row]) ** 2, (near - returns[row]) ** 2)
        now, ref = (
            Categorical(logits=new[legal]),
            Categorical(logits=reference[row].double()[legal]),
        )
        kl = torch.distributions.kl_divergence(now, ref)
        total += -surrogate + 0.5 * value_error - 0.05 * float(now.entropy()) + 0.05 * float(kl)
    return total / minibatch


def test_the_loss_of_every_micro_batch_is_the_papers_formula(run):
    rollout = run.rollouts[0]
    # the policy that collected the first rollout is the reference itself
    reference = rollout.logprobs.flatten(0, 1)
    losses = [hand_loss(m, rollout, reference, minibatch=4) for m in run.seen[:12]]
    np.testing.assert_allclose([m.loss for m in run.seen[:12]], losses, atol=2e-5, rtol=1e-4)
    assert np.ptp([m.values.max() for m in run.seen[:12]]) > 1e-3, "the values must have moved"
    logged = [entry["loss"] for entry in run.state.log_history[:6]]
    # rounded to 4 digits
    np.testing.assert_allclose(logged, np.array(losses).reshape(6, 2).sum(1), atol=1e-4)


# ----------------------------------------------------------------------------------- learning rates


def test_top_and_heads_have_their_own_rates_and_both_decay_linearly_to_0(run):
    for step, rates in enumerate(run.rates.rates):
        assert set(np.round(rates, 12)) == {
            round(2e-3 * (1 - step / 18), 12),
            round(1e-3 * (1 - step / 18), 12),
        }
    assert {group["lr"] for group in run.optimizer.param_groups} == {0.0}, "after the last step"
    assert [entry["learning_rate"] for entry in run.state.log_history[:18]] == pytest.approx(
        [2e-3 * (1 - (step + 1) / 18) for step in range(18)], abs=1.2e-4
    )


@pytest.mark.parametrize(
    ("rates", "moved"), [((0.0, 1e-3), "value_head"), ((1e-3, 0.0), "language_model")]
)
def test_a_rate_of_0_freezes_its_part_and_no_other(small_model, tmp_path, rates, moved):
    trainer = tiny_trainer(
        small_model, tmp_path, learning_rate=rates[0], head_learning_rate=rates[1], update_epochs=1
    )
    before = weights(trainer)
    trainer.train()
    changed = {
        name for name, tensor in weights(trainer).items() if not torch.equal(tensor, before[name])
    }
    assert changed and {name.split(".")[0] for name in changed} == {moved}


def test_without_annealing_the_rates_stay(small_model, tmp_path):
    rates = Rates()
    tiny_trainer(small_model, tmp_path, anneal_lr=False, callbacks=[rates]).train()
    assert {tuple(sorted(set(r))) for r in rates.rates} == {(1e-3, 2e-3)}


def test_every_trainable_weight_learns_and_no_other_moves(run, small_model):
    after = weights(run)
    assert all(not torch.equal(after[name], run.start[name]) for name in after)
    base = load(small_model, "compact")[0].state_dict()
    for name, parameter in run.model.language_model.named_parameters():
        if not parameter.requires_grad and "lora_" not in name:
            plain = (
                name.replace("base_model.model.", "")
                .replace("original_module.", "")
                .replace("base_layer.", "")
            )
            assert torch.equal(parameter, base[plain]), name


# -------------------------------------------------------------------------------------- NaN weights


def test_a_nan_within_a_rollout_stops_at_once_and_leaves_the_saved_files_as_they_were(
    small_model, tmp_path
):
    kept = {}
    remember = AtStep(lambda model: kept.update(digests(tmp_path / "checkpoint-6")), 7)
    trainer = tiny_trainer(
        small_model,
        tmp_path,
        rollouts=2,
        save_strategy="steps",
        save_steps=6,
        callbacks=[remember, AtStep(break_a_weight, 8)],
    )
    with pytest.raises(
        NonFiniteLossError, match=r"optimizer step 9.*= nan.*learning_rate"
    ) as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-6"]
    assert "adapter_model.safetensors" in kept and digests(tmp_path / "checkpoint-6") == kept
    loaded = load_policy(tmp_path / "checkpoint-6").model
    assert all(torch.isfinite(p).all() for p in loaded.parameters())
    with pytest.raises(AdapterError, match="NaN"):
        trainer.save_model(str(tmp_path / "final"))
    assert not (tmp_path / "final" / "adapter_model.safetensors").exists()


def test_a_nan_after_a_rollouts_last_step_is_a_non_finite_loss_too(small_model, tmp_path):
    trainer = tiny_trainer(
        small_model, tmp_path, rollouts=2, callbacks=[AtStep(break_a_weight, STEPS)]
    )
    with pytest.raises(NonFiniteLossError, match=f"optimizer step {STEPS + 1}"):
        trainer.train()


@pytest.mark.slow
def test_a_checkpoint_due_with_nan_weights_is_refused_and_the_last_one_stays(small_model, tmp_path):
    trainer = tiny_trainer(
        small_model,
        tmp_path,
        rollouts=3,
        save_strategy="steps",
        save_steps=6,
        callbacks=[AtStep(break_a_weight, 12)],
    )
    with pytest.raises(AdapterError, match="nothing was saved"):
        trainer.train()
    load_policy(tmp_path / "checkpoint-6")
    assert not (tmp_path / "checkpoint-12").exists(), "--resume_from_checkpoint true would take it"


# ------------------------------------------------------------------------------ checkpoints, resume


def test_a_checkpoint_due_within_a_rollout_is_written_at_its_end(small_model, tmp_path):
    # due at 4, 8, 12, 16, 18
    tiny_trainer(small_model, tmp_path, rollouts=3, save_strategy="steps", save_steps=4).train()
    assert sorted(int(path.name.split("-")[1]) for path in tmp_path.glob("checkpoint-*")) == [
        6,
        12,
        18,
    ]


@pytest.mark.parametrize(
    ("policy", "finetuning"),
    [("action_tokens", "full_top"), pytest.param("head", "lora", marks=pytest.mark.slow)],
)
def test_resuming_at_a_rollouts_end_is_bit_identical(small_model, tmp_path, policy, finetuning):
    kind = {
        "policy": policy,
        "finetuning": finetuning,
        "rollouts": 3,
        "save_strategy": "steps",
        "save_steps": 6,
    }
    kind["merge_tokens"] = 8192 if finetuning == "lora" else 0
    undisturbed = tiny_trainer(small_model, tmp_path / "a", **kind)
    undisturbed.train()
    resumed = tiny_trainer(small_model, tmp_path / "b", **kind)
    with torch.no_grad():  # nothing may survive of what the new trainer starts with
        for parameter in resumed.model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    torch.rand(7)
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-6"))
    assert resumed.state.global_step == 18
    assert equal(weights(resumed), weights(undisturbed))
    steps = [e for e in entries(resumed, 7) if "loss" in e]
    assert steps == [e for e in entries(undisturbed, 7) if "loss" in e] and len(steps) == 12


@pytest.mark.slow
@pytest.mark.parametrize("finetuning", ["full_top", "lora"])
def test_micro_batches_that_are_run_together_train_alike(small_model, tmp_path, finetuning):
    """80 environment steps, every logged loss; and in fewer passes."""
    logs, passes = [], []
    for tokens in (0, 8192):
        options = {
            "num_steps": 10,
            "total_timesteps": 80,
            "max_episode_steps": 30,
            "finetuning": finetuning,
        }
        trainer = tiny_trainer(small_model, tmp_path, kind=Spy, merge_tokens=tokens, **options)
        trainer.train()
        logs.append([entry for entry in entries(trainer) if "loss" in entry])
        passes.append(len(trainer.seen))
    assert len(logs[0]) == len(logs[1]) == 32 and passes[0] == 2 * passes[1]
    for apart, together in zip(*logs, strict=True):
        # rows of another length are summed in another order, by oneDNN more so than by MKL
        norms = apart.pop("grad_norm"), together.pop("grad_norm")
        assert norms[0] == pytest.approx(norms[1], abs=1e-3, rel=0.05), apart["step"]
        assert apart == pytest.approx(together, abs=1e-3, rel=5e-3), apart["step"]


@pytest.mark.slow
@pytest.mark.parametrize("style", ["compact", "markov"])
def test_what_the_cache_holds_does_not_change_a_bit(small_model, tmp_path, style):
    """So a resumed run, whose cache is empty, repeats the undisturbed one.

    `markov` prompts are known ahead, and are read in other batches where there is room for them
    all: in either case bits are the same whatever else the cache has room for, down to what it must
    drop again.
    """
    options = {"rollouts": 2, "style": style, "days": 20}
    trained, pinned = {}, {}
    for limit in (0, 0.3, 100):
        trainer = tiny_trainer(small_model, tmp_path, trunk_cache_mb=limit, **options)
        trainer.train()
        trained[limit], pinned[limit] = weights(trainer), trainer.model.trunk.cache.pinned_bytes
    assert pinned[0] == pinned[0.3] == 0 and (pinned[100] > 0) == (style == "markov")
    assert equal(trained[0], trained[0.3])
    if style == "compact":
        assert equal(trained[0], trained[100])
        return
    tight = tiny_trainer(
        small_model, tmp_path, trunk_cache_mb=pinned[100] / 2**20 / 0.89, **options
    )
    tight.train()
    assert tight.model.trunk.cache.pinned_bytes == pinned[100]
    assert equal(weights(tight), trained[100])


@pytest.mark.filterwarnings(r"ignore:The following (rank|alpha)_pattern keys:RuntimeWarning")
@pytest.mark.parametrize(
    ("architecture", "finetuning"),
    [
        pytest.param(
            name, kind, marks=() if (name, kind) == ("llama", "full_top") else pytest.mark.slow
        )
        for kind in ("full_top", "lora")
        for name in CONFIGS
    ],
)
def test_both_engines_train_alike(small_model, tmp_path, monkeypatch, architecture, finetuning):
    """100 environment steps, every logged loss.

    With the heads on the hidden state as it is. Standardised it is divided by 1/25 of its size, and
    the value loss of these models, whose values are far larger than their returns, throws the top
    layers about so much that rounding grows tenfold every few updates. tests/policy/test_heads.py
    holds the standardised heads to each other at equal weights.
    """
    monkeypatch.setattr(heads.Standardise, "measure", lambda *_: None)
    config = copy.deepcopy(CONFIGS[architecture])
    config.update({"vocab_size": 49152, "max_position_embeddings": 8192, "pad_token_id": 2})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    AutoTokenizer.from_pretrained(small_model).save_pretrained(tmp_path / "model")
    options = {
        "finetuning": finetuning,
        "num_steps": 10,
        "total_timesteps": 100,
        "max_episode_steps": 30,
        "update_epochs": 1,
    }
    logs = []
    for engine in ("plain", "split"):
        trainer = tiny_trainer(tmp_path / "model", tmp_path / engine, engine=engine, **options)
        trainer.train()
        logs.append([entry for entry in entries(trainer) if "loss" in entry])
    assert len(logs[0]) == len(logs[1]) == 20
    for plain, split in zip(*logs, strict=True):
        assert plain.keys() == split.keys() - set(MEASURES)
        assert plain == pytest.approx({name: split[name] for name in plain}, abs=1e-4, rel=1e-4), (
            plain["step"]
        )


def test_a_saved_checkpoint_is_the_policy_of_its_step(small_model, tmp_path):
    at_six = {}
    remember = AtStep(
        lambda model: at_six.update({n: p.detach().clone() for n, p in model.named_parameters()}), 6
    )
    tiny_trainer(
        small_model, tmp_path, rollouts=2, save_strategy="steps", save_steps=6, callbacks=[remember]
    ).train()
    loaded = dict(load_policy(tmp_path / "checkpoint-6").model.named_parameters())
    assert loaded.keys() == at_six.keys() and all(
        torch.equal(loaded[name], at_six[name]) for name in loaded
    )


def test_resuming_with_other_settings_inside_a_rollout_is_refused(small_model, tmp_path):
    tiny_trainer(small_model, tmp_path, rollouts=2, save_strategy="steps", save_steps=6).train()
    # 9 steps to a rollout
    longer = tiny_trainer(small_model, tmp_path, rollouts=2, update_epochs=3)
    with pytest.raises(AdapterError, match=r"training\.update_epochs = 2, this run has 3"):
        longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))


# ---------------------------------------------------------------------------------------- target_kl


@pytest.mark.parametrize("merge_tokens", [0, 8192])
def test_target_kl_ends_a_rollouts_update_and_leaves_weights_alone_until_the_next(
    small_model, tmp_path, merge_tokens
):
    after = []
    watch = AtStep(
        lambda model: after.append(
            {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
        )
    )
    options = {"target_kl": 1e-6, "learning_rate": 1e-2, "merge_tokens": merge_tokens}
    trainer = tiny_trainer(
        small_model, tmp_path, rollouts=2, callbacks=[watch], kind=Spy, **options
    )
    trainer.train()
    assert trainer.state.global_step == len(after) == 12, "the count of steps goes on"
    # the first minibatch of a rollout has KL 0, the second finds the policy moved: its step is the
    # last
    changed = [not equal(before, now) for before, now in pairwise(after)]
    assert changed == [True, False, False, False, False, True, True, False, False, False, False]
    assert sorted({m.step for m in trainer.seen}) == [1, 2, 7, 8]


@pytest.mark.slow
def test_a_generous_target_kl_stops_nothing(run, small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, rollouts=3, target_kl=100.0)
    trainer.train()
    assert equal(weights(trainer), weights(run))


# ------------------------------------------------------------------------------------------ logging


def test_the_log_has_every_metric(run):
    history = run.state.log_history
    assert set().union(*history) >= {
        # risk is of exact advantages, language_kl of a run that pays for it
        *OF_ROLLOUTS,
        *(f"action_share/{word}" for word in ACTION_WORDS),
        *(name for name in OF_UPDATES if not name.startswith(("risk", "language"))),
        *MEASURES,
        "loss",
        "grad_norm",
        "learning_rate",
    }
    for entry in history[:18]:
        assert {
            "loss",
            "grad_norm",
            "learning_rate",
            "policy_loss",
            "value_loss",
            "entropy",
            "kl",
            "ratio",
        } <= set(entry)
        assert all(np.isfinite(value) for value in entry.values())
    assert all(("reward" in entry) == (i % STEPS == 0) for i, entry in enumerate(history[:18])), (
        "once per rollout"
    )


def test_logged_rollout_metrics_are_means_over_the_rollout(run):
    for number, rollout in enumerate(run.rollouts):
        entry = run.state.log_history[STEPS * number]
        assert entry["reward"] == pytest.approx(rollout.rewards.mean().item(), abs=1e-7)
        assert entry["episode_return"] == pytest.approx(np.mean(rollout.episode_returns), abs=1e-6)
        assert entry["episode_length"] == pytest.approx(np.mean(rollout.episode_lengths))
        for action, word in enumerate(("Sell", "Hold", "Buy")):
            assert entry[f"action_share/{word}"] == pytest.approx(
                (rollout.actions == action).float().mean().item()
            )


def test_logged_update_metrics_are_means_over_the_minibatch(run):
    for step in range(1, 19):
        mine = [m for m in run.seen if m.step == step]
        logprobs = torch.cat([m.logprobs for m in mine])
        entropies = [
            Categorical(logits=row[torch.isfinite(row)]).entropy().item() for row in logprobs
        ]
        assert run.state.log_history[step - 1]["entropy"] == pytest.approx(
            np.mean(entropies), abs=1e-5
        )


def test_how_far_the_first_update_went_is_logged_once_with_its_rollouts_last_step(run):
    logged = {
        entry["step"]: entry["kl_first_update"]
        for entry in run.state.log_history
        if "kl_first_update" in entry
    }
    assert list(logged) == [STEPS]
    assert logged[STEPS] == pytest.approx(run.watch.kl_first_update) and logged[STEPS] > 1e-4


@pytest.mark.slow
def test_logged_hit_rates_are_the_rollouts_not_an_evaluations_too(small_model, tmp_path):
    rates = []
    for steps in (None, 6):  # 6 steps are a rollout
        options = {"eval_strategy": "steps", "eval_steps": steps} if steps else {}
        trainer = tiny_trainer(
            small_model,
            tmp_path,
            rollouts=2,
            style="markov",
            validate=looks_at_known_prompts,
            **options,
        )
        trainer.train()
        name = "trunk/prompt_hit_rate"
        rates.append([entry[name] for entry in trainer.state.log_history if name in entry])
    assert len(rates[0]) == 2 and rates[0] == rates[1]


def looks_at_known_prompts(encoder):
    """A validation that asks the trunk for one prompt again and again."""

    def validate(policy):
        prompt = EncodedPrompt(np.arange(9), 4)
        for _ in range(50):
            policy.trunk([prompt])
        return {"CR": 0.0}

    return validate


@pytest.mark.slow
def test_log_lines_average_over_the_steps_between_them(run, small_model, tmp_path):
    sparse = tiny_trainer(small_model, tmp_path, rollouts=3, logging_steps=6)
    sparse.train()
    lines, dense = [e for e in entries(sparse) if "loss" in e], run.state.log_history
    assert [line["step"] for line in lines] == [6, 12, 18]
    for number, line in enumerate(lines):
        for name in ("policy_loss", "value_loss", "entropy", "kl", "ratio"):
            expected = np.mean([entry[name] for entry in dense[6 * number : 6 * number + 6]])
            assert line[name] == pytest.approx(expected, abs=1e-5), name


def test_tensorboard_gets_the_metrics(small_model, tmp_path, monkeypatch):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    trainer = tiny_trainer(small_model, tmp_path / "out", update_epochs=1, report_to="tensorboard")
    trainer.train()
    events = accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    assert "train/kl" in events.Tags()["scalars"]
    logged = [(e["step"], e["kl"]) for e in trainer.state.log_history if "kl" in e]
    assert [(e.step, e.value) for e in events.Scalars("train/kl")] == [
        (step, pytest.approx(kl)) for step, kl in logged
    ]


@pytest.mark.slow
def test_wandb_gets_a_run_offline(small_model, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {
        "MODE": "offline",
        "DIR": str(tmp_path),
        "SILENT": "true",
        "DISABLE_GIT": "true",
    }.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    trainer = tiny_trainer(small_model, tmp_path / "out", update_epochs=1, report_to="wandb")
    try:
        trainer.train()
        last = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry][-1]
        assert wandb.run.summary["train/kl"] == pytest.approx(last)
    finally:
        wandb.finish()
        wandb.teardown()
    [directory] = (tmp_path / "wandb").glob("offline-run-*")
    assert list(directory.glob("run-*.wandb"))


# ----------------------------------------------------------------------------------------- refusals


def test_environments_that_the_processes_cannot_share_are_refused(
    small_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(PPOConfig, "world_size", property(lambda self: 2))
    with pytest.raises(
        ConfigError, match=r"num_envs is 3, shared by 2 processes; set it to a multiple of 2"
    ):
        tiny_trainer(small_model, tmp_path, num_envs=3)


def test_one_process_that_sees_two_gpus_is_refused(small_model, tmp_path, monkeypatch):
    """transformers would wrap the model in DataParallel, which cuts a batch in ways that the engine
    does not know.
    """
    monkeypatch.setattr(PPOConfig, "n_gpu", 2)
    with pytest.raises(ConfigError, match=r"sees 2 GPUs.*multi_gpu\.yaml.*CUDA_VISIBLE_DEVICES=0"):
        tiny_trainer(small_model, tmp_path)


class Sharded(PPOTrainer):
    """As under FSDP, up to where training begins."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = True


def test_a_sharded_model_runs_on_the_plain_engine_and_refuses_the_other(small_model, tmp_path):
    assert tiny_trainer(small_model, tmp_path, kind=Sharded).model.trunk is None
    assert tiny_trainer(small_model, tmp_path).model.trunk is not None
    with pytest.raises(
        ConfigError, match="engine is 'split', which needs the whole model in each process"
    ):
        tiny_trainer(small_model, tmp_path, kind=Sharded, engine="split")
