"""`flagtrl trade`: every kind of policy leaves what a run's results have."""

import copy
import json
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from answering_server import GOOD, Server
from architectures import CONFIGS
from flagtrl import cli
from flagtrl.errors import ConfigError
from flagtrl.evidence.days import read_days
from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.tables import Made
from flagtrl.evidence.together import together, verdicts
from flagtrl.policy.endpoint import Endpoint
from flagtrl.runs.others import KINDS, Other
from flagtrl.runs.paper import made, markdown
from flagtrl.runs.trade import TRADERS

WINDOWS = [
    *("--train_start", "2020-07-01", "--train_end", "2020-08-14"),
    *("--test_start", "2020-10-01", "--test_end", "2020-11-20", "--sampled_paths", "3"),
]


@pytest.fixture
def trade(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("flagtrl.runs.trade.MATCHED_DRAWS", 100)

    def run(kind, *more, out=None):
        out = out or tmp_path / "MSFT" / kind / "seed-0"
        words = ["trade", "--policy", kind, "--output_dir", str(out), *WINDOWS, *map(str, more)]
        cli.main(words)
        return json.loads((out / "results.json").read_text()), out, capsys.readouterr().out

    return run


def refused(capsys, *words):
    with pytest.raises(SystemExit) as end:
        cli.main(["trade", *map(str, words)])
    assert end.value.code == 2
    return capsys.readouterr().err


def test_every_kind_has_a_trader():
    assert list(TRADERS) == list(KINDS)


@pytest.mark.slow
def test_an_untrained_model_is_the_untrained_row_of_a_run(trade, small_model):
    named = ["--model_name_or_path", small_model, "--prompt_style", "markov"]
    results, out, said = trade("zero_shot", *named)
    assert {"agent_greedy", "agent_sampled_p5", "untrained_calibrated", "matched_p5"} <= set(
        results["test"]
    )
    assert results["policy"] == {"kind": "zero_shot"} and "train" not in results
    assert (out / PAGE_FILE).is_file() and len(read_days(out)["row"].unique()) > 10
    assert "the untrained model, flat: P(Buy)" in said or "the policy at the start" in said
    assert not (out / "run.json").exists(), "there is no adapter to load"


def in_the_tables(folder, name):
    """Whether a run in MSFT/NAME/seed-0 has its row beside the published ones."""
    runs = made(folder)
    text = markdown(runs, verdicts(together(runs)))
    return "| GPT-4 |" in text and f"| {name}: agent_greedy |" in text


def test_a_model_that_answers_in_text_says_how_often_it_could_be_read(trade, small_model, tmp_path):
    named = ["--model_name_or_path", small_model, "--prompt_style", "markov", "--seed", 0]
    results, *_ = trade("text", *named, out=tmp_path / "runs/MSFT/text/seed-0")
    assert in_the_tables(tmp_path / "runs", "text")
    told = results["policy"]
    assert told["asked"] == results["windows"]["test"][2] - 1 and 0 <= told["parse_rate"] <= 1
    read = told["asked"] - told["unreadable"]
    assert any(
        f"{read} of {told['asked']} answers name an action, {told['as_asked']} in" in sentence
        and f"{told['could_not']} name one that its account cannot take" in sentence
        for sentence in results["verdict"]
    ), "counted once it has traded"


def test_decisions_of_a_file_are_traded_as_they_stand(trade, tmp_path):
    days = pd.date_range("2020-10-01", "2020-11-20").strftime("%Y-%m-%d")
    actions = np.random.default_rng(0).choice(["Buy", "Hold", "Sell"], len(days))
    path = tmp_path / "decisions.csv"
    pd.DataFrame({"date": days, "action": actions}).to_csv(path, index=False)
    results, out, _ = trade("decisions", "--decisions", path)
    known = dict(zip(days, actions, strict=True))
    frame = read_days(out)
    agent = frame[frame["row"] == "agent_greedy"]
    held = agent["shares"].to_numpy()[:-1] > 0
    for date, done, holds in zip(agent["date"][:-1], agent["action"][:-1], held, strict=True):
        wanted = known[f"{date:%Y-%m-%d}"]
        can = wanted == "Hold" or (wanted == "Sell") == holds
        assert done == (wanted if can else "Hold")
    assert results["model"] == {"source": "a file of decisions"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("date,action\n2020-10-01,Buy\n", "no decision for 2020-10-02"),
        ("date,action\n2020-10-01,Short\n", "action is 'Short'; it must be one of Sell, Hold"),
        ("day,action\n2020-10-01,Buy\n", "no column 'date'"),
    ],
)
def test_decisions_that_are_missing_or_unknown_are_one_line(tmp_path, capsys, text, said):
    path = tmp_path / "decisions.csv"
    path.write_text(text)
    words = ["--policy", "decisions", "--decisions", path, "--output_dir", tmp_path / "out"]
    assert said in refused(capsys, *words, *WINDOWS)


