"""A checkpoint is whole, readable and of the same run, or resuming says what it is not."""

import shutil

import pytest

from flagtrl.errors import AdapterError, ConfigError
from flagtrl.learning.resume import check_checkpoint, last_checkpoint
from flagtrl.market.env import MarketSettings, TradingEnv
from flagtrl.market.synthetic import news_leads_price
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE, SETTINGS_FILE
from training import tiny_trainer

NEEDED = (
    *("trainer_state.json", SETTINGS_FILE, "adapter_config.json", "rollout_state_0.json"),
    *(ADAPTER_FILE, HEADS_FILE, "optimizer.pt", "scheduler.pt"),
)


@pytest.fixture(scope="module")
def finished(small_model, tmp_path_factory):
    """A run of three rollouts with a checkpoint after each."""
    out = tmp_path_factory.mktemp("finished")
    trainer = tiny_trainer(small_model, out, rollouts=3, save_strategy="steps", save_steps=1)
    trainer.train()
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def checkpoints(run):
    return sorted(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


def test_a_whole_checkpoint_is_accepted_and_the_newest_found(run):
    for path in checkpoints(run):
        check_checkpoint(path)
    assert last_checkpoint(run) == str(checkpoints(run)[-1])
    assert last_checkpoint(run / "none") is None


@pytest.mark.parametrize("name", NEEDED)
@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_a_broken_checkpoint_is_named_and_the_one_before_it_found(run, caplog, name, damage):
    newest = checkpoints(run)[-1]
    content = (newest / name).read_bytes()
    if damage == "missing":
        (newest / name).unlink()
    else:
        (newest / name).write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    with pytest.raises(AdapterError, match=name) as caught:
        check_checkpoint(newest)
    assert "\n" not in str(caught.value)
    assert last_checkpoint(run) == str(checkpoints(run)[-2])
    assert newest.name in caplog.text


def test_a_checkpoint_of_other_settings_is_refused(run, small_model, tmp_path):
    newest = str(checkpoints(run)[0])
    for change, named in (
        ({"finetuning": "lora"}, "policy.finetuning = 'full_top', this run has 'lora'"),
        ({"seed": 12}, "rollout.seed"),
        ({"rollouts": 4}, "rollout.total_timesteps"),
    ):
        trainer = tiny_trainer(small_model, tmp_path / "other", **{"rollouts": 3, **change})
        with pytest.raises(AdapterError, match=named):
            trainer.train(resume_from_checkpoint=newest)


def test_an_episode_cannot_continue_outside_its_window():
    market = news_leads_price(days=40, seed=0)
    env = TradingEnv(market.window(), MarketSettings())
    env.reset(seed=0, options={"start": 30})
    shorter = TradingEnv(market.window(end=str(market.dates[20])), MarketSettings())
    with pytest.raises(ConfigError, match="stands at bar 30 of SYNTH, this window has the bars 0 to 20"):
        shorter.load_state_dict(env.state_dict())
