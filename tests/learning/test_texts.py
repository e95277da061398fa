"""Any environment through the general interface: the same numbers, masks, resuming, refusals."""

import ast
import itertools
import json
from contextlib import nullcontext
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from flagtrl import learning
from flagtrl.card import model_card
from flagtrl.errors import AdapterError, ConfigError, PromptError
from flagtrl.language.prompt import Prompt
from flagtrl.language.prompts import ANSWER_PREFIX
from flagtrl.language.tokens import PromptEncoder, PromptSettings
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.episodes import evaluate, load_text_policy
from flagtrl.learning.lanes import Lane, Lanes
from flagtrl.learning.texts import TextEncoder, Texts
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import TradingEnv
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.play.policy import PolicyOutput
from flagtrl.policy.acting import language_policy
from flagtrl.policy.loading import load_policy
from flagtrl.policy.settings import PolicySettings
from training import AtStep, entries, equal, tiny_trainer, weights

WAYS = ("Left", "Down", "Right", "Up")


@pytest.fixture(scope="module")
def instruct(shared):
    return AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer")


def lake(**options):
    return gymnasium.make("FrozenLake-v1", is_slippery=False, **options)


def place(observation, info):
    return f"You stand in row {observation // 4}, column {observation % 4}."


def settings(out, **overrides):
    options = {
        "num_envs": 2,
        "num_steps": 8,
        "total_timesteps": 48,
        "minibatch_size": 8,
        "gradient_accumulation_steps": 1,
        "learning_rate": 2e-3,
        "logging_steps": 1,
        "save_strategy": "no",
        "train_dtype": "float32",
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "seed": 1,
    } | overrides
    return PPOConfig(output_dir=str(out), **options)


def trainer(directory, out, *, policy=None, callbacks=(), **overrides):
    asked = {"make_env": lake, "to_text": place, "actions": WAYS} | {
        name: overrides.pop(name)
        for name in ("make_env", "to_text", "actions", "answer_prefix", "peft_config")
        if name in overrides
    }
    return PPOTrainer(
        str(directory),
        settings(out, **overrides),
        policy=policy or PolicySettings(head_width=16),
        callbacks=callbacks,
        **asked,
    )


def test_trading_through_the_general_interface_gives_the_same_weights_to_the_bit(
    small_model, tmp_path
):
    """Prompts, masks, draws, rewards, losses: all that the market's own task gives."""
    options = {"rollouts": 3, "logging_steps": 1, "gradient_accumulation_steps": 1}
    ours = tiny_trainer(small_model, tmp_path / "trading", **options)
    window, market = ours.task.make_env().window, ours.task.make_env().settings
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    words = PromptEncoder(tokenizer, PromptSettings("compact", 16), 8192)
    twin = tiny_trainer(small_model, tmp_path / "twin", **options)
    # which of other environments says how long an episode is, and not the settings
    steps, twin.args.max_episode_steps = twin.args.max_episode_steps, PPOConfig.max_episode_steps
    general = PPOTrainer(
        twin.model,
        twin.args,
        tokenizer,
        make_env=lambda: TradingEnv(window, market, steps),
        to_text=lambda observation, info: words.prompt(info["seen"]),
        actions=ACTION_WORDS,
        answer_prefix=ANSWER_PREFIX,
    )
    # what is measured before training is of states, which each task chooses itself
    general.task.survey = ours.task.survey
    for each in (ours, general):
        each.train()
    assert equal(weights(ours), weights(general))
    ignored = {"trunk/prefix_hit_rate", "trunk/prompt_hit_rate", "trunk/cache_mb"}
    for one, other in zip(entries(ours), entries(general), strict=True):
        assert {k: v for k, v in one.items() if k not in ignored} == {
            k: v for k, v in other.items() if k not in ignored
        }


