"""A run is judged on days after those that it is trained on."""

import pytest

from flagtrl.errors import ConfigError
from flagtrl.market.embedded import embedded
from flagtrl.runs.parsing import parse_arguments


def windows(tmp_path, *options):
    arguments = parse_arguments({}, ["--output_dir", str(tmp_path), *options])
    return arguments.data.windows(embedded("MSFT"))


def test_the_papers_windows_are_as_they_are(tmp_path, caplog):
    train, test = windows(tmp_path)
    assert (len(train), len(test)) == (64, 149)
    assert not caplog.records


@pytest.mark.parametrize(
    ("days", "where"),
    [
        (("2020-09-30", "2021-01-04"), "overlaps"),
        (("2020-06-15", "2021-01-04"), "overlaps"),
        (("2020-08-03", "2020-08-14"), "overlaps"),
        (("2020-04-01", "2020-06-30"), "lies before"),
    ],
)
def test_test_days_that_training_sees_or_that_lie_before_it_are_refused(tmp_path, days, where):
    with pytest.raises(
        ConfigError,
        match=rf"the test window {days[0]} to .* {where} the training window 2020-07-01",
    ):
        windows(tmp_path, "--test_start", days[0], "--test_end", days[1])


def test_a_window_that_goes_beyond_the_data_says_so(tmp_path, caplog):
    _, test = windows(tmp_path, "--test_end", "2030-01-04")
    assert test.stop == len(embedded("MSFT"))
    [record] = caplog.records
    assert (
        "the window 2020-10-01..2030-01-04 goes beyond the data, which cover 2020-03-"
        in record.getMessage()
    )
