"""The script for a GPU, dry: what it would measure, on a tiny model."""

import sys
from pathlib import Path

import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu

# quantised layers have tests of their own, in tests/policy/test_quantization.py
CASES = [
    pytest.param(
        case, id=case.name, marks=() if case.name == "sampled float32" else pytest.mark.slow
    )
    for case in gpu.CASES
    if not case.name.endswith(("8bit", "4bit", "1.7B"))
]


@pytest.mark.parametrize("case", CASES)
def test_first_ratios_are_1_where_nothing_is_rounded(small_model, shared, case):
    """On a CPU every case trains in float32."""
    record = gpu.measured(case, str(small_model), gpu.DRY)
    assert record["steps"] == gpu.DRY and record["ratios"] > 0
    assert record["seconds"] >= record["rollout_seconds"] > 0
    assert record["share_within"] == 1.0 and record["largest_deviation"] < 1e-4


def record(case, seed, seconds=4.0, within=1.0, rewards=(0.0, 0.0, 0.0, 1.0)):
    named = {"case": case, "seed": seed, "seconds": seconds, "share_within": within}
    return {**named, "rewards": list(rewards)}


def test_what_was_aimed_at_is_said_met_or_not():
    plain = [record("exact float32", n, rewards=[0.0] * 3 + [1.0 + 0.1 * n]) for n in range(3)]
    good = [record("exact bfloat16", n, rewards=[0.0] * 3 + [1.1 - 0.1 * n]) for n in range(3)]
    failed = {"case": "exact float32", "seed": 3, "failed": "NonFiniteLossError: step 9"}
    shaped = [record("exact bfloat16, 1.7B", n, rewards=[9.0]) for n in range(2)]
    assert not gpu.verdict(shaped), "random weights are beside nothing"
    assert len(gpu.verdict([*plain, failed, *good])) == 4
    assert gpu.verdict([*plain, failed, *good])[-1] == gpu.verdict([*plain, *good])[-1]
    said = gpu.verdict([*plain, *good])
    assert said[0] == "exact float32: 4.0 s at most, 5 s were aimed at: met"
    assert said[1].endswith("99.9% were aimed at: met")
    p = stats.ttest_ind([1.1, 1.0, 0.9], [1.0, 1.1, 1.2], equal_var=False).pvalue
    assert said[2].endswith(f"beside +1.10000 in float32 (Welch's t-test over seeds, p = {p:.2f})")
    bad = [record("sampled float32", 0, seconds=41.0), record("sampled float16", 0, within=0.99)]
    bad.append({"case": "exact 4bit", "seed": 0, "failed": "NonFiniteLossError: step 3"})
    said = gpu.verdict(bad)
    assert said[0].endswith("40 s were aimed at: missed")
    assert said[1] == (
        "sampled float16: 99.00% of first ratios within 1 +- 0.02, 99.9% were aimed at: missed"
    )
    assert said[2] == "exact 4bit, seed 0: NonFiniteLossError: step 3"