def test_a_run_that_is_resumed_repeats_the_undisturbed_one(small_model, tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "total_timesteps": 64}
    whole = trainer(small_model, tmp_path / "whole", **options)
    whole.train()
    cut = trainer(
        small_model,
        tmp_path / "cut",
        callbacks=[AtStep(lambda model: 1 / 0, 3)],
        **options,
    )
    with pytest.raises(ZeroDivisionError):
        cut.train()
    state = json.loads(next((tmp_path / "cut/checkpoint-2").glob("rollout*.json")).read_text())
    assert any(lane["actions"] for lane in state["environments"]), "within an episode"
    again = trainer(small_model, tmp_path / "cut", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "cut/checkpoint-2"))
    assert equal(weights(whole), weights(again))
    # the last entry sums up what one process did
    assert entries(whole, 3)[:-1] == entries(again, 3)[:-1]


def test_an_environment_that_does_not_repeat_itself_is_no_ground_to_go_on_from():
    class Moody(gymnasium.Env):
        observation_space, action_space = spaces.Discrete(1000), spaces.Discrete(4)
        calls = 0

        def reset(self, *, seed=None, options=None):
            return self._next(), {}

        def step(self, action):
            return self._next(), 0.0, False, False, {}

        def _next(self):
            Moody.calls += 1
            return Moody.calls

    lane = Lane(Moody(), WAYS)
    lane.begin(0)
    lane.step(1)
    with pytest.raises(ConfigError, match="does not repeat an episode"):
        Lane(Moody(), WAYS).load_state_dict(lane.state_dict())


def test_every_episode_is_what_its_seed_says():
    """The second episode of a lane is the same whatever was done in the first."""
    lanes = [Lane(gymnasium.make("Taxi-v4"), tuple("abcdef")) for _ in range(2)]
    for lane, steps in zip(lanes, (1, 5), strict=True):
        lane.begin(3)
        for _ in range(steps):
            lane.step(0)
        lane.begin_again()
    assert lanes[0].show().observation == lanes[1].show().observation
    lanes[0].begin_again()
    assert lanes[0].show().observation != lanes[1].show().observation


def test_what_is_saved_acts_alike_when_it_is_read_back(small_model, tmp_path):
    run = trainer(small_model, tmp_path / "run")
    run.train()
    run.save_model()
    found = load_text_policy(tmp_path / "run", place)
    world = run.task.environments(2)
    world.reset(seed=5)
    seen = world.observe()
    ours, theirs = (
        language_policy(model, encoder)(seen).logprobs
        for model, encoder in ((run.model, run.encoder), (found.model, found.encoder))
    )
    np.testing.assert_array_equal(ours, theirs)
    assert found.record.market["environment"] == "FrozenLake-v1"
    assert "is_slippery=False" in found.record.market["layers"]
    assert found.record.prompt["actions"] == list(WAYS)
    card = model_card(tmp_path / "run", "someone/lake")
    assert "A policy for FrozenLake-v1" in card and "Left, Down, Right, Up" in card
    assert "load_text_policy" in card and "Buy" not in card and "trading" not in card
    played = evaluate(language_policy(found.model, found.encoder), run.task, 3)
    twice = evaluate(language_policy(run.model, run.encoder), run.task, 3)
    assert played.lengths.tolist() == twice.lengths.tolist()
    with pytest.raises(AdapterError, match="another task"):
        load_policy(tmp_path / "run")


def test_evaluate_plays_whole_episodes_as_gymnasium_would():
    class Asked:
        words = WAYS

        def described(self):
            return {}

    task = Texts(lake, Asked())
    path = {0: 1, 4: 1, 8: 2, 9: 1, 13: 2, 14: 2}

    def policy(seen):
        logprobs = np.full((len(seen), 4), -np.inf)
        logprobs[np.arange(len(seen)), [path[each.observation] for each in seen]] = 0.0
        return PolicyOutput.of(logprobs)

    found = evaluate(policy, task, 4)
    assert found.returns.tolist() == [1.0] * 4 and found.lengths.tolist() == [6] * 4
    assert found.terminated.all()


class Doors(gymnasium.Env):
    """One step: of some doors, the one that the observation names pays."""

    observation_space, action_space = spaces.Discrete(3), spaces.Discrete(3)

    def __init__(self, masked=None):
        self.masked = masked

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.pays = int(self.np_random.integers(3))
        return self.pays, self._info()

    def step(self, action):
        return self.pays, float(action == self.pays), True, False, self._info()

    def _info(self):
        return {} if self.masked is None else {"action_mask": np.array(self.masked, dtype=np.int8)}


