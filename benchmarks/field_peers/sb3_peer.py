"""Stable-Baselines3's PPO on the facts of a prompt as numbers: no language model. Its settings are
its own defaults but for a discount of 1 and rollouts of 512.
"""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from common import OutOfTime, Watch
from stable_baselines3.common.callbacks import BaseCallback

from flagtrl.cpu import one_thread
from flagtrl.market.transitions import POSITIONS, seen_at
from flagtrl.policy.numeric import features, headlines, held_where_illegal, learner, padded

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from field_start import task_of

watch = Watch.of_command_line()
task = task_of(watch.seed, watch.options["train_bars"])
texts = headlines(task.train)
model = learner("mlp", task.train, task.settings, watch.seed, texts)
bars = range(len(task.test) - 1)
seen = [seen_at(task.test, task.settings, bar, pos) for bar in bars for pos in POSITIONS]
legal = np.stack([each.legal for each in seen])
facts = [features(each, texts) for each in seen]
width = max(map(len, facts))
rows = torch.from_numpy(np.stack([padded(row, width) for row in facts]))


class Looking(BaseCallback):
    """Looks at the policy between rollouts, when it is time."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if watch.due(self.num_timesteps):
            watch.look(scores)


@torch.no_grad()
def scores(_: Sequence[str]) -> np.ndarray:
    """(N, A); the texts' facts are at hand as numbers."""
    return held_where_illegal(model, rows, legal).logprobs


watch.start()
with suppress(OutOfTime), one_thread():
    model.learn(watch.steps, callback=Looking())
    watch.done = model.num_timesteps
watch.write(scores)
