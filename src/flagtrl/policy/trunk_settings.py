"""How the split engine keeps what the trunk gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flagtrl.errors import ConfigError, one_of
from flagtrl.policy.settings import DEVICES, TRUNK_DTYPES, EngineSettings

DTYPES = {name: None if name == "auto" else getattr(torch, name) for name in TRUNK_DTYPES}


@dataclass(frozen=True)
class TrunkSettings:
    """How the split engine keeps the trunk's states.

    Raises:
        ConfigError: a negative bound or an unknown dtype or device.
    """

    cache_bytes: int = 2 << 30  # bound on all that is kept between rollouts
    dtype: str = "auto"  # of the trunk's weights and arithmetic; auto: the model's
    boundary_dtype: str = "auto"  # of stored states; auto: the trunk's
    boundary_device: str = "auto"  # where they are stored; auto: where the model is
    one_dnn: bool = True  # on a CPU, multiply matrices through oneDNN where that helps
    disk_bytes: int = 2 << 30  # bound on what a CPU read ahead, kept in flagtrl's cache directory

    @classmethod
    def of(cls, engine: EngineSettings) -> TrunkSettings:
        """What a user's settings mean here."""
        return cls(
            int(engine.trunk_cache_mb * 2**20),
            engine.trunk_dtype,
            engine.boundary_dtype,
            engine.boundary_device,
            disk_bytes=int(engine.trunk_disk_mb * 2**20),
        )

    def __post_init__(self) -> None:
        if self.cache_bytes < 0:
            raise ConfigError(
                f"the trunk's cache is bounded by {self.cache_bytes} bytes; it must be at least 0"
            )
        for name, allowed in (
            ("dtype", DTYPES),
            ("boundary_dtype", DTYPES),
            ("boundary_device", DEVICES),
        ):
            one_of(f"the trunk's {name}", getattr(self, name), allowed)
