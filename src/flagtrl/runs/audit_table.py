"""`flagtrl audit table`: a table of published rows, held against prices."""

from __future__ import annotations

import csv
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from rich.markup import escape
from rich.table import Table

from flagtrl.countdown import Countdown, Say
from flagtrl.errors import ConfigError, DataError, reason
from flagtrl.evidence.attainable import FEWEST_PRICES, NO, PERIODS, UNKNOWN, YES, Span
from flagtrl.evidence.paths import KINDS, Figure, Printed
from flagtrl.evidence.printed_rows import Row, Strategy, audited, strategies, unread
from flagtrl.evidence.published import WINDOWS
from flagtrl.market.data import Window, parse_date
from flagtrl.market.finding import markets_in, window_in

COLUMNS = ("model", "asset", *Printed._fields)
_SIGNS = {YES: "green", NO: "red", UNKNOWN: "yellow"}


class Asked(NamedTuple):
    """A row, and what its window may be, or why that is not known."""

    row: Row
    spans: Sequence[Span] = ()
    known: Sequence[Strategy] = ()
    why: str = ""


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV with the columns model, asset, CR, SR, AV and MDD, and optionally start and
    end; figures in percent but for SR, with the digits that were printed.

    Raises:
        DataError: no such file or columns, a figure that is no decimal number or outside its
            bounds, or days that are none.
    """
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({reason(error)}); give a CSV file") from error
    table = csv.DictReader(text.splitlines())
    names = table.fieldnames or []
    if missing := [name for name in COLUMNS if name not in names]:
        raise DataError(
            f"{path}: no column {missing[0]!r}; found: {', '.join(names)}; a table has "
            f"{', '.join(COLUMNS)}, and may have start and end"
        )
    rows = [_row(cells, f"{path}:{table.line_num}", table.line_num) for cells in table]
    if not rows:
        raise DataError(f"{path} has no rows; give the rows of a table below the column names")
    return rows


def _row(cells: Mapping[str, str | None], where: str, line: int) -> Row:
    found = {name: (cells.get(name) or "").strip() for name in (*COLUMNS, "start", "end")}
    if not found["asset"]:
        raise DataError(f"{where}: the asset is empty; name it, as MSFT")
    printed = Printed(*(_figure(found[name], name, where) for name in Printed._fields))
    days = found["start"], found["end"]
    if any(days):
        try:
            first, last = map(parse_date, days)
        except DataError as error:
            raise DataError(f"{where}: {error}; give both start and end, or neither") from error
        if first >= last:
            raise DataError(f"{where}: start is {first}, not before end, {last}; swap them")
    return Row(found["model"], found["asset"], printed, days[0] or None, days[1] or None, line)


def _figure(text: str, name: str, where: str) -> Figure:
    try:
        figure = Figure.of(text)
    except ValueError as error:
        raise DataError(f"{where}: {name}: {error}; write it as printed, as 15.340") from error
    low, high = {"AV": (0, 10_000), "MDD": (0, 99.9)}.get(name, (-10_000, 10_000))
    if not low <= figure.value <= high:
        raise DataError(f"{where}: {name} is {text}; it must be from {low} to {high}")
    return figure


def asked(rows: Sequence[Row], folder: Path) -> list[Asked]:
    """Each row with the prices of its window, which are looked for below a folder.

    Raises:
        ConfigError: no such folder.
        DataError: two files of an asset that differ.
    """
    if not folder.is_dir():
        raise ConfigError(f"data: {str(folder)!r} is no directory; name one that holds prices")
    found = {asset: markets_in(folder, asset) for asset in dict.fromkeys(r.asset for r in rows)}
    windows: dict[tuple[str, str, str], tuple[Sequence[Span], Sequence[Strategy], str]] = {}
    questions = []
    for row in rows:
        if row.start is None or row.end is None:
            if row.asset not in WINDOWS:
                why = f"no window is known for {row.asset}; add the columns start and end"
                questions.append(Asked(row, why=why))
                continue
            (start, end), shorter = WINDOWS[row.asset], True
        else:
            start, end, shorter = row.start, row.end, False
        key = (row.asset, start, end)
        if key not in windows:
            window = window_in(found[row.asset], row.asset, start, end)
            windows[key] = _read(window, shorter)
        questions.append(Asked(row, *windows[key]))
    return questions


def _read(window: Window | str, shorter: bool) -> tuple[Sequence[Span], Sequence[Strategy], str]:
    """What a window may be: its prices, or of the paper's also all but the last."""
    if isinstance(window, str):
        return (), (), window
    if len(window) < FEWEST_PRICES + shorter:
        return (), (), f"the window has {len(window)} prices; {FEWEST_PRICES + shorter} are needed"
    windows = [window]
    if shorter:
        windows.append(Window(window.market, window.start, window.stop - 1))
    spans = [Span(w.prices, str(w.dates[0]), str(w.dates[-1])) for w in windows]
    return spans, [each for w in windows for each in strategies(w)], ""


