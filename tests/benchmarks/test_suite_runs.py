"""The learning suite's benchmark: a run in short, and what its record says."""

import json
import sys
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from flagtrl.errors import ConfigError
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.ledger import Action
from flagtrl.market.metrics import standard
from flagtrl.market.policy import always, follow_news, rule
from flagtrl.market.suite import BLIND, SUITE
from flagtrl.market.transitions import POSITIONS, seen_at
from flagtrl.market.vector import VectorTradingEnv
from flagtrl.play.loop import Uniformly, play
from flagtrl.play.policy import uniform
from flagtrl.policy.numeric import MOVE
from flagtrl.runs.sweep import Ended

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import peers
import risk
import suite_table

import learning

KEYS = {
    *("market", "preset", "estimator", "seed", "share", "text_blind_share", "cpu_seconds"),
    *("steps_to_50", "steps_to_80", "steps_to_90"),
}
SHORT = [*("--steps", "40", "--train_bars", "80", "--test_bars", "12")]


def records(monkeypatch, path, *words):
    monkeypatch.setattr(sys, "argv", ["learning.py", *SHORT, *words, "--json", str(path)])
    learning.main()
    return json.loads(path.read_text())


def test_a_run_leaves_a_record_and_measuring_again_replaces_it(tmp_path, monkeypatch, capsys):
    path = tmp_path / "learning.json"
    words = ("--markets", "news90", "--presets", "flagtrl")
    (first,) = records(monkeypatch, path, *words, "--seeds", "0")
    assert first.keys() >= KEYS
    assert (first["market"], first["preset"], first["estimator"]) == ("news90", "flagtrl", "exact")
    assert [steps for steps, _ in first["curve"]] == [40] and first["cpu_seconds"] > 0
    (again,) = records(monkeypatch, path, *words, "--seeds", "0")
    assert again["share"] == first["share"], "a seed's run is one run"
    assert "| news90 | flagtrl | exact | 40 | 1 |" in capsys.readouterr().out


class Here:
    """Workers that make the suite's runs in this process, at once."""

    def __init__(self, out, jobs, cluster):
        self.out, self.words = out, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def to_stop(self):
        return []

    def submit(self, task):
        self.words.append(task.words)
        done, where = Future(), ["--output_dir", str(task.directory(self.out))]
        learning.in_this_process(learning.options_of([*task.words, *where]))
        done.set_result(Ended(task, 0, 1.0))
        return done