def test_actions_that_the_mask_forbids_are_never_taken(small_model, tmp_path):
    run = trainer(
        small_model,
        tmp_path,
        make_env=lambda: Doors([1, 0, 1]),
        to_text=lambda o, i: Prompt("Three doors.\n", f"The one with {'abc'[o]} pays."),
        actions=("a", "b", "c"),
    )
    taken = []
    real = run.collector.envs.advance
    run.collector.envs.advance = lambda actions: taken.extend(actions) or real(actions)
    run.train()
    assert set(taken) == {0, 2}


def test_lora_as_peft_asks_for_it(small_model, tmp_path):
    layers = AutoModelForCausalLM.from_pretrained(small_model).config.num_hidden_layers
    top = LoraConfig(r=4, lora_alpha=8, layers_to_transform=[layers - 1])
    run = trainer(small_model, tmp_path, peft_config=top)
    assert run.model.settings.finetuning == "lora" and run.model.settings.lora_rank == 4
    trained = {n for n, p in run.model.named_parameters() if p.requires_grad and "lora" in n}
    assert trained and all(f"layers.{layers - 1}." in name for name in trained)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"actions": ("Left", "Left", "Up", "Down")}, "'Left' more than once; name at least 2"),
        ({"actions": ("Left", "Right")}, "actions has 2 entries"),
        ({"actions": "LDRU"}, "give a list of strings"),
        ({"actions": (0, 1, 2, 3)}, "give a list of strings"),
        ({"actions": ("Left", "", "Up", "Down")}, "each with a word"),
        ({"actions": None}, r"info\['actions'\] is None; pass actions"),
        ({"to_text": None}, "to_text is missing"),
        ({"make_env": lambda: 3}, "make_env makes a int"),
        ({"make_env": lambda: AsyncVectorEnv([lake, lake])}, "cannot be stepped one by one"),
        ({"make_env": lambda: SyncVectorEnv([lake] * 3)}, "to a multiple of 3 in each process"),
        ({"make_env": lambda: gymnasium.make("Pendulum-v1")}, "need Discrete or Text"),
        ({"make_env": lambda: Doors([1, 0]), "actions": tuple("abc")}, "there are 3 actions"),
        ({"make_env": lambda: Doors([0, 0, 0]), "actions": tuple("abc")}, "allows no action"),
        ({"advantage": "exact", "gamma": 0.9}, "advantage is exact, which needs a market"),
        ({"max_episode_steps": 3}, "max_episode_steps is 3, which is of markets"),
        ({"peft_config": LoraConfig()}, "layers_to_transform is None"),
        ({"peft_config": LoraConfig(layers_to_transform=[0])}, "name the top ones"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(small_model, tmp_path, change, said):
    with pytest.raises(ConfigError, match=said) as caught:
        trainer(small_model, tmp_path, **change)
    assert "\n" not in str(caught.value)


def test_one_environment_handed_out_twice_is_refused(small_model, tmp_path):
    only = lake()
    with pytest.raises(ConfigError, match="returns the same environment again"):
        trainer(small_model, tmp_path, make_env=lambda: only)


def test_a_vector_environment_gives_what_its_environments_give(small_model, tmp_path):
    one = trainer(small_model, tmp_path / "one")
    vector = trainer(small_model, tmp_path / "two", make_env=lambda: SyncVectorEnv([lake, lake]))
    for each in (one, vector):
        each.train()
    assert equal(weights(one), weights(vector))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(
            {
                "make_env": lambda: gymnasium.make(
                    "FrozenLake-v1", is_slippery=False, map_name="8x8"
                )
            },
            marks=pytest.mark.slow,
        ),
        {"make_env": lambda: gymnasium.wrappers.TransformReward(lake(), lambda r: 100 * r - 1)},
        pytest.param(
            {"to_text": lambda observation, info: f"You are in {observation}."},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_run_does_not_go_on_in_another_environment(small_model, tmp_path, other):
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer(small_model, tmp_path / "run", **options).train()
    again = trainer(small_model, tmp_path / "other", **options, **other)
    with pytest.raises(AdapterError, match="resume with the settings it was made with"):
        again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))


