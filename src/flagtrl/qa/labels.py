"""Converters of the classification data sets. Each turns one original row into its samples.

ValueError and the like: a malformed row; a Malformed among the samples: a malformed part of it.
"""

from __future__ import annotations

import re
from typing import Any

from flagtrl.qa.records import Labelled, Malformed, attempt, fields_of, text_of

SENTIMENTS = ("negative", "neutral", "positive")  # the order of the task files' choices
STANCES = ("easing", "neutral", "tightening")
FIQA_NEUTRAL = 0.1  # |score| below it is neutral, as FinGPT and its followers cut it

# The two published spellings of the columns; what a headline is asked about them.
HEADLINE_QUESTIONS = {
    ("Price Direction Up", "Direction Up", "Price Up"): "Does it say that the gold price went up?",
    ("Price Direction Constant", "Direction Constant", "Price Constant"): (
        "Does it say that the gold price stayed the same?"
    ),
    ("Price Direction Down", "Direction Down", "Price Down"): (
        "Does it say that the gold price went down?"
    ),
    ("Asset Comparision", "Asset Comparison"): "Does it compare gold with another asset?",
    ("Past Information", "Past Price"): "Does it speak of the past?",
    ("Future Information", "Future Price"): "Does it speak of the future?",
}


def phrasebank(place: str, row: dict[str, Any]) -> list[Labelled]:
    """Financial PhraseBank (CC BY-NC-SA 3.0): `sentence@label` in latin-1, or the Hub's sentence
    and label 0, 1, 2.
    """
    return [
        _labelled(
            place,
            text_of(row, "sentence"),
            _one_of(row, "label", SENTIMENTS, {"0": 0, "1": 1, "2": 2}),
        )
    ]


def twitter_fin(place: str, row: dict[str, Any]) -> list[Labelled]:
    """Twitter financial news (MIT on the Hub): 0 bearish, 1 bullish, 2 neutral."""
    return [
        _labelled(
            place, text_of(row, "text"), _one_of(row, "label", SENTIMENTS, {"0": 0, "1": 2, "2": 1})
        )
    ]


def fomc(place: str, row: dict[str, Any]) -> list[Labelled]:
    """FOMC hawkish-dovish (CC BY-NC 4.0): 0 dovish, 1 hawkish, 2 neutral."""
    return [
        _labelled(
            place,
            text_of(row, "sentence"),
            _one_of(row, "label", STANCES, {"0": 0, "1": 2, "2": 1}),
        )
    ]


def fiqa_sa(place: str, row: dict[str, Any]) -> list[Labelled | Malformed]:
    """FiQA 2018 task 1: a sentence and, of every company in it, a score from -1 to 1 that is a
    string.
    """
    if "info" not in row:  # the Hub's form: one row a company
        row = {"key": row.get("_id") or place, "sentence": row.get("sentence"), "info": [row]}
    sentence, key, judged = text_of(row, "sentence"), str(row["key"]), row["info"]
    if not isinstance(judged, list) or not judged:
        raise ValueError(f"info is {judged!r:.60}: no company is judged")
    return [
        attempt(_company, key, number, sentence, company) for number, company in enumerate(judged)
    ]


def _company(key: str, number: int, sentence: str, company: Any) -> Labelled:
    judged = fields_of(company, f"info[{number}]")
    written = judged.get("sentiment_score", judged.get("score"))
    try:
        score = float(written)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"sentiment_score is {written!r}, no number") from None
    if not -1 <= score <= 1:
        raise ValueError(f"sentiment_score is {score}; it must be in -1 to 1")
    label = 1 if abs(score) < FIQA_NEUTRAL else (2 if score > 0 else 0)
    return Labelled(f"{key}-{number}", key, sentence, text_of(judged, "target"), label)


def gold_headlines(place: str, row: dict[str, Any]) -> list[Labelled | Malformed]:
    """Gold commodity headlines (CC BY-NC-ND 4.0): six yes-or-no questions of every headline; 0 is
    no.
    """
    text = text_of(row, "News")
    return [
        attempt(_headline, place, number, text, row, columns)
        for number, columns in enumerate(HEADLINE_QUESTIONS)
    ]


def _headline(
    place: str, number: int, text: str, row: dict[str, Any], columns: tuple[str, ...]
) -> Labelled:
    column = next((name for name in columns if name in row), None)
    if column is None:
        raise ValueError(f"no column {' or '.join(columns)}")
    return Labelled(
        f"{place}-{number}",
        place,
        text,
        HEADLINE_QUESTIONS[columns],
        _one_of(row, column, ("0", "1"), {}),
    )


def _labelled(place: str, text: str, label: int) -> Labelled:
    return Labelled(place, place, text, "", label)


def _one_of(row: dict[str, Any], name: str, words: tuple[str, ...], numbers: dict[str, int]) -> int:
    value = re.sub(r"\.0$", "", str(row.get(name)).strip().lower())
    if value in numbers:
        return numbers[value]
    if value not in words:
        raise ValueError(
            f"{name} is {row.get(name)!r}; it must be one of {', '.join([*words, *numbers])}"
        )
    return words.index(value)
