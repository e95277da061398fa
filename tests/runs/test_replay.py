"""What a backtest of a saved run trades, where it reads a file again."""

import pytest

from flagtrl.errors import DataError
from flagtrl.market.reading import ReadingSettings
from flagtrl.market.sources import load
from flagtrl.market.summary import data_facts
from flagtrl.record import RunRecord
from flagtrl.runs import replay

AS_TRAINED = ReadingSettings(price_column="close", periods_per_year=100)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A file with two prices, and the record of a run on the one that is not read unasked."""
    monkeypatch.chdir(tmp_path)
    text = "date,close,adj close\n2024-01-02,10,1\n2024-01-03,20,2\n2024-01-04,30,3\n"
    (tmp_path / "acme.csv").write_text(text)
    (tmp_path / "other.csv").write_text(text)
    market = load("acme.csv", "ZZZ", AS_TRAINED)
    return RunRecord(data=data_facts(market, "acme.csv"), options=vars(AS_TRAINED))


def traded(record, data=None, symbol=None, **reading):
    return replay._market("run", record, data, symbol, ReadingSettings(**reading))


@pytest.mark.parametrize("data", [None, "acme.csv", "./acme.csv", "../{here}/acme.csv"])
def test_the_file_of_training_is_read_as_it_was(trained, tmp_path, data):
    market = traded(trained, data and data.format(here=tmp_path.name))
    assert (market.symbol, market.prices[0], market.periods_per_year) == ("ZZZ", 10, 100)
    assert market.fingerprint() == trained.data.sha256


def test_what_is_told_now_goes_before_what_was_told_then(trained):
    market = traded(trained, "acme.csv", "YYY", price_column="adj close")
    assert (market.symbol, market.prices[0], market.periods_per_year) == ("YYY", 1, 100)


def test_another_file_is_read_as_it_says_itself(trained):
    market = traded(trained, "other.csv")
    assert (market.symbol, market.prices[0], market.periods_per_year) == ("OTHER", 1, 252)


def test_a_file_that_has_changed_or_gone_is_not_traded_unasked(trained, tmp_path):
    path = tmp_path / "acme.csv"
    path.write_text(path.read_text().replace(",30,", ",31,"))
    with pytest.raises(DataError, match="no longer holds what the policy was trained on"):
        traded(trained)
    path.unlink()
    with pytest.raises(DataError, match=r"which is not here; give --data FILE"):
        traded(trained)