def test_a_policy_of_other_actions_or_settings_is_refused(small_model, tmp_path):
    model = trainer(small_model, tmp_path / "a").model
    asked = {"make_env": lake, "to_text": place}
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    with pytest.raises(ConfigError, match="scores other actions"):
        PPOTrainer(model, settings(tmp_path), tokenizer, actions=WAYS[::-1], **asked)
    asked |= {"actions": WAYS, "policy": PolicySettings()}
    with pytest.raises(ConfigError, match="policy is given beside an ActorCritic"):
        PPOTrainer(model, settings(tmp_path), tokenizer, **asked)


def test_a_module_whose_weights_are_not_what_would_be_recorded_is_refused(small_model, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(small_model)
    asked = {"make_env": lake, "to_text": place, "actions": WAYS}
    half = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.bfloat16)
    with pytest.raises(ConfigError, match="float32: small steps are lost"):
        PPOTrainer(half, settings(tmp_path), tokenizer, **asked)
    whole = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    asked["policy"] = PolicySettings(quantization="4bit")
    with pytest.raises(ConfigError, match="the model is not quantised"):
        PPOTrainer(whole, settings(tmp_path), tokenizer, **asked)


class Ends(Doors):
    """Its last state names no commands."""

    def step(self, action):
        observation, reward, *_ = super().step(action)
        return observation, reward, True, False, {"actions": []}

    def _info(self):
        return {"actions": np.array(["open a", "open b", "open the door c"])}


def test_a_last_state_needs_no_commands_and_many_are_asked_at_once(small_model, tmp_path):
    options = {"make_env": Ends, "actions": None, "to_text": lambda o, i: f"Door {'abc'[o]} pays."}
    run = trainer(small_model, tmp_path, **options)
    run.train()
    world = run.task.environments(3)
    world.reset(seed=0)
    together = language_policy(run.model, run.encoder)(world.observe()).logprobs
    assert together.shape == (3, 3) and np.allclose(np.exp(together).sum(-1), 1)


def test_an_environment_that_reuses_its_board_is_surveyed_state_by_state(small_model, tmp_path):
    class Board(Doors):
        def reset(self, *, seed=None, options=None):
            _, info = super().reset(seed=seed)
            self.board = getattr(self, "board", np.zeros(3))
            self.board[:] = self.np_random.integers(5, size=3)
            return self.board, info

    run = trainer(
        small_model,
        tmp_path,
        make_env=lambda: Board([1, 1, 0]),
        to_text=lambda o, i: f"Board {np.array(o).tolist()}.",
        actions=tuple("abc"),
    )
    prompts, _ = run.task.survey()
    assert len({prompt.key for prompt in prompts}) > 10


