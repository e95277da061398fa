"""What an environment may give, and what is refused in one line before it is learnt from."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from flagtrl.errors import ConfigError
from flagtrl.learning.lanes import Lane

WORDS = ("left", "stay", "right")


class Given(gymnasium.Env):
    """Gives what it is told to."""

    action_space = spaces.Discrete(3)
    observation_space = spaces.Discrete(1)

    def __init__(self, info=None, reward=0.0, later=None, stepped=None):
        self.info, self.reward = info or {}, reward
        self.later = self.info if later is None else later
        self.stepped = stepped

    def reset(self, *, seed=None, options=None):
        return 0, self.info

    def step(self, action):
        self.taken = action
        return self.stepped or (0, self.reward, False, False, self.later)


def begun(env, words=WORDS):
    lane = Lane(env, words)
    lane.begin(0)
    return lane


@pytest.mark.parametrize(
    "mask",
    [
        *([1, 0, 1], [True, False, True], np.array([1.0, 0.0, 1.0]), np.int8([1, 0, 1])),
        *(torch.tensor([1, 0, 1]), np.array([True, False, True], dtype=object)),
    ],
)
def test_masks_of_zeros_and_ones(mask):
    assert begun(Given({"action_mask": mask})).show().legal.tolist() == [True, False, True]


@pytest.mark.parametrize(
    "mask",
    [
        [0.0, -np.inf, 0.0],  # added to logits
        [np.nan, 0, 0],
        [0.3, 0, 0],
        [0, 1, 2],  # indices
        ["True", "False", "False"],
        np.array([True, False, None], dtype=object),
    ],
)
def test_other_masks_are_refused(mask):
    with pytest.raises(ConfigError, match=r"action_mask'\] has .* at \d; give True or 1") as caught:
        begun(Given({"action_mask": mask})).show()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("mask", [[1, 0], [[1, 0, 1]], 1, [[1], [1, 0]]])
def test_a_mask_has_an_entry_for_each_action(mask):
    with pytest.raises(ConfigError, match="there are 3 actions; give one entry for each"):
        begun(Given({"action_mask": mask})).show()


def test_a_mask_does_not_come_and_go():
    lane = begun(Given({"action_mask": [1, 0, 1]}, later={}))
    lane.show()
    lane.step(0)
    with pytest.raises(ConfigError, match="has no action_mask here, and had one before"):
        lane.show()


def test_a_mask_under_another_name_is_pointed_out():
    with pytest.raises(ConfigError, match=r"put the mask into info\['action_mask'\]"):
        begun(Given({"action_masks": [1, 0, 1]})).show()

    class Maskable(Given):
        def action_masks(self):
            return [1, 0, 1]

    with pytest.raises(ConfigError, match=r"put the mask into info\['action_mask'\]"):
        begun(Maskable()).show()


@pytest.mark.parametrize("named", [[2, 5], ["a", None, "b"], {"a", "b"}, {"a": 1}, "ab", []])
def test_a_states_own_actions_are_a_list_of_strings(named):
    with pytest.raises(ConfigError, match=r"info\['actions'\] is .*at least one string"):
        begun(Given({"actions": named}), None).show()


def test_strings_of_numpy_are_words():
    assert begun(Given({"actions": np.array(["a", "b"])}), None).show().words == ("a", "b")


def test_two_lists_of_actions_that_differ_are_refused():
    begun(Given({"actions": list(WORDS)})).show()
    begun(Given({"actions": 3})).show()  # of something else
    with pytest.raises(
        ConfigError, match=r"action 0 is 'right' in .* and 'left' in actions; leave"
    ):
        begun(Given({"actions": WORDS[::-1]})).show()


@pytest.mark.parametrize("reward", [np.nan, np.inf, 1e39, None, "1", np.ones((2, 9)), 1j])
def test_a_reward_is_one_finite_number(reward):
    lane = begun(Given(reward=reward))
    with pytest.raises(ConfigError, match=r"reward is .* after action 2; it must be one") as caught:
        lane.step(2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "reward",
    [1, 0.5, True, np.float32(0.5), np.int64(2), np.array(1.0), torch.tensor(0.5), np.bool_(True)],
)
def test_numbers_of_any_kind_are_rewards(reward):
    assert begun(Given(reward=reward)).step(0) == (float(reward), False, False)


def test_steps_and_resets_of_gyms_old_shape_are_refused():
    with pytest.raises(ConfigError, match=r"step returned a tuple of 4; it must return observa"):
        begun(Given(stepped=(0, 0.0, False, {}))).step(0)

    class Bare(Given):
        def reset(self, *, seed=None, options=None):
            return 0

    with pytest.raises(
        ConfigError, match="reset returned an object of type int; it must return observation and"
    ):
        begun(Bare())
