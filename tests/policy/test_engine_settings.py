"""What runs the model: every setting has a bound, or is tried."""

import pytest

from flagtrl.errors import ConfigError
from flagtrl.policy.settings import EngineSettings
from flagtrl.policy.trunk_settings import TrunkSettings

REFUSED = {
    "engine": [("fast", "auto, split, plain")],
    "trunk_cache_mb": [(-1, "at least 0"), (float("nan"), "finite"), ([1], "finite")],
    "trunk_disk_mb": [(-1, "at least 0"), (float("inf"), "finite")],
    "trunk_dtype": [("int4", "auto, float32, bfloat16, float16")],
    "boundary_dtype": [("float64", "auto, float32, bfloat16, float16")],
    "boundary_device": [("disk", "auto, cpu")],
    "merge_tokens": [(-1, "at least 0"), (0.5, "a whole number")],
}


@pytest.mark.parametrize("name", EngineSettings.__dataclass_fields__)
def test_a_value_outside_its_bounds_is_refused_with_the_bound(name):
    for value, bound in REFUSED[name]:
        with pytest.raises(ConfigError) as caught:
            EngineSettings(**{name: value})
        message = str(caught.value)
        assert message.startswith(f"{name} is {value!r}; ") and bound in message


def test_the_split_engine_is_told_all_that_concerns_it():
    engine = EngineSettings("split", 1.5, 0.5, "bfloat16", "float16", "cpu", 7)
    assert TrunkSettings.of(engine) == TrunkSettings(
        3 << 19, "bfloat16", "float16", "cpu", disk_bytes=1 << 19
    )
