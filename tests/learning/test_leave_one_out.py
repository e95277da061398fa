"""The trainer with the baseline of the other environments: it learns, and it refuses where no two
environments meet.
"""

import pytest

from flagtrl.errors import ConfigError
from flagtrl.learning.advantages import leave_one_out
from flagtrl.learning.config import PPOConfig
from training import entries, tiny_trainer


def test_the_trainer_uses_it_and_a_lone_sample_has_the_critics_baseline(
    small_model, tmp_path, monkeypatch
):
    """Environments that start together have equal prompts for as long as they act alike."""
    seen = []

    def noted(returns, states, own):
        seen.append((returns, states, leave_one_out(returns, states, own)))
        return seen[-1][2]

    monkeypatch.setattr("flagtrl.learning.samples.leave_one_out", noted)
    trainer = tiny_trainer(
        small_model, tmp_path, style="markov", advantage="leave_one_out", num_envs=3, norm_adv=False
    )
    trainer.train()
    ((_, states, advantages),) = seen
    assert len(states.unique()) < len(states), "environments met"
    samples = trainer._samples
    alone = advantages.isnan()
    # of the action that was taken; the others have none
    chosen = samples.targets.advantages.sum(-1)
    assert chosen[~alone].tolist() == advantages[~alone].tolist()
    expected = (samples.targets.returns - samples.old.values)[alone]
    assert chosen[alone].tolist() == pytest.approx(expected.tolist(), abs=1e-6)
    assert entries(trainer)


def test_it_refuses_where_no_two_environments_meet(small_model, tmp_path):
    trainer = tiny_trainer(small_model, tmp_path, style="compact", advantage="leave_one_out")
    with pytest.raises(
        ConfigError,
        match=r"'compact' tell more of the account .* use prompt_style markov, or advantage gae",
    ):
        trainer.train()
    with pytest.raises(ConfigError, match="num_envs is 1, so that there is no other"):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, advantage="leave_one_out")
    with pytest.raises(
        ConfigError, match="advantage is 'grpo'; it must be one of gae, leave_one_out, exact"
    ):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, advantage="grpo")
