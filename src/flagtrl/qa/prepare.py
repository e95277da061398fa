"""From a data set's original files to the form that the task files read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flagtrl.errors import DataError, unknown
from flagtrl.files import sha256_of
from flagtrl.qa import labels, questions
from flagtrl.qa.choices import with_choices
from flagtrl.qa.records import Malformed, Question, Record, attempt, write_records
from flagtrl.qa.sources import HUB, files, read_rows

NAMED = 3  # malformed samples in one error


@dataclass(frozen=True)
class Dataset:
    """How one data set is read.

    Attributes:
        convert: one original row, with its place, to its samples and what of it is malformed.
        files: of a folder, the files to take: those of the first pattern that matches any.
        hub: where the Hub has it.
        licence: of the data; none of them is part of flagtrl.
    """

    convert: Callable[[str, dict[str, Any]], Sequence[Record | Malformed]]
    files: tuple[str, ...]
    hub: str
    licence: str


DATASETS = {
    "tatqa": Dataset(
        questions.tatqa,
        ("tatqa_dataset_test_gold.json", "tatqa_dataset_dev.json"),
        "next-tat/TAT-QA",
        "CC BY 4.0",
    ),
    "finqa": Dataset(
        questions.finqa, ("test.json", "finqa_test*.json"), "ibm-research/finqa", "MIT"
    ),
    "convfinqa": Dataset(
        questions.convfinqa, ("dev_turn.json", "dev.json"), "MehdiHosseiniMoghadam/ConvFinQA", "MIT"
    ),
    "financebench": Dataset(
        questions.financebench,
        ("financebench_open_source.jsonl",),
        "PatronusAI/financebench",
        "CC BY-NC 4.0",
    ),
    "phrasebank": Dataset(
        labels.phrasebank,
        ("Sentences_AllAgree.txt", "Sentences_50Agree.txt"),
        "takala/financial_phrasebank",
        "CC BY-NC-SA 3.0",
    ),
    "fiqa_sa": Dataset(
        labels.fiqa_sa,
        ("task1_*_ABSA_test.json",),
        "pauri32/fiqa-2018",
        "see the FiQA challenge's terms",
    ),
    "twitter_fin": Dataset(
        labels.twitter_fin,
        ("sent_valid.csv",),
        "zeroshot/twitter-financial-news-sentiment",
        "MIT",
    ),
    "gold_headlines": Dataset(
        labels.gold_headlines,
        ("finalDataset*.csv", "finalDataset*.tsv", "*gold*.tsv"),
        "SaguaroCapital/sentiment-analysis-in-commodity-market-gold",
        "CC BY-NC-ND 4.0",
    ),
    "fomc": Dataset(
        labels.fomc, ("*test*.csv",), "gtfintechlab/fomc_communication", "CC BY-NC 4.0"
    ),
}


@dataclass(frozen=True)
class Prepared:
    """What a preparation made: where, how much of it, and the malformed samples that were left
    out.
    """

    path: Path
    samples: int
    documents: int
    skipped: tuple[str, ...]


def prepare(name: str, source: str, data: str | Path, *, skip_malformed: bool = False) -> Prepared:
    """Convert a data set.

    Args:
        name: of the data set, one of DATASETS.
        source: its original file, a folder that holds it, or `hub:OWNER/NAME[:CONFIG][:SPLIT]`
            (`hub` alone: where it is known to be).
        data: the folder of prepared data sets.
        skip_malformed: leave malformed samples out instead of refusing all.

    Raises:
        ConfigError: an unknown name.
        DataError: nothing there; or malformed samples, each named with its file and line.
    """
    if name not in DATASETS:
        raise unknown("the data set", name, DATASETS)
    kind = DATASETS[name]
    source = f"{HUB}{kind.hub}" if source == "hub" else source
    records: list[Record] = []
    malformed: list[str] = []
    for place, row in read_rows(source, kind.files):
        samples = (
            row
            if isinstance(row, Malformed)
            else attempt(kind.convert, place.rpartition("/")[2], row)
        )
        for sample in [samples] if isinstance(samples, Malformed) else samples:
            if isinstance(sample, Malformed):
                malformed.append(f"{place}: {sample.reason}")
            else:
                records.append(sample)
    if malformed and not skip_malformed:
        more = f"; and {len(malformed) - NAMED} more" if len(malformed) > NAMED else ""
        named = "; ".join(malformed[:NAMED])
        raise DataError(
            f"{named}{more}; correct the file, or leave such samples out with --skip_malformed"
        )
    if not records:
        raise DataError(f"{source!r} holds no sample of {name}")
    asked = [record for record in records if isinstance(record, Question)]
    records = [*with_choices(asked)] if asked else records
    # Some files are sorted by label: a limit must not see one label alone.
    records.sort(key=lambda record: hashlib.sha256(record.id.encode()).hexdigest())
    note = {
        "name": name,
        "licence": kind.licence,
        "samples": len(records),
        "skipped": malformed,
        "source": _origin(source, kind),
    }
    path = write_records(data, name, records, note)
    return Prepared(
        path, len(records), len({record.document for record in records}), tuple(malformed)
    )


def _origin(source: str, kind: Dataset) -> list[dict[str, str]]:
    if source.startswith(HUB):
        return [{"hub": source[len(HUB) :]}]
    return [{"file": path.name, "sha256": sha256_of(path)} for path in files(source, kind.files)]
