"""The settings of risk: their bounds, and what they need of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagtrl.bounds import WEIGHT, Bound, among
from flagtrl.errors import ConfigError

RISKS = ("none", "turnover", "drawdown", "cvar")
RISK_BOUNDS: Mapping[str, Bound] = {
    "risk": among(RISKS),
    **dict.fromkeys(("risk_coef", "risk_rate"), WEIGHT),
    "risk_level": (lambda x: 0 < x < 1, "between 0 and 1"),
    "risk_limit": (lambda x: x is None or x > 0, "above 0, or left out"),
}


def check_risk(settings: Any) -> None:
    """Refuse PPOSettings whose risk is not asked for, costs nothing or cannot be computed;
    ConfigError.
    """
    if settings.risk == "none":
        for name, unset in (("risk_coef", 0.0), ("risk_limit", None)):
            if getattr(settings, name) != unset:
                raise ConfigError(
                    f"{name} is {getattr(settings, name)}, but risk is none; name the risk: "
                    f"{', '.join(RISKS[1:])}"
                )
        return
    if settings.advantage != "exact":
        raise ConfigError(
            f"risk is {settings.risk}, which needs the policy's own frequencies, but advantage is "
            f"{settings.advantage}; set advantage to exact"
        )
    if settings.risk == "turnover" and settings.risk_limit is not None and settings.risk_limit >= 1:
        raise ConfigError(
            f"risk_limit is {settings.risk_limit}, but turnover is a share of days; use one below 1"
        )
    if settings.risk_limit is not None and not settings.risk_rate:
        raise ConfigError(
            f"risk_limit is {settings.risk_limit}, but risk_rate is 0, so that risk_coef never "
            "follows; set risk_rate to 0.05"
        )
    if not settings.risk_coef and settings.risk_limit is None:
        raise ConfigError(
            f"risk is {settings.risk}, but risk_coef is 0 and there is no risk_limit, so that it "
            "costs nothing; set one of them"
        )
