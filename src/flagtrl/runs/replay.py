"""A saved run, backtested again: on its test window the very numbers that training ended with, or
on any other window.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from flagtrl.countdown import Say
from flagtrl.errors import AdapterError, ConfigError, DataError
from flagtrl.evidence.report import POLICY_MODES, Report
from flagtrl.language.settings import saved_prompts
from flagtrl.market.data import MarketData, Window
from flagtrl.market.download import INVESTORBENCH
from flagtrl.market.embedded import SHIPPED_SOURCE
from flagtrl.market.env import MarketSettings
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.rewards import saved_reward
from flagtrl.market.summary import Summary, data_facts
from flagtrl.policy.bases import device_or_gpu
from flagtrl.policy.loading import load_policy
from flagtrl.policy.saving import SavedPolicy, read_settings
from flagtrl.record import RECORD_FILE, DataFacts, RunRecord
from flagtrl.runs.data import market_of
from flagtrl.runs.judging import judge

logger = logging.getLogger(__name__)

_AS_THEN = ("sampled_paths", "perturbed_draws")


def backtest_saved(
    directory: str | Path,
    *,
    modes: Sequence[str] = POLICY_MODES,
    volatility_periods: int | None = None,
    say: Say = lambda line: None,
    **how: Any,
) -> tuple[Report, RunRecord]:
    """Backtest a saved policy as trained: the report, and its record with what is traded now.

    Args:
        directory: of the run or of one of its checkpoints.
        modes: of POLICY_MODES, the agent's rows.
        volatility_periods: of the `paper` convention's AV; None: as saved.
        say: is told how far it is.
        how: what is traded, and how it is loaded: as of `load_saved`.

    Raises:
        ConfigError: no such mode, or as of `load_saved`.
        AdapterError, DataError: as of `load_saved`.
    """
    _check_modes(modes)
    loaded = load_saved(directory, say=say, **how)
    periods = volatility_periods or loaded.record.options.get("volatility_periods", 252)
    return loaded.judged(modes, periods, say), loaded.traded(periods)


@dataclass(frozen=True, eq=False)
class Loaded:
    """A saved policy, and what it is to trade.

    Attributes:
        policy: on its device.
        record: of the run.
        settings: of its market.
        window: what is traded.
        trained_on: the training window, where the market has its days; else None.
        source: of the data.
    """

    policy: SavedPolicy
    record: RunRecord
    settings: MarketSettings
    window: Window
    trained_on: Window | None
    source: str

    def judged(self, modes: Sequence[str], periods: int, say: Say) -> Report:
        """The policy beside its controls, as its run judged it."""
        options = self.record.options
        how = {name: options[name] for name in _AS_THEN if name in options}
        how |= {"volatility_periods": periods, "modes": modes, "seed": self.record.seed}
        traded = self.policy.model, self.policy.encoder, self.window, self.settings
        return judge(*traded, survey=self.trained_on, say=say, **how)

    def traded(self, periods: int) -> RunRecord:
        """The run's record, with what is traded now and how."""
        windows = {"train": self.record.windows["train"], "test": self.window.span}
        return replace(
            self.record,
            market=asdict(self.settings),
            data=data_facts(self.window.market, self.source),
            windows=windows,
            options={**self.record.options, "volatility_periods": periods},
        )


def load_saved(
    directory: str | Path,
    *,
    data: str | None = None,
    symbol: str | None = None,
    reading: ReadingSettings | None = None,
    start: str | None = None,
    end: str | None = None,
    base: str | None = None,
    accept_base: bool = False,
    reward: str | None = None,
    prompt_style: str | None = None,
    device: str | None = None,
    say: Say = lambda line: None,
) -> Loaded:
    """A saved policy and what it is to trade.

    A run's files may be a stranger's: what they name is not run, and a file of data that they name
    is used only if it holds what training had. A reward or prompt style of the user's own is the
    argument's.

    Args:
        directory: of the run or of one of its checkpoints.
        data: JSON, CSV or Parquet file, or hub:REPO; None: those of training, where they are
            InvestorBench's, or a file that is found unchanged.
        symbol: of the asset in `data`; None: what the file says of it.
        reading: of `data`; what it leaves open of the file of training is read as then.
        start: first day; None: of the saved test window.
        end: last day; None: of it too.
        base: the base model, where it is not where the adapter says.
        accept_base: load on `base` whatever its weights are, and say by how much it differs.
        reward: `path/to/file.py:function`, where the policy was trained on a reward of that kind.
        prompt_style: the same of prompts.
        device: of torch; None: a GPU where there is one.
        say: is told what the data are.

    Raises:
        AdapterError: a run that cannot be loaded, or says nothing of its market, windows or data.
        ConfigError: a reward or prompt style that must be named.
        DataError: data that cannot be used, or that must be named.
    """
    record = read_settings(directory).record
    trained, test, data_facts = _how_it_was_traded(directory, record)
    named = {"reward": saved_reward(str(record.market["reward"]), reward)}
    settings = MarketSettings(**{**record.market, **named})
    saved_prompts(record.prompt, prompt_style)  # refused before data and model are read
    market = _market(directory, record, data, symbol, reading or ReadingSettings())
    for line in Summary.of(market).lines():
        say(line)
    window = market.window(start or test[0], end or test[1])
    _say_what_differs(window, data_facts, trained)
    policy = load_policy(directory, base, accept_base, prompt_style)
    policy.model.to(device_or_gpu(device)).use_again()  # the engine's products are the device's
    known = _trained_on(market, trained)
    return Loaded(policy, record, settings, window, known, data or data_facts.source)