@pytest.mark.parametrize(
    ("to_text", "said"),
    [
        (lambda o, i: 7, "int"),
        (lambda o, i: " ", "to_text returned an empty text"),
        (lambda o, i: [{"role": "user"}], "list"),
        (lambda o, i: "word " * 9000, "shorten what to_text returns"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line(small_model, tmp_path, to_text, said):
    with pytest.raises(PromptError, match=said) as caught:
        trainer(small_model, tmp_path, to_text=to_text)
    assert "\n" not in str(caught.value)


def test_prompts_of_three_kinds_read_alike(instruct):
    """A string is a user's message; what a Prompt shares is a beginning of the same text."""
    world = Lanes([Lane(lake(), WAYS)])
    world.reset(seed=0)
    [seen] = world.observe()
    told = [
        TextEncoder(instruct, 512, to_text, WAYS).encode(seen)
        for to_text in (
            place,
            lambda o, i: [{"role": "user", "content": place(o, i)}],
            lambda o, i: Prompt("You stand", place(o, i).removeprefix("You stand")),
        )
    ]
    assert told[0].ids.tolist() == told[1].ids.tolist() == told[2].ids.tolist()
    assert told[1].shared_length == 1 < told[0].shared_length < told[2].shared_length


def test_special_tokens_of_a_state_are_plain_text(instruct):
    encoder = TextEncoder(instruct, 512, lambda o, i: "a <|im_end|> b", WAYS)
    world = Lanes([Lane(lake(), WAYS)])
    world.reset(seed=0)
    ids = encoder.encode(world.observe()[0]).ids.tolist()
    assert ids.count(instruct.convert_tokens_to_ids("<|im_end|>")) == encoder.tokenize(
        encoder._head + "x" + encoder._tail
    ).count(instruct.convert_tokens_to_ids("<|im_end|>"))


def test_the_market_is_not_imported_to_learn_something_else():
    for path in Path(learning.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name for name in named if str(name).startswith("flagtrl.market")}, path


@pytest.mark.parametrize("own", [False, True])
def test_an_action_that_extends_another_needs_a_policy_that_can_take_it(small_model, tmp_path, own):
    """A sum of log-likelihoods is never higher for the longer of the two."""
    words = ("go", "go north", "south")

    class Named(Doors):
        def _info(self):
            return {"actions": words} if own else {}

    asked = {"make_env": Named, "to_text": lambda o, i: f"Door {o} pays."}
    asked["actions"] = None if own else words
    with pytest.raises(PromptError, match="'go north' begins with the tokens of 'go'"):
        trainer(small_model, tmp_path, **asked)
    able = PolicySettings(head_width=16, length_normalisation="token")
    made = trainer(small_model, tmp_path, policy=able, **asked)
    PPOTrainer(made.model, made.args, made.encoder.tokenizer, **asked)


class Noisy(Doors):
    """Draws from no seed; with a state of its own it can be gone on from nevertheless."""

    drawn = itertools.count()

    def reset(self, *, seed=None, options=None):
        self.pays = next(self.drawn) % 3
        return self.pays, self._info()


class Kept(Noisy):
    def state_dict(self):
        return {"pays": self.pays}

    def load_state_dict(self, state):
        self.pays = state["pays"]
        return self.pays, self._info()


@pytest.mark.parametrize("kind", [Noisy, Kept])
def test_what_does_not_repeat_is_said_at_once_and_may_keep_its_own_state(
    small_model, tmp_path, caplog, kind
):
    asked = {"make_env": kind, "to_text": lambda o, i: f"Door {o} pays.", "actions": tuple("abc")}
    options = {"save_strategy": "steps", "save_steps": 2, **asked}
    trainer(small_model, tmp_path / "run", **options).train()
    assert ("does not repeat an episode" in caplog.text) == (kind is Noisy)
    again = trainer(small_model, tmp_path / "again", **options)
    with nullcontext() if kind is Kept else pytest.raises(ConfigError, match="does not repeat"):
        again.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-2"))


def test_a_run_does_not_begin_beside_the_checkpoints_of_another(small_model, tmp_path, caplog):
    options = {"save_strategy": "steps", "save_steps": 2}
    trainer(small_model, tmp_path, **options).train()
    kept = {path.name for path in tmp_path.glob("checkpoint-*")}
    with pytest.raises(ConfigError, match=r"holds checkpoints, up to checkpoint-\d"):
        trainer(small_model, tmp_path, **options, seed=7).train()
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == kept
    shorter = {"total_timesteps": 16, "seed": 7, "overwrite_output_dir": True}
    run = trainer(small_model, tmp_path, **options, **shorter)
    run.train()
    left = {int(path.name.rpartition("-")[2]) for path in tmp_path.glob("checkpoint-*")}
    assert max(left) == run.state.global_step, "none of the run that was overwritten"
    assert "overwriting" in caplog.text and "went on from" not in caplog.text


def test_what_a_policy_dies_of_is_said_without_progress_lines(small_model, tmp_path, caplog):
    run = trainer(small_model, tmp_path)
    for _ in range(3):
        run.watch.rollout(0.0, 8, run.say)
    run.say("a line of progress")
    assert caplog.messages[-1].startswith("the policy has collapsed")


def test_what_the_trainer_has_not_is_said(small_model, tmp_path):
    run = trainer(small_model, tmp_path)
    with pytest.raises(ConfigError, match="write_card"):
        run.create_model_card()
    with pytest.raises(ConfigError, match="nothing to evaluate on; pass validate"):
        run.evaluate()
