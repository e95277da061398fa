"""A saved run, backtested again: on its test window the very numbers that training ended with, or
on any other window.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from flagtrl.errors import AdapterError, ConfigError, DataError
from flagtrl.evidence.judging import judge
from flagtrl.evidence.report import POLICY_MODES, Report, data_facts
from flagtrl.market.data import MarketData, Window
from flagtrl.market.download import INVESTORBENCH, fetch_investorbench
from flagtrl.market.embedded import SHIPPED_SOURCE, embedded
from flagtrl.market.env import MarketSettings
from flagtrl.market.rewards import saved_reward
from flagtrl.market.sources import load
from flagtrl.policy.countdown import Say
from flagtrl.policy.pretrained import model_record
from flagtrl.policy.saving import SETTINGS_FILE, load_policy, read_settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SavedBacktest:
    """A report, and what results.json says beside it."""

    report: Report
    facts: dict[str, Any]


def backtest_saved(
    directory: str | Path,
    *,
    data: str | None = None,
    start: str | None = None,
    end: str | None = None,
    modes: Sequence[str] = POLICY_MODES,
    base: str | None = None,
    accept_base: bool = False,
    reward: str | None = None,
    volatility_periods: int | None = None,
    device: str | None = None,
    say: Say = lambda line: None,
) -> SavedBacktest:
    """Backtest a saved policy with the prompts, the market's rules and the seed that it was saved
    with.

    What a run's files name is never opened or run: data are the argument's or InvestorBench's, a
    reward of the user's own is the argument's.

    Args:
        directory: of the run or of one of its checkpoints.
        data: JSON, CSV or Parquet file, or hub:REPO; None: InvestorBench's, shipped or downloaded,
            as training had them.
        start: first day; None: of the saved test window.
        end: last day; None: of the saved test window.
        modes: of POLICY_MODES, the agent's rows.
        base: the base model, where it is not where the adapter says.
        accept_base: load on `base` whatever its weights are, and say by how much it differs.
        reward: `path/to/file.py:function`, where the policy was trained on a reward of that kind.
        volatility_periods: of the `paper` convention's AV; None: as saved.
        device: of torch; None: a GPU where there is one.
        say: is told how far it is.

    Raises:
        AdapterError: a run that cannot be loaded, or says nothing of its market, windows or data.
        ConfigError: no such mode, or a reward that must be named.
        DataError: data that cannot be used, or that must be named.
    """
    if not modes or not set(modes) <= set(POLICY_MODES):
        raise ConfigError(
            f"policy_mode is {', '.join(modes) or 'empty'}; use one or both of "
            f"{', '.join(POLICY_MODES)}"
        )
    saved = read_settings(directory)
    told = saved.content
    try:
        symbol, source, sha256 = (str(told["data"][key]) for key in ("symbol", "source", "sha256"))
        trained, test = (tuple(told["windows"][name][:2]) for name in ("train", "test"))
        settings = MarketSettings(
            **{**told["market"], "reward": saved_reward(str(told["market"]["reward"]), reward)}
        )
        seed, periods = (
            int(told["seed"]),
            int(volatility_periods or told.get("volatility_periods", 252)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise AdapterError(
            f"{directory}: {SETTINGS_FILE} does not say how it was traded ({type(error).__name__}: "
            f"{error}); only a run of a recipe can be backtested so; use "
            "flagtrl.evidence.report.evaluate"
        ) from error
    market = _market(data, symbol, source)
    found = market.fingerprint()
    if found != sha256:
        logger.warning(
            "these data are not those of training (sha256 %s, then %s): numbers may differ",
            found[:12],
            sha256[:12],
        )
    window = market.window(start or test[0], end or test[1])
    if str(window.dates[0]) <= trained[1] and str(window.dates[-1]) >= trained[0]:
        logger.warning(
            "the window overlaps that of training, %s to %s: it shows no skill there", *trained
        )
    policy = load_policy(directory, base, accept_base)
    model = policy.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if model.trunk is not None:
        model.use_split(model.trunk.settings)  # anew: its products are chosen for the device
    report = judge(
        model,
        policy.encoder,
        window,
        settings,
        seed=seed,
        volatility_periods=periods,
        modes=modes,
        sampled_paths=told.get("sampled_paths"),
        say=say,
    )
    facts = _facts(told, data or source, window, settings)
    return SavedBacktest(report, {**facts, "base": base} if base and accept_base else facts)


def _market(data: str | None, symbol: str, source: str) -> MarketData:
    if data is None and source == SHIPPED_SOURCE:
        return embedded(symbol)
    if data is None and source != INVESTORBENCH:
        raise DataError(
            f"the policy was trained on {source!r}; only InvestorBench's data are found unasked: "
            "give --data FILE"
        )
    return load(data or str(fetch_investorbench(symbol)), symbol=symbol)


def _facts(
    told: dict[str, Any], source: str, window: Window, settings: MarketSettings
) -> dict[str, Any]:
    facts = data_facts(window.market, source, test=window)
    return {
        **facts,
        "windows": {"train": told["windows"]["train"], **facts["windows"]},
        "seed": told.get("seed"),
        "model": model_record(told),
        "settings": {
            "market": asdict(settings),
            **{name: told[name] for name in ("prompt", "policy")},
        },
    }
