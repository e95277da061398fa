"""What of the language an adapter keeps: bits per byte of texts, divergence from the base, mass on
the action words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np

from flagtrl.errors import ConfigError, DataError, PromptError
from flagtrl.language.settings import saved_prompts
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.accounts import Accounts
from flagtrl.market.env import MarketSettings
from flagtrl.market.rewards import saved_reward
from flagtrl.market.sources import load
from flagtrl.market.synthetic import news_leads_price
from flagtrl.play.loop import Uniformly, play
from flagtrl.play.policy import uniform
from flagtrl.qa.arms import Switch
from flagtrl.qa.divergence import (
    Divergence,
    Prompt,
    check_zero,
    compare_prompt,
    divergences,
    text_bits,
    word_masses,
)
from flagtrl.qa.evaluate import Row
from flagtrl.qa.general import GENERAL_TEXT
from flagtrl.qa.paired import PairedLM
from flagtrl.qa.records import Question, read_records
from flagtrl.qa.statistics import paired_difference
from flagtrl.record import RunRecord

TASK = "retention_"
PASSAGE = 1_500  # characters of a text that are scored together
Passage = tuple[str, str]  # the document that it is of, which is resampled as one, and the text


@dataclass(frozen=True)
class Asked:
    """A question in the words of the task files, the gold answer after it, and the document that it
    is about.
    """

    document: str
    text: str
    answer: str


def passages_of(text: str) -> list[str]:
    """Paragraphs joined to passages of about PASSAGE characters."""
    passages = [""]
    for paragraph in (part.strip() for part in text.split("\n\n")):
        if passages[-1] and len(passages[-1]) + len(paragraph) > PASSAGE:
            passages.append("")
        passages[-1] += ("\n\n" if passages[-1] else "") + paragraph
    return [passage for passage in passages if passage]


def first_questions(data: str | Path, names: Sequence[str], limit: int) -> list[Question]:
    """The first questions of each prepared data set."""
    found: list[Question] = []
    for name in names:
        found += [record for record in read_records(data, name) if isinstance(record, Question)][
            :limit
        ]
    return found


def asked_of(questions: Sequence[Question]) -> list[Asked]:
    """Questions worded as the task files word them."""
    return [
        Asked(
            r.document, f"{r.context}\n\nQuestion: {r.question}\nAnswer:".lstrip(), f" {r.answer}"
        )
        for r in questions
    ]


def document_passages(questions: Sequence[Question]) -> list[Passage]:
    """The passages of the questions' documents, each document's text once."""
    contexts = dict.fromkeys((question.document, question.context) for question in questions)
    return [
        (document, passage) for document, context in contexts for passage in passages_of(context)
    ]


def general_passages() -> list[Passage]:
    """The general text that comes with flagtrl, whose paragraphs are of different things."""
    return [(str(i), paragraph) for i, paragraph in enumerate(GENERAL_TEXT.strip().split("\n\n"))]


def question_prompts(lm: PairedLM, asked: Sequence[Asked]) -> list[Prompt]:
    """Question and gold answer in the tokens that lm-eval scores; the last of the answer predicts
    nothing, and is left out.
    """
    prompts = []
    for one in asked:
        question, answer = lm._encode_pair(one.text, one.answer)
        prompts.append(Prompt((*question, *answer[:-1]), one.document, len(answer)))
    return prompts


def trading_prompts(
    lm: PairedLM,
    record: RunRecord,
    limit: int,
    market: str | None = None,
    seed: int = 0,
    reward: str | None = None,
    prompt_style: str | None = None,
) -> list[Prompt]:
    """Prompts of a uniformly random trader, in the run's own style, on a market file or a synthetic
    market.

    Raises:
        PromptError: prompts that this model cannot take.
        ConfigError: the run's `reward`, which prompts show, or its `prompt_style` is code that is
            not named: a run may be somebody else's, so it is not run.
    """
    window = (load(market) if market else news_leads_price(days=limit + 20, seed=seed)).window()
    rules = dict(record.market)
    if "reward" in rules:
        rules["reward"] = saved_reward(rules["reward"], reward)
    encoder = PromptEncoder(lm.tokenizer, saved_prompts(record.prompt, prompt_style), lm.max_length)
    world = Accounts(window, MarketSettings(**rules))
    played = play(uniform, world, Uniformly(seed), min(limit, len(window) - 1))
    return [
        Prompt(tuple(encoder.encode(seen).ids.tolist()), str(seen.date)) for (seen,) in played.seen
    ]


def retention(
    lm: PairedLM,
    adapters: Sequence[str],
    asked: Sequence[Asked],
    texts: Mapping[str, Sequence[Passage]],
    trading: Sequence[Prompt] = (),
    seed: int = 0,
) -> tuple[list[Row], list[str]]:
    """Everything that is kept or lost, as rows like those of the tasks; and what the control of
    zeros was measured on.

    Args:
        lm: around the model that holds base and adapters.
        adapters: their names.
        asked: questions.
        texts: held-out texts by name, as passages with the document that each is of.
        trading: trading prompts.
        seed: of the bootstrap.

    Raises:
        AdapterError: an adapter that is 0 by construction is measured as other than 0.
    """
    groups = {"questions": question_prompts(lm, asked), "trading": list(trading)}
    with lm.together(adapters) as switch:
        rows = _text_rows(lm, switch, adapters, texts, seed)
        for name, prompts in groups.items():
            measured, masses, contexts = (
                [],
                [],
                [one.text for one in asked] if name == "questions" else [],
            )
            for prompt, context in zip_longest(prompts, contexts):
                measured.append(compare_prompt(lm, switch, adapters, prompt))
                if context is not None:  # at once: the prompt, which begins with it, was just read
                    masses.append(
                        word_masses(
                            lm, context, [partial(switch, arm) for arm in (None, *adapters)]
                        )
                    )
            if prompts:
                rows += _divergence_rows(name, prompts, divergences(measured), seed)
            if masses:
                base, *tuned = np.array(masses).T  # (1 + A, n)
                weights, documents = np.ones(len(base)), [prompt.document for prompt in prompts]
                rows.append(
                    _row(name, "action_word_mass", base, np.stack(tuned), weights, documents, seed)
                )
    controls = {name: prompts[:2] for name, prompts in groups.items() if prompts}
    if not controls:
        return rows, ["Control: not measured, as there was no prompt to compare distributions on."]
    check_zero(lm, [prompt for prompts in controls.values() for prompt in prompts])
    where = " and ".join(f"{len(prompts)} of {name}" for name, prompts in controls.items())
    return rows, [
        f"Control: an adapter of zeros diverges from the base by exactly 0 on prompts: {where}."
    ]


def read_texts(named: Sequence[str]) -> dict[str, list[Passage]]:
    """`NAME=FILE` pairs to passages; the passages of one file are resampled one by one, as if each
    were a document.

    Raises:
        DataError: no such file, or none of text.
    """
    texts = {}
    for pair in named:
        name, _, path = pair.rpartition("=")
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(
                f"the text {path!r} cannot be read ({error}); give NAME=FILE with a UTF-8 text file"
            ) from error
        passages = passages_of(text)
        if not passages:
            raise DataError(f"the text {path!r} is empty; give a text of some paragraphs")
        texts[name or Path(path).stem] = [(str(i), passage) for i, passage in enumerate(passages)]
    return texts


def trading_prompts_or_reason(
    lm: PairedLM, record: RunRecord, limit: int, market: str | None, seed: int, **own: str | None
) -> tuple[list[Prompt], str]:
    """The trading prompts, or none and why there are none."""
    try:
        return trading_prompts(lm, record, limit, market, seed, **own), ""
    except (PromptError, ConfigError) as error:
        return [], f"Not measured on trading prompts: {error}."


def _arms(
    switch: Switch, adapters: Sequence[str], measure: Callable[[], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """`measure()` of the base, (n,), and of every adapter, (adapters, n)."""
    with switch(None):
        base = measure()
    tuned = []
    for adapter in adapters:
        with switch(adapter):
            tuned.append(measure())
    return base, np.stack(tuned)


def _text_rows(
    lm: PairedLM,
    switch: Switch,
    adapters: Sequence[str],
    texts: Mapping[str, Sequence[Passage]],
    seed: int,
) -> list[Row]:
    rows = []
    for name, text in texts.items():
        documents, passages = zip(*text, strict=True)
        base, tuned = _arms(switch, adapters, partial(text_bits, lm, passages))
        sizes = np.array([float(len(passage.encode())) for passage in passages])
        rows.append(_row(name, "bits_per_byte", base, tuned, sizes, documents, seed))
    return rows


def _divergence_rows(
    name: str, prompts: Sequence[Prompt], measured: Sequence[Divergence], seed: int
) -> list[Row]:
    documents, zeros = [prompt.document for prompt in prompts], np.zeros(len(prompts))
    first = measured[0]
    rows = []
    for where, kl, agree, weights in (
        ("", [m.kl for m in measured], [m.agree for m in measured], first.positions),
        (
            "_at_answer",
            [m.kl_answer for m in measured],
            [m.agree_answer for m in measured],
            first.answer_positions,
        ),
    ):
        rows.append(
            _row(name, f"kl{where}", zeros, np.stack(kl), weights, documents, seed, tested=False)
        )
        rows.append(
            _row(
                name,
                f"top1_agreement{where}",
                weights,
                np.stack(agree),
                weights,
                documents,
                seed,
                tested=False,
            )
        )
    return rows


def _row(
    name: str,
    metric: str,
    base: np.ndarray,
    tuned: np.ndarray,
    weights: np.ndarray,
    documents: Sequence[str],
    seed: int,
    tested: bool = True,
) -> Row:
    difference = paired_difference(base, tuned, weights, documents, seed)
    each = tuple(float(x) for x in (tuned - base).sum(axis=1) / weights.sum())
    return Row(
        TASK + name,
        metric,
        len(base),
        len(set(documents)),
        difference,
        by_adapter=each,
        tested=tested,
    )