def _trained_on(market: MarketData, trained: tuple[str, str, int]) -> Window | None:
    """The training window, where `market` has its days; else None."""
    try:
        window = market.window(*trained[:2])
    except DataError:
        return None
    return window if len(window) == trained[2] else None


def _check_modes(modes: Sequence[str]) -> None:
    if not modes or not set(modes) <= set(POLICY_MODES):
        raise ConfigError(
            f"policy_mode is {', '.join(modes) or 'empty'}; use one or both of "
            f"{', '.join(POLICY_MODES)}"
        )


def _how_it_was_traded(
    directory: str | Path, record: RunRecord
) -> tuple[tuple[str, str, int], tuple[str, str, int], DataFacts]:
    """Training window, test window and data; AdapterError where the record lacks them."""
    known = {
        **{"windows": {"train", "test"} <= set(record.windows), "data": record.data is not None},
        **{"market": "reward" in record.market, "seed": record.seed is not None},
    }
    if record.data is None or record.seed is None or not all(known.values()):
        missing = ", ".join(name for name, is_known in known.items() if not is_known)
        raise AdapterError(
            f"{directory}: its {RECORD_FILE} does not say how it was traded ({missing}); only a "
            "run of a recipe can be backtested so; use flagtrl.evidence.report.evaluate"
        )
    return record.windows["train"], record.windows["test"], record.data


def _say_what_differs(window: Window, known: DataFacts, trained: tuple[str, str, int]) -> None:
    """Warn of other data than those of training, and of a window that is not after training's."""
    found = window.market.fingerprint()
    if found != known.sha256:
        logger.warning(
            "these data are not those of training (sha256 %s, then %s): numbers may differ",
            found[:12],
            known.sha256[:12],
        )
    if str(window.dates[0]) <= trained[1]:
        where = "overlaps" if str(window.dates[-1]) >= trained[0] else "lies before"
        logger.warning(
            "the window %s that of training, %s to %s: it shows no skill there", where, *trained[:2]
        )


def _market(
    directory: str | Path,
    record: RunRecord,
    data: str | None,
    symbol: str | None,
    reading: ReadingSettings,
) -> MarketData:
    """The market to trade: of `data`, or else the one of training."""
    assert record.data is not None
    known, names = record.data, [each.name for each in fields(ReadingSettings)]
    given = {name: value for name in names if (value := getattr(reading, name)) is not None}
    as_trained = {name: record.options[name] for name in names if name in record.options}
    if data is not None and not _same_place(data, known.source):
        return market_of(data, symbol, reading)
    how = ReadingSettings(**{**as_trained, **given})
    if data is None and known.source not in (SHIPPED_SOURCE, INVESTORBENCH):
        return _unchanged(directory, known, how)
    return market_of(known.source, symbol or known.symbol, how)


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def _unchanged(directory: str | Path, known: DataFacts, reading: ReadingSettings) -> MarketData:
    """The market of a file that the run names; DataError where it is not there, or another."""
    remedy = "give --data FILE"
    if not Path(known.source).is_file():
        raise DataError(
            f"{directory}: the policy was trained on {known.source!r}, which is not here; {remedy}"
        )
    market = market_of(known.source, known.symbol, reading)
    if market.fingerprint() != known.sha256:
        raise DataError(
            f"{directory}: {known.source!r} no longer holds what the policy was trained on; to "
            f"trade it as it is now, {remedy}"
        )
    return market
