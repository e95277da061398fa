"""The script for a GPU, dry: what it would measure, on a tiny model."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu

# quantised layers have tests of their own, in tests/policy/test_quantization.py
CASES = [
    pytest.param(
        case, id=case.name, marks=() if case.name == "sampled float32" else pytest.mark.slow
    )
    for case in gpu.CASES
    if not case.name.endswith(("8bit", "4bit"))
]


@pytest.mark.parametrize("case", CASES)
def test_first_ratios_are_1_where_nothing_is_rounded(small_model, shared, case):
    """On a CPU every case trains in float32."""
    record = gpu.measured(case, str(small_model), gpu.DRY)
    assert record["steps"] == gpu.DRY and record["ratios"] > 0
    assert record["seconds"] >= record["rollout_seconds"] > 0
    assert record["share_within"] == 1.0 and record["largest_deviation"] < 1e-4
