"""Files that hold a table, as people have them: CSV of any delimiter and encoding, packed or not,
and Parquet.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from flagtrl.errors import DataError, reason
from flagtrl.market.values import check_file, listed, shown

if TYPE_CHECKING:
    import pandas as pd

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
TABLE_SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
MOST_BYTES = 1 << 28  # of a file, unpacked: more is no market's daily bars
_DELIMITERS = ",;\t|"
MOST_ROWS = 5_000_000
_LOOKED_AT = 50  # rows that tell a file's delimiter and where its header is
# What vendors call a bar's fields, as `plain` has them.
FIELDS = ("open", "high", "low", "close", "adjclose", "volume")


@dataclass(frozen=True)
class Table:
    """A table of a user's.

    Attributes:
        frame: its cells, text where the file is; names of columns may repeat.
        delimiter: of a text file.
        owners: where each column is of one asset, as in yfinance's files, whose; "" for all of
            them.
        words: see Reading.
    """

    frame: pd.DataFrame
    delimiter: str = ","
    owners: tuple[str, ...] | None = None
    words: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [str(name) for name in self.frame.columns]


def suffix_of(path: Path) -> str:
    """Its suffix in lower case, without the .gz of a packed file."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def stem_of(path: Path) -> str:
    """A file's name without its suffixes."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).stem


def read_table(path: Path) -> Table:
    """The table in a file. Cells of text files stay text, so that a headline 'NA' is one and a bad
    price is shown as written.

    Raises:
        DataError: a file that is none, or no table, or larger than MOST_BYTES.
    """
    check_file(path)
    try:
        if suffix_of(path) in TEXT_SUFFIXES:
            return _text_table(path)
        if suffix_of(path) == ".parquet":
            frame = _parquet(path)
            names = [_shown_name(name) for name in frame.columns]
            return _with_owners(Table(frame.set_axis(names, axis=1)))
    except (OSError, ValueError, EOFError, zlib.error, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read as a table ({reason(error)}); repair the file, or save it anew"
        ) from error
    raise DataError(
        f"{path}: the suffix {path.suffix!r} is unknown; a table is a file of "
        f"{listed(TABLE_SUFFIXES)}"
    )


def read_bytes(path: Path) -> bytes:
    """What a file holds, unpacked where it is a .gz.

    Raises:
        DataError: more than MOST_BYTES.
        OSError, EOFError, zlib.error: it cannot be read.
    """
    packed = path.suffix.lower() == ".gz"
    with gzip.open(path, "rb") if packed else path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    _check_size(len(content), path)
    return content


def _check_size(size: int, path: Path) -> None:
    if size > MOST_BYTES:
        raise DataError(
            f"{path} holds more than {MOST_BYTES >> 20} MB; keep the rows and columns of one asset"
        )


def _text_table(path: Path) -> Table:
    import pandas as pd

    text, words = _decoded(read_bytes(path))
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    csv.field_size_limit(MOST_BYTES)
    delimiter, before = _layout(text)
    words += tuple(f"line {n + 1} ({shown(line)}) is before the table" for n, line in before)
    # header=None: pandas would rename a repeated column, and shift rows that are longer than the
    # header.
    cells = pd.read_csv(
        io.StringIO(text),
        sep=delimiter,
        header=None,
        dtype=str,
        keep_default_na=False,
        skiprows=[n for n, _ in before],
        skipinitialspace=True,
    )
    cells = cells.dropna(axis=1, how="all")
    header = [_shown_name(cell) for cell in cells.iloc[0]]
    table = Table(cells.iloc[1:].set_axis(header, axis=1), delimiter, words=words)
    table = _with_owners(table)
    _check_header(table.names, path)
    return table


def _decoded(content: bytes) -> tuple[str, tuple[str, ...]]:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16"), ("text is UTF-16",)
    try:
        return content.decode("utf-8-sig"), ()
    except UnicodeDecodeError:
        return content.decode("cp1252"), ("text is not UTF-8, and is read as Windows-1252",)


def _layout(text: str) -> tuple[str, list[tuple[int, str]]]:
    """The delimiter by which most rows have equally many fields, and the lines before the first
    such row.
    """
    if told := re.match(r'"?sep=(.)"?\r?\n', text):  # as Excel writes and reads it
        return told[1], [(0, told[0].strip())]
    best: tuple[tuple[int, int], str, int] = ((0, 0), ",", 1)
    for delimiter in _DELIMITERS:
        rows = list(islice(csv.reader(io.StringIO(text), delimiter=delimiter), _LOOKED_AT))
        widths = Counter(len(row) for row in rows if len(row) > 1)
        if widths:
            width, count = widths.most_common(1)[0]
            best = max(best, ((count, width), delimiter, width), key=lambda found: found[0])
    _, delimiter, width = best
    lines = list(islice(io.StringIO(text), _LOOKED_AT))
    fields = [next(csv.reader([line], delimiter=delimiter), []) for line in lines]
    named = [n for n, names in enumerate(fields) if _names_a_bar(names)]
    full = [n for n, names in enumerate(fields) if len(names) >= width]
    header = next(iter(named or full), 0) if width > 1 else 0
    return delimiter, [(n, line.strip()) for n, line in enumerate(lines[:header]) if line.strip()]


def _names_a_bar(names: Sequence[str]) -> bool:
    """Whether a line names a date and a close, and so is a header whatever its width."""
    known = {plain(name) for name in names}
    return bool(known & {"date", "datetime", "timestamp", "time"}) and bool(
        known & {"close", "price", "adjclose", "closelast", "last"}
    )


def _shown_name(cell: object) -> str:
    """A column's name as it may be shown: one line, and no control characters."""
    return "".join(c if c.isprintable() else " " for c in str(cell)).strip()


