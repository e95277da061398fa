"""The whole comparison, as `flagtrl qa` and the recipes run it: tasks, retention, report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from flagtrl.qa.arms import load_arms, load_vllm, run_record
from flagtrl.qa.comparison import Comparison
from flagtrl.qa.divergence import Prompt
from flagtrl.qa.evaluate import Row, compare, load_tasks
from flagtrl.qa.paired import PairedLM
from flagtrl.qa.records import Question
from flagtrl.qa.retention import (
    Passage,
    asked_of,
    document_passages,
    first_questions,
    general_passages,
    read_texts,
    retention,
    trading_prompts_or_reason,
)
from flagtrl.record import RunRecord

TEXTS = (
    "`financial_text` is the questions' documents, resampled by document; `general_text` twelve "
    "paragraphs on everyday matters that come with flagtrl; a text of --text is resampled by "
    "passages. `_at_answer` is over the gold answer's tokens, of a trading prompt where the "
    "action begins."
)
QUESTION_SETS = ("tatqa", "finqa", "convfinqa", "financebench")


def run(settings: Comparison) -> tuple[list[Row], list[str]]:
    """Rows of tasks and retention, and notes that belong under their table."""
    tasks = load_tasks(settings.tasks, settings.data)
    texts = read_texts(settings.texts)
    _say(f"{len(tasks['tasks'])} tasks; the base, then {len(settings.adapters)} adapter(s) on it")
    if settings.model == "vllm":
        engine, switch, names = load_vllm(settings.base, settings.adapters, settings.dtype)
        rows = compare(engine, switch, names, tasks, settings.limit, settings.seed)
        return rows, [
            "Run on vLLM, which has no full-vocabulary logits: retention and the base's weights "
            "were not checked."
        ]
    model, tokenizer, names, directories = load_arms(
        settings.base, settings.adapters, settings.device, settings.dtype, settings.accept_base
    )
    lm = PairedLM(model, tokenizer, settings.batch_size)
    with lm.together(names) as switch:
        rows, notes = compare(lm, switch, names, tasks, settings.limit, settings.seed), []
    if lm.cut:
        notes.append(
            f"{lm.cut} requests per arm are longer than the model's {lm.max_length} tokens and "
            "lost their beginning."
        )
    asked = question_sets(tasks["tasks"])
    kept, said = _retention(lm, names, settings, asked, texts, run_record(directories[0]))
    return rows + kept, notes + said


def question_sets(tasks: Mapping[str, Any]) -> tuple[str, ...]:
    """The data sets of questions that the named tasks are of: retention takes its questions from
    them, and no others.
    """
    sets = [(task.config.dataset_kwargs or {}).get("name") for task in tasks.values()]
    return tuple(name for name in QUESTION_SETS if name in sets)


def _retention(
    lm: PairedLM,
    names: tuple[str, ...],
    settings: Comparison,
    sets: tuple[str, ...],
    texts: dict[str, list[Passage]],
    run_of: RunRecord,
) -> tuple[list[Row], list[str]]:
    """Texts always; divergence on questions and trading prompts, as many as asked for; and what was
    not measured.
    """
    _say("retention: texts, divergence from the base, mass on the action words")
    notes = [TEXTS]
    questions: list[Question] = []
    trading: list[Prompt] = []
    if settings.retention_prompts:
        questions = first_questions(
            settings.data, sets, min(settings.retention_prompts, settings.limit or sys.maxsize)
        )
        if not questions:
            notes.append(
                "Not measured on questions and financial text: no task of "
                f"{', '.join(QUESTION_SETS)} is named."
            )
        own = {"reward": settings.reward, "prompt_style": settings.prompt_style}
        trading, reason = trading_prompts_or_reason(
            lm, run_of, settings.retention_prompts, settings.market, settings.seed, **own
        )
        notes += [reason] if reason else []
    else:
        notes.append(
            "Not measured on questions, financial text and trading prompts: --retention_prompts "
            "is 0."
        )
    documents = document_passages(questions)
    texts = {
        **({"financial_text": documents} if documents else {}),
        "general_text": general_passages(),
        **texts,
    }
    rows, control = retention(lm, names, asked_of(questions), texts, trading, settings.seed)
    return rows, notes + control


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