def test_a_local_endpoint_is_asked_once_a_day_and_then_known(trade, tmp_path, monkeypatch):
    monkeypatch.setenv("FLAGTRL_CACHE", str(tmp_path / "cache"))
    with Server((200, GOOD, {})) as server:
        named = ["--endpoint", server.url, "--endpoint_model", "gpt-x", "--prompt_style", "markov"]
        named += ["--seed", 0]
        results, _, said = trade("endpoint", *named, out=tmp_path / "runs/MSFT/gpt-x/seed-0")
        assert in_the_tables(tmp_path / "runs", "gpt-x")
        days = results["windows"]["test"][2] - 1
        assert results["policy"]["requests"]["sent"] == len(server.got) == days
        assert results["policy"]["as_asked"] == days and results["policy"]["could_not"] == days - 1
        assert results["model"] == {"id": "gpt-x", "source": "endpoint"}
        assert "agent_greedy is identical to buy_and_hold_by_order" in said
        again, *_ = trade("endpoint", *named)
        assert again["policy"]["requests"]["cached"] == days and len(server.got) == days
        assert again["test"] == results["test"]
    (path,) = (tmp_path / "cache" / "answers").iterdir()
    assert len(path.read_text().splitlines()) == days


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_ppo_on_numbers_is_trained_in_sample_and_traded(trade, kind):
    pytest.importorskip("stable_baselines3", reason="the extra sb3")
    results, *_ = trade(kind, "--total_timesteps", "1024")
    assert results["policy"]["steps"] == 1024 and "agent_greedy" in results["train"]
    p = pd.DataFrame(results["test"]["agent_sampled"])
    assert np.isfinite(p.to_numpy(dtype=float)).all()


def test_two_layers_or_none(monkeypatch):
    pytest.importorskip("stable_baselines3", reason="the extra sb3")
    from flagtrl.market.env import MarketSettings
    from flagtrl.market.synthetic import news_leads_price
    from flagtrl.policy.numeric import learner

    window = news_leads_price(60, seed=3).window()
    for kind, layers in (("linear", 0), ("mlp", 2)):
        model = learner(kind, window, MarketSettings(reward="log_return", lookback=4), 0)
        found = [m for m in model.policy.mlp_extractor.policy_net if isinstance(m, torch.nn.Linear)]
        assert len(found) == layers


@pytest.mark.parametrize(
    "architecture",
    [*(pytest.param(name, marks=pytest.mark.slow) for name in ("llama", "qwen2")), "deepseek-v2"],
)
def test_the_zero_shot_row_of_a_model_of_each_architecture_is_in_the_tables(
    trade, tmp_path, shared, architecture
):
    """Tiny random ones; the 13 language models of the paper's tables are run the same way."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "models/smollm2_instruct_tokenizer")
    config = copy.deepcopy(CONFIGS[architecture])
    config.vocab_size, config.max_position_embeddings = len(tokenizer), 1024
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    torch.manual_seed(0)
    for made_of in (AutoModelForCausalLM.from_config(config), tokenizer):
        made_of.save_pretrained(tmp_path / "model")
    named = ["--model_name_or_path", tmp_path / "model", "--prompt_style", "markov", "--seed", 0]
    trade("zero_shot", *named, out=tmp_path / "runs" / "MSFT" / architecture / "seed-0")
    (run,) = made(tmp_path / "runs")
    assert isinstance(run, Made) and (run.asset, run.preset, run.seed) == ("MSFT", architecture, 0)
    assert np.isfinite(run.figure("agent_greedy", "paper", "CR"))
    assert in_the_tables(tmp_path / "runs", architecture)


def test_what_cannot_be_is_one_line_before_anything_is_loaded(capsys, tmp_path, monkeypatch):
    endpoint = Endpoint("http://x/v1", "m")
    for made_of, said in (
        ({"kind": "text", "endpoint": endpoint}, "policy 'text' takes no --endpoint"),
        ({"kind": "endpoint"}, "policy 'endpoint' needs --endpoint"),
        ({"kind": "decisions"}, "policy 'decisions' needs --decisions"),
        ({"kind": "other"}, "policy is 'other'; it must be one of zero_shot, text"),
    ):
        with pytest.raises(ConfigError, match=said):
            Other(**made_of)
    monkeypatch.setitem(sys.modules, "stable_baselines3", None)
    monkeypatch.setattr("flagtrl.runs.others.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'flagtrl\[sb3\]'"):
        Other("linear")
    with pytest.raises(ConfigError, match=r"own settings, and no --learning_rate; leave it out"):
        replace_words("mlp", ["--learning_rate", "1"])
    replace_words("mlp", ["--seed=1", "--total_timesteps", "5", "--cost_bps", "3"])
    replace_words("text", ["--learning_rate", "1"])
    out = ["--output_dir", tmp_path / "out"]
    assert "recipe 'acme' is unknown" in refused(
        capsys, "--policy", "text", "--recipe", "acme", *out
    )
    assert "did you mean --cost_bps?" in refused(capsys, "--policy", "text", "--costs_bps", 3, *out)
    assert "without --endpoint" in refused(
        capsys, "--policy", "endpoint", "--endpoint_model", "m", *out
    )


def replace_words(kind, words):
    other = object.__new__(Other)
    object.__setattr__(other, "kind", kind)
    other.check_words(words)