@pytest.mark.slow
def test_runs_side_by_side_leave_the_records_that_one_after_another_leave(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(learning, "workers_of", Here)
    words = ("--markets", "news90", "news70", "--seeds", "0", "--estimators", "exact")
    one = records(monkeypatch, tmp_path / "one.json", *words)
    other = records(monkeypatch, tmp_path / "other.json", *words, "--jobs", "2")
    measured = ("cpu_seconds", "trunk_cpu_seconds", *(f"cpu_seconds_to_{n}" for n in (50, 80, 90)))
    for record in (*one, *other):
        for name in measured:
            record.pop(name)
    assert one == other and len(one) == 2
    assert (tmp_path / "other/news70/flagtrl-exact/seed-0/results.json").is_file()
    again = records(monkeypatch, tmp_path / "other.json", *words, "--jobs", "2")
    assert len(again) == 2 and "2 of 2 runs are finished already" in capsys.readouterr().out
    monkeypatch.setitem(globals(), "SHORT", [*SHORT[:-1], "13"])
    with pytest.raises(ConfigError, match="news90/flagtrl-exact/seed-0 was begun with"):
        records(monkeypatch, tmp_path / "other.json", *words, "--jobs", "2")


def test_where_nothing_can_be_earned_there_is_no_share(tmp_path, monkeypatch):
    (record,) = records(monkeypatch, tmp_path / "a.json", "--markets", "nosignal", "--seeds", "0")
    assert record["share"] is None and record["steps_to_50"] is None
    assert record["sharpe"] is None or abs(record["sharpe"]) < 20
    task = learning.Task.of("nosignal", 0, 80, 12)
    assert record["control_sharpes"] == task.controls and set(task.controls) == set(BLIND)
    worth = np.append(task.test.prices[1], task.test.prices[1:])  # filled at the next price
    assert task.controls["always_long"] == pytest.approx(standard(worth).SR, abs=1e-3)
    assert 0.3 < record["entropy_at_start"] <= np.log(2)


def test_names_are_taken_with_commas_too():
    words = ["--markets", "news60,news70", "momentum", "--presets", "flagtrl,sb3"]
    options = learning.options_of(words)
    assert options.markets == ["news60", "news70", "momentum"]
    assert options.presets == ["flagtrl", "sb3"] and options.estimators is None
    with pytest.raises(ConfigError, match="news61"):
        learning.options_of(["--markets", "news60,news61"])


@pytest.mark.slow
@pytest.mark.parametrize("preset", [*list(learning.PRESETS)[1:], learning.SB3])
def test_every_peer_can_be_run(preset, tmp_path, monkeypatch):
    (record,) = records(
        monkeypatch,
        tmp_path / "a.json",
        "--markets",
        "news90",
        "--presets",
        preset,
        "--seeds",
        "0",
        "--steps",
        "512",
    )
    assert record["preset"] == preset and record["share"] is not None


@pytest.mark.slow
def test_reinforce_has_no_critic(tmp_path, monkeypatch):
    """Its value head stays at exactly 0, so that advantages are whole returns, whitened."""
    made = []
    monkeypatch.setattr(
        learning,
        "PPOTrainer",
        lambda *args, **options: made.append(PPOTrainer(*args, **options)) or made[-1],
    )
    words = ("--markets", "news90", "--presets", "reinforce", "--seeds", "0", "--steps", "320")
    records(monkeypatch, tmp_path / "a.json", *words)
    args = made[0].args
    assert args.steps_per_rollout == 1 and args.gae_lambda == 1.0 and args.vf_coef == 0.0
    assert all(not parameter.any() for parameter in made[0].model.value_head[-1].parameters())


def test_a_peer_that_reads_numbers_sees_what_the_prompt_shows():
    task = learning.Task.of("news90", 0, 80, 12)
    flat, long = (seen_at(task.train, task.settings, 20, position) for position in POSITIONS)
    row = peers.features(flat)
    moves = np.diff(np.log(task.train.market.prices[18:21])) / MOVE
    np.testing.assert_allclose(row[:2], moves, rtol=1e-5)
    [item] = task.train.market.news[20]
    assert row[2:].tolist() == [
        *(float(item.sentiment == label) for label in ("positive", "neutral", "negative")),
        0.0,
    ]
    assert peers.features(long)[-1] == 1.0


@pytest.mark.parametrize("market", ["news90", "costly", "regimes"])
def test_days_that_read_otherwise_are_other_numbers(market):
    """As far as headlines, their labels and the position go."""
    task = learning.Task.of(market, 0, 200, 12)
    texts = peers.headlines(task.train)
    rows: dict[tuple[str, int], bytes] = {}
    for bar in range(100):
        for position in POSITIONS:
            seen = seen_at(task.train, task.settings, bar, position)
            numbers = peers.features(seen, texts)[-(4 + len(texts)) :].tobytes()
            rows.setdefault((seen.news[-1][0].text, position), numbers)
            assert rows[seen.news[-1][0].text, position] == numbers
    assert len(set(rows.values())) == len(rows)


def test_environments_that_stand_together_see_one_price_path():
    task = learning.Task.of("news90", 0, 200, 12)
    trading = replace(task.settings, episode_start="random")
    envs = VectorTradingEnv([learning.Together(task.train, trading, 10) for _ in range(4)])
    envs.reset(seed=3)
    played = play(uniform, envs, Uniformly(3), 40)
    bars = np.array([[each.bar for each in seen] for seen in played.seen])
    assert (bars == bars[:, :1]).all() and len(np.unique(bars[::10, 0])) > 1


def test_a_rule_that_earned_next_to_nothing_is_no_measure():
    task = learning.Task.of("news90", 0, 80, 200)
    assert learning.best_of(rule(follow_news), task.test, task.settings) == task.best
    assert learning.best_of(always(Action.BUY), task.test, task.settings) is None


def test_storms_pay_and_hurt_and_are_announced_when_an_order_earns():
    market = risk.storms(4000, 3)
    moves = np.diff(np.log(market.prices))
    stormy = np.array([each[0].text.startswith("Storms") for each in market.news])
    # decided on bar t, filled at t + 1, paid by the move after it
    paid, announced = moves[1:], stormy[: len(moves) - 1]
    assert paid[announced].std() > 4 * paid[~announced].std()
    assert paid[announced].mean() > 0 < paid[~announced].mean()


def test_what_a_path_had_is_measured_by_hand():
    task = learning.Task.of("news90", 0, 80, 12)
    held = np.ones((11, 2, 1), dtype=np.int64)[..., 0]  # Hold
    held[:, 0] = 2  # Buy when flat
    found = risk.measured(held, task)
    moves = np.diff(np.log(task.test.prices))
    assert found["exposure"] == 1.0 and found["turnover"] == pytest.approx(1 / 11)
    assert found["return"] == pytest.approx(moves[1:].sum() * 252 / 11)
    assert found["cvar"] == pytest.approx(-np.expm1(min(moves[1:].min(), 0.0)))


def record(**fields):
    curve = [[40, 0.5], [80, fields.get("share", 0.9)]]
    steps = {
        f"{name}_to_{level}": None for level in (50, 80, 90) for name in ("steps", "cpu_seconds")
    }
    named = {"model": "tiny", "market": "news90", "preset": "flagtrl", "estimator": "exact"}
    some = {
        "steps": 13860,
        "share": 0.9,
        "cpu_seconds": 10.0,
        "text_blind_share": 0.1,
        "sharpe": 0.5,
    }
    return {**named, **some, **steps, "curve": curve, **fields}


def test_a_tables_medians_and_intervals_by_hand(tmp_path):
    shares, steps = (0.7, 0.9, 1.0), (40, 80, None)
    rows = [
        record(share=a, steps_to_80=b, cpu_seconds_to_80=b and b / 8, cpu_seconds=10 * a)
        for a, b in zip(shares, steps, strict=True)
    ]
    rows += [
        record(market="nosignal", share=None, sharpe=each, control_sharpes={"held": each - 0.2 - d})
        for each, d in ((1.0, 0.1), (-1.0, 0.0), (0.5, 0.0), (-0.5, -0.1))
    ]
    known, nothing = suite_table.summary(rows).splitlines()[2:]
    half = np.std(shares, ddof=1) / np.sqrt(3) * 4.30265  # t of 2 degrees of freedom
    mean = f"{np.mean(shares):.2f} ± {half:.2f}"
    assert known.split(" | ")[4:9] == ["13,860", "3", "0.90", mean, "-"]
    assert known.split(" | ")[9:] == ["80, 10", "-", "80", "9 (10)", "0.10 |"]
    undefined = suite_table.summary([rows[0], record(share=None)]).splitlines()[-1]
    assert undefined.split(" | ")[5:9] == ["2 (1)", "0.70", "0.70", "-"]
    assert undefined.split(" | ")[9] == "40, 5", "of the seed that has a share"
    assert len(suite_table.summary([*rows, record(steps=1600)]).splitlines()) == 5
    assert " | 4 | - | - |" in nothing
    zero, held = suite_table.no_signal(rows).splitlines()[2:]
    assert zero.endswith(" | 0 | 0 | 0.00 ± 1.45 | 1.00 |"), "a mean of 0"
    told = stats.ttest_rel([1.0, -1.0, 0.5, -0.5], [0.7, -1.2, 0.3, -0.6]).pvalue
    assert " | `held` | -0.20 | 0.20 ± " in held and held.endswith(f" | {told:.2f} |")
    flat = [record(market="nosignal", share=None, sharpe=None, control_sharpes={"held": 0.1})] * 3
    assert len(suite_table.no_signal(flat).splitlines()) == 2, "undefined of all, and no row"
    same = [record(market="nosignal", sharpe=s, control_sharpes={"held": s}) for s in (1.0, 2.0)]
    assert suite_table.no_signal(same).splitlines()[-1].endswith(" | 0.00 ± 0.00 | - |")
    suite_table.draw(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_a_level_is_held_from_where_no_look_is_below_it():
    curves = [[40, 0.9], [80, 0.7], [120, 0.8]], [[40, 0.8], [80, 0.9], [120, 0.8]]
    rows = [record(curve=curve) for curve in curves]
    of = [suite_table.summary([row]).splitlines()[2].split(" | ")[11] for row in rows]
    assert of == ["120", "40"]
    lost = record(curve=[[40, 0.9], [80, 0.7]])
    assert suite_table.summary([lost]).splitlines()[2].split(" | ")[11] == "-"


def test_what_a_market_has_to_learn_is_the_same_for_all_presets():
    """Of the records that the page shows: all are of one test set."""
    path = Path(learning.__file__).parent / "results/learning.json"
    of: dict[tuple, set] = {}
    for each in json.loads(path.read_text(encoding="utf-8")):
        key = tuple(each[name] for name in ("model", "market", "seed"))
        of.setdefault(key, set()).add((each["share"] is None, each["text_blind_share"]))
    assert {key: found for key, found in of.items() if len(found) > 1} == {}


def test_peers_are_compared_on_the_same_markets_and_seeds():
    ours = [record(seed=s, share=a, cpu_seconds=c) for s, a, c in ((0, 0.9, 10), (1, 1.0, 30))]
    ours += [record(market="costly", seed=0, share=0.5, cpu_seconds=40)]
    other = {"preset": "paper", "estimator": "gae"}
    theirs = [record(**other, seed=0, share=0.4, cpu_seconds=5)]
    theirs += [record(**other, market="costly", seed=0, share=0.2, cpu_seconds=15)]
    first, second = suite_table.beside_peers([*ours, *theirs]).splitlines()[2:]
    assert first.split(" | ")[2:] == ["0.95 (2)", "0.50 (1)", "0.72", "", "30 |"]
    half = np.std([0.5, 0.3], ddof=1) / np.sqrt(2) * stats.t.ppf(0.975, 1)
    apart = f"{0.4:.2f} ± {half:.2f} (2 pairs)"
    assert second.split(" | ")[2:] == ["0.40 (1)", "0.20 (1)", "0.30", apart, "10 |"]


def test_what_so_many_seeds_could_tell_from_zero():
    """Against the power of the test itself."""
    values = np.random.default_rng(0).normal(0, 1, 10)
    least = suite_table.detectable(values) / values.std(ddof=1)
    drawn = np.random.default_rng(1).normal(least, 1, (20_000, 10))
    assert (stats.ttest_1samp(drawn, 0.0, axis=1).pvalue < 0.05).mean() == pytest.approx(
        0.8, abs=0.04
    )


def test_how_many_steps_each_preset_takes_is_what_the_page_says(tmp_path):
    taken = {}
    for name, (begins, overrides) in learning.PRESETS.items():
        own = {**learning.preset_settings(begins), **overrides}
        if name != "as_shipped":
            own |= learning.TINY
        own |= {"total_timesteps": learning.BUDGET, "gradient_accumulation_steps": 1}
        fields = learning._those_of(learning.PPOConfig, own)
        taken[name] = learning.PPOConfig(output_dir=str(tmp_path), use_cpu=True, **fields).max_steps
    page = (Path(learning.__file__).parents[1] / "docs/suite.md").read_text(encoding="utf-8")
    for name, said in (
        ("flagtrl", "`flagtrl` takes {} optimizer steps"),
        ("paper", "`paper` {}"),
        ("gae_calibrated", "`gae_calibrated` and `leave_one_out` {}"),
        ("leave_one_out", "`gae_calibrated` and `leave_one_out` {}"),
        ("reinforce", "`reinforce` {}"),
    ):
        assert said.format(taken[name]) in " ".join(page.split()), taken


def test_the_suite_is_what_can_be_named():
    assert set(SUITE) == {
        *("news60", "news70", "news90", "momentum", "reversion", "regimes", "costly", "nosignal")
    }