def audit(questions: Sequence[Asked], jobs: int, say: Say) -> list[dict[str, Any]]:
    """The record of each row, in their order; see `printed_rows.audited`.

    Args:
        questions: of `asked`.
        jobs: processes at a time.
        say: is told how far it is.
    """
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; it must be at least 1")
    tell, records = Countdown(say, "auditing rows"), {}
    for number, record in _answered(questions, jobs):
        records[number] = record
        tell(len(records), len(questions))
    return [records[number] for number in range(len(questions))]


def _answered(questions: Sequence[Asked], jobs: int) -> Iterator[tuple[int, dict[str, Any]]]:
    if jobs == 1 or len(questions) == 1:
        yield from ((number, _record(each)) for number, each in enumerate(questions))
        return
    fresh = multiprocessing.get_context("spawn")  # a fork would share threads' locks
    with ProcessPoolExecutor(min(jobs, len(questions)), mp_context=fresh) as workers:
        given = {workers.submit(_record, each): number for number, each in enumerate(questions)}
        try:
            for done in as_completed(given):
                yield given[done], done.result()
        finally:
            workers.shutdown(wait=False, cancel_futures=True)


def _record(each: Asked) -> dict[str, Any]:
    if each.why:
        return unread(each.row, each.why)
    return audited(each.row, each.spans, each.known)


# ------------------------------------------------------------------------------------ in words


def answers_table(records: Sequence[Mapping[str, Any]]) -> Table:
    """A row for each record."""
    table = Table(title="could a path of positions have made the row? by kind, and days in AV")
    for name in ("model", "asset", "n", "days in AV", "equals"):
        table.add_column(name, overflow="fold")
    for kind in KINDS:
        for periods in PERIODS:
            table.add_column(f"{kind} {periods}")
    for record in records:
        verdicts = [record["attainable"][kind][str(p)] for kind in KINDS for p in PERIODS]
        told = [record["model"], record["asset"], *map(_or_dash, (record["n"], record["av_days"]))]
        table.add_row(
            *map(escape, told),
            escape(", ".join(map(_equals, record["equals"])) or "-"),
            *(f"[{_SIGNS[verdict]}]{verdict}[/]" for verdict in verdicts),
        )
    return table


def sentences(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The bounds and paths of each record, and a count of all. What no long/short path can make no
    long/flat one can: of the two bounds only the stronger is told.
    """
    for record in records:
        name = f"{record['model']}, {record['asset']}"
        wide = record["attainable"]["long_short"]
        weaker = tuple(f"long_flat, sqrt {days}," for days, v in wide.items() if v == NO)
        for line in (record["certificate"] or "").splitlines():
            if not line.startswith(weaker):
                yield f"{name}: no: {line}"
        for line in record["open"]:
            yield f"{name}: unknown: {line}"
        yield from (f"{name}: yes: {_path(found)}" for found in record["witnesses"])
        for found in (record["without_sr"] or {}).get("witnesses", ()):
            yield f"{name}: CR, AV and MDD alone: yes: {_path(found)}"
    days = [record["av_days"] for record in records]
    yield (
        f"{len(records)} rows: AV alone, with positions in -1, 0, 1, leaves sqrt 365 in "
        f"{days.count(365)}, sqrt 252 in {days.count(252)}; SR follows from CR and AV in "
        f"{sum(record['n'] is not None for record in records)}"
    )


def _path(found: Mapping[str, Any]) -> str:
    held = found["positions"]
    figures = ", ".join(f"{name} {value:.4f}" for name, value in found["figures"].items())
    short = f", {held.count(-1)} short" if -1 in held else ""
    return (
        f"{found['kind']}, sqrt {found['av_days']}, {found['n']} prices ({found['start']} to "
        f"{found['end']}), SR with n = {found['n_of_sr']}: a path of {held.count(1)} days long"
        f"{short}, replayed: {figures}"
    )


def _equals(found: Mapping[str, Any]) -> str:
    but = f" but {', '.join(found['differs'])}" if found["differs"] else ""
    return f"{found['strategy']} ({found['n']} prices, sqrt {found['av_days']}){but}"


def _or_dash(value: object) -> str:
    return "-" if value is None else str(value)
