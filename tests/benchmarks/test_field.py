"""What all peers of the field are given is what the environment does; how they are measured."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "field_peers"))
import common
import field
import field_start
from field_table import summary

from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.env import TradingEnv
from flagtrl.market.ledger import ACTION_WORDS, Action

PEERS = Path(common.__file__).parent
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").is_file(), reason="processes are read from /proc"
)


@pytest.fixture(scope="module")
def told():
    """The market of seed 0, shortened, as peers read it."""
    task = field_start.task_of(0)
    tokenizer = field_start.demo_tokenizer(task.train.market)
    encoder = PromptEncoder(tokenizer, field_start.PROMPT, 512)
    return task, encoder, field_start.told_bars(task.test, task.settings, encoder)


def test_the_tables_are_the_environment(told):
    task, encoder, facts = told
    bars = common.Bars.read(json.loads(json.dumps(facts)))
    assert tuple(common.ACTIONS) == tuple(ACTION_WORDS) and common.HOLD == Action.HOLD
    env = TradingEnv(task.test, task.settings)
    env.reset()
    rng, position, earned = np.random.default_rng(1), 0, 0.0
    for bar in range(len(bars)):
        seen = env.observe()
        text = encoder.tokenizer.decode(encoder.encode(seen).ids)
        assert bars.texts[bar][position] == text
        assert bars.legal[position].tolist() == env.legal.tolist()
        action = int(rng.choice(np.flatnonzero(env.legal)))
        _, reward, *_ = env.step(action)
        assert bars.gains[bar, position, action] == pytest.approx(reward, abs=1e-12)
        earned += reward
        position = int(bars.after[bar, position, action])
        assert position == (env.account.shares > 0)
    assert earned == pytest.approx(np.log(env.observe().value / env.settings.initial_cash))


def test_an_outcome_is_what_an_order_earned_a_bar_after_its_fill(told):
    bars = common.Bars.read(told[2])
    outcomes, held = bars.outcomes(), bars.gains[:, 1, Action.HOLD]
    assert outcomes[3, 0, Action.BUY] == pytest.approx(held[4])  # filled at bar 4, flat until then
    assert outcomes[3, 1, Action.SELL] == pytest.approx(held[3])
    assert outcomes[3, 1, Action.HOLD] == pytest.approx(held[3] + held[4])
    assert outcomes[3, 0, Action.HOLD] == 0


def watch_of(told, folder, **more):
    task = {"train": told[2], "test": told[2], "best": 0.5}
    (folder / "task.json").write_text(json.dumps(task))
    settings = {"task": str(folder / "task.json"), "model": "", "steps": 100, "seed": 0}
    settings |= {"learning_rate": 0.1, "looks": True, "limit": 100.0}
    return common.Watch({**settings, "out": str(folder / "out.json"), **more})


def test_a_look_earns_what_its_scores_choose_and_its_time_is_not_learnings(told, tmp_path):
    watch = watch_of(told, tmp_path)

    def always_long(texts):
        time.sleep(2)
        return np.tile([0.0, 0.1, 9.0], (len(texts), 1))

    assert not watch.due(1)
    assert watch.due(2)
    watch.look(always_long)
    assert not watch.due(3)
    watch.write(more=1)
    record = json.loads((tmp_path / "out.json").read_text())
    gains = common.Bars.read(told[2]).gains
    assert record["share"] == pytest.approx(gains[1:, 1, Action.HOLD].sum() / 0.5, abs=1e-4)
    assert record["seconds"] < 2 and record["steps"] == 3 and record["more"] == 1
    assert record["curve"] == [[2, record["share"]]]


def test_a_run_ends_with_its_time(told, tmp_path):
    watch = watch_of(told, tmp_path, limit=0.0)
    with pytest.raises(common.OutOfTime):
        watch.due(1)


def test_processor_time_is_that_of_all_processes_of_the_session():
    code = (
        f"import sys; sys.path.insert(0, {str(PEERS)!r})\n"
        "import subprocess, common\n"
        "burn = 'import time\\nwhile time.process_time() < 0.5: pass'\n"
        "subprocess.run([sys.executable, '-c', burn])\n"
        "print(common.spent(), common.peak_memory())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, start_new_session=True
    )
    spent, memory = map(float, done.stdout.split())
    assert 0.5 <= spent < 20 and 5 < memory < 2000


def test_every_peer_has_a_script_with_its_users_statements(tmp_path):
    made = (
        "a = 1\n# user:\nb = 2\n\n# why\n# end\nc = 3\nif c:\n    # user:\n    d = 4\n    # end\n"
    )
    (tmp_path / "peer.py").write_text(made)
    assert field.statements(tmp_path / "peer.py") == 2
    for peer in field.PEERS.values():
        assert peer.reads == "numbers" or 5 < field.statements(PEERS / peer.script) < 150, (
            peer.title
        )
        assert all("==" in each for each in peer.requirements), "pinned"


def test_the_table_takes_medians_and_says_where_a_level_was_not_reached():
    def record(seed, reached):
        return {
            **{"peer": "flagtrl", "title": "ours", "seed": seed, "steps": 100, "statements": 9},
            **{"seconds": 10.0, "cpu_seconds": 5.0, "memory_mib": 50, "share": 0.5},
            **{f"steps_to_{n}": reached and 10 * n for n in (50, 80, 90)},
            **{f"seconds_to_{n}": reached and 1.0 * n for n in (50, 80, 90)},
        }

    row = summary([record(0, True), record(1, True), record(2, None)]).splitlines()[-1]
    assert row == (
        "| ours | 3 | 10 | 20 | 1.0, 1.0 | 50 | 100 | 0.50 | 500, 50 | 800, 80 | 900, 90 | 9 |"
    )
    assert summary([record(0, None), record(1, True), record(2, None)]).count("| - ") == 3