def _with_owners(table: Table) -> Table:
    """A table as yfinance writes it, whose header has a row of fields and one of tickers."""
    names = table.names
    pairs = [re.fullmatch(r"\('(.*)', '(.*)'\)", name) for name in names]
    if any(pairs):  # Parquet makes one text of a column's two names
        both = [(m[1], m[2]) if m else (n, "") for m, n in zip(pairs, names, strict=True)]
        return _owned(table, [name for name, _ in both], [name for _, name in both])
    if len(table.frame) < 2:
        return table
    second, third = (
        [cell.strip() if isinstance(cell, str) else "" for cell in table.frame.iloc[row]]
        for row in (0, 1)
    )
    corner = (plain(names[0]), plain(second[0]))
    dated = bool(third[0]) and not any(third[1:])  # a row that names the dates alone
    if corner not in (("price", "ticker"), ("ticker", "price"), ("", "")) or not (
        dated or any(corner)
    ):
        return table
    body = replace(table, frame=table.frame.iloc[2 if dated else 1 :])
    date = third[0] if dated else "date"
    first, other = [date, *names[1:]], ["", *second[1:]]
    if corner[0] == "ticker":
        first, other = [date, *second[1:]], ["", *names[1:]]
    return _owned(body, first, other)


def _owned(table: Table, fields: Sequence[str], owners: Sequence[str]) -> Table:
    """The same by fields alone; the two rows of the header come in either order."""
    if not _are_fields(fields):
        # the dates' name stands in the first row
        fields, owners = [fields[0], *owners[1:]], ["", *fields[1:]]
    return replace(
        table,
        frame=table.frame.set_axis(list(fields), axis=1),
        owners=tuple(owners),
        words=(*table.words, "columns are named by field and ticker, as yfinance writes them"),
    )


def _are_fields(names: Sequence[str]) -> bool:
    known = [plain(name) in FIELDS for name in names if name]
    return sum(known) > len(known) / 2


def _check_header(names: Sequence[str], path: Path) -> None:
    """DataError where the first row is a bar like the others."""
    numbers = [name for name in names if re.fullmatch(r"[$€£]?-?\d+([.,]\d+)?", name)]
    dates = [
        name for name in names if re.fullmatch(r"\d{1,4}[-/.]\d\d?[-/.]\d{1,4}.*|\d{8,19}", name)
    ]
    if dates and (len(numbers) > len(names) / 3 or len(dates) + len(numbers) == len(names)):
        raise DataError(
            f"{path} has no header line: its first is {shown(', '.join(names))}; put the columns' "
            "names above it, as in date,close"
        )


def plain(name: str) -> str:
    """A column's name to compare: in lower case, without blanks, punctuation and a number before
    it: "Adj. Close", "adj_close" and "5. Adj Close" are "adjclose".
    """
    return re.sub(r"[^a-z0-9]", "", re.sub(r"^\s*\d+\.\s*", "", name).lower())


def _parquet(path: Path) -> pd.DataFrame:
    """Read a few rows at a time, so that a small file of repeated values cannot fill the memory."""
    import pyarrow.parquet

    plain_file = pyarrow.parquet.ParquetFile(path)
    if (rows := plain_file.metadata.num_rows) > MOST_ROWS:
        raise DataError(f"{path} has {rows:,} rows; keep those of one asset, {MOST_ROWS:,} at most")
    schema = plain_file.schema
    texts = [
        schema.column(i).path
        for i in range(len(schema))
        if schema.column(i).physical_type == "BYTE_ARRAY"
    ]
    # a text that is repeated stays one text, however often it is
    file = pyarrow.parquet.ParquetFile(path, read_dictionary=texts)
    batches, size = [], 0
    for batch in file.iter_batches(batch_size=1024):
        size += batch.nbytes
        _check_size(size, path)
        batches.append(batch)
    # Not pandas.read_parquet: it would turn a stored date index back into an index, out of the
    # columns.
    return pyarrow.Table.from_batches(batches, file.schema_arrow).to_pandas(ignore_metadata=True)
