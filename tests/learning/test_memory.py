"""A long run stays within its memory, with a cache of 64 MiB: 2,000 environment steps, and 720 in
the quick suite.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the resident size is read from /proc"
)

SCRIPT = """
import json, sys
from pathlib import Path
from flagtrl.cpu import cpu_tuning
from training import AtStep, random_llama, tiny_trainer

cpu_tuning()
tokenizer, out, style = sys.argv[1:4]
shape, steps = json.loads(sys.argv[4]), int(sys.argv[5])

def look(model):
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    seen = [trainer.state.global_step * 20, pages * 4096 / 2**20, model.trunk.cache.nbytes / 2**20]
    print("seen", json.dumps(seen), flush=True)

random_llama(Path(out), tokenizer, shape)
trainer = tiny_trainer(
    Path(out), out, num_envs=1, num_steps=40, minibatch_size=20, update_epochs=1,
    max_episode_steps=30, total_timesteps=steps,
    trunk_cache_mb=64, style=style, days=300, logging_strategy="no", callbacks=[AtStep(look)],
)
trainer.train()
"""


def growth(small_model, tmp_path, style, shape, steps, settled, timeout):
    """The resident size in the last fifth of the steps as a share of that in the two rollouts after
    `settled`.

    Medians, because the size goes up and down by several percent within each rollout.
    """
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    arguments = [str(small_model), str(tmp_path), style, json.dumps(shape), str(steps)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=env,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    seen = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("seen ")]
    assert len(seen) == steps // 20 and seen[-1][0] == steps, (
        "two optimizer steps are a rollout of 40"
    )
    assert max(cache for step, _, cache in seen if step <= settled) > 55, (
        "the bound was reached, so that something had to go"
    )
    assert max(cache for *_, cache in seen) <= 64
    print([(step, round(size)) for step, size, _ in seen])
    early = [size for step, size, _ in seen if settled < step <= settled + 80]
    late = [size for step, size, _ in seen if step > steps - steps // 5]
    assert max(late) <= 1.05 * max(early)
    return median(late) / median(early)


@pytest.mark.slow
def test_memory_stays_level_and_the_cache_within_its_bound(small_model, tmp_path):
    """A small model's size levels off once oneDNN has made its code for most shapes: some 60 MiB,
    much beside it.
    """
    assert (
        growth(small_model, tmp_path, "paper", (128, 256, 4, 4, 2), 720, settled=400, timeout=500)
        <= 1.05
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_memory_stays_level_at_smollm2s_size(small_model, tmp_path):
    """135M parameters: a quarter of an hour."""
    assert (
        growth(
            small_model, tmp_path, "markov", (576, 1536, 30, 9, 3), 2000, settled=200, timeout=3500
        )
        <= 1.05
    )
