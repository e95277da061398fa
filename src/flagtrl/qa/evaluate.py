"""Base against adapter on lm-eval tasks: the same samples, paired one by one, in one process."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval import evaluator
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from flagtrl.errors import ConfigError, only_errors, unknown
from flagtrl.evidence.statistics import holm
from flagtrl.qa import judging
from flagtrl.qa.arms import Switch
from flagtrl.qa.judging import Judged
from flagtrl.qa.statistics import Difference, level, mean_per_weight, paired_difference

TASKS = Path(__file__).parent / "tasks"
PREFIX = "flagtrl_"
MMLU = "mmlu"
# answers that read nothing: the most frequent label, and each choice equally often
CONTROLS = ("majority", "uniform")
SAME = 1e-9  # a base that always says one label is at chance, whatever the last bit of a mean


@dataclass(frozen=True)
class Row:
    """One metric of one task, base against adapter.

    Attributes:
        task, metric: their names.
        n, documents: samples, and the documents that they are of.
        difference: the paired statistics.
        primary: named in advance as the task's one metric for Holm's family; never of a control.
        higher_is_better: which way is better; None where neither is.
        by_adapter: each adapter's own delta.
        tested: whether p means anything; a divergence is above 0 by definition.
        informative: whether the base does the row's task above chance; if not, p is no finding and
            is not given.
        control: a score of an answer that reads nothing, which has no adapter.
    """

    task: str
    metric: str
    n: int
    documents: int
    difference: Difference
    primary: bool = False
    higher_is_better: bool | None = None
    by_adapter: tuple[float, ...] = ()
    tested: bool = True
    informative: bool = True
    control: bool = False

    @property
    def given_p(self) -> float:
        """The p where it means anything, else NaN."""
        return self.difference.p if self.tested and self.informative else math.nan

    @property
    def without_p(self) -> bool:
        """Whether there is no p, as of one document alone."""
        return math.isnan(self.difference.p)

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in the JSON file; null where nothing can be said."""
        d = self.difference
        numbers = {
            "base": d.base,
            "adapter": d.adapter,
            "delta": d.delta,
            "low": d.low,
            "high": d.high,
        }
        numbers["p"] = self.given_p
        known = {name: None if math.isnan(value) else value for name, value in numbers.items()}
        return {"task": self.task, "metric": self.metric, "n": self.n, **known}


@dataclass(frozen=True, eq=False)
class Samples:
    """One arm's scores of one task, in the order of its documents.

    Attributes:
        hashes: (n,) of the documents, to pair by.
        documents: (n,) names; equal ones share a document.
        scores: metric to (n,) totals.
        weights: metric to (n,) what they are per.
        cells: metric to (n,) cells whose means' mean it is; of balanced accuracy only.
        gold: (n,) the right choice, with the question that it answers where texts are asked
            different ones; () where there are no choices.
        choices: (n,) how many choices; empty where there are none.
    """

    hashes: tuple[str, ...]
    documents: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    weights: Mapping[str, np.ndarray]
    cells: Mapping[str, np.ndarray] = field(default_factory=dict)
    gold: tuple[tuple[str, int], ...] = ()
    choices: np.ndarray = field(default_factory=lambda: np.zeros(0))


def load_tasks(names: Sequence[str], data: str | Path) -> dict[str, Any]:
    """lm-eval tasks by name or group, with or without `flagtrl_`; MMLU's through lm-eval's own
    files.

    Raises:
        ConfigError: an unknown task, or one that is named twice.
        DataError: a task whose data are not prepared.
    """
    include = [TASKS]
    if any(MMLU in name for name in names):
        found = find_spec("lm_eval.tasks")
        assert found is not None and found.submodule_search_locations
        include.append(Path(next(iter(found.submodule_search_locations))) / MMLU / "default")
    # not lm-eval's warnings of what is meant: a model passed in, data sets read by a function
    with only_errors("lm_eval"):
        manager = TaskManager(
            include_path=[str(path) for path in include],
            include_defaults=False,
            metadata={"data": str(data)},
        )
        wanted = [name if name in manager.all_tasks else PREFIX + name for name in names]
        known = manager.all_tasks
        for name, full in zip(names, wanted, strict=True):
            if full not in known:
                own = [task.removeprefix(PREFIX) for task in known if task.startswith(PREFIX)]
                raise unknown("the task", name, own)
        try:
            return dict(manager.load(wanted))
        except ValueError as error:
            if "Duplicate task" not in str(error):
                raise
            raise ConfigError(f"{error}; name every task once") from error


def run_arm(
    lm: LM, tasks: Mapping[str, Any], limit: int | None = None, seed: int = 0
) -> dict[str, Samples]:
    """Every task's samples under the model as it is now."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    for task in tasks["tasks"].values():
        task.set_fewshot_seed(seed)
        if task.config.num_fewshot is None:
            task.config.num_fewshot = 0
    with only_errors("lm_eval"):
        results = evaluator.evaluate(lm, tasks, limit=limit, bootstrap_iters=0, log_samples=True)
    assert results is not None
    return {name: _samples(samples) for name, samples in results["samples"].items()}


def compare(
    lm: LM,
    switch: Switch,
    adapters: Sequence[str],
    tasks: Mapping[str, Any],
    limit: int | None = None,
    seed: int = 0,
) -> list[Row]:
    """Run the base once and every adapter once; one row a task and metric, primary metrics first
    within each task.

    Args:
        lm: lm-eval's model.
        switch: makes it, within a `with`, the base (None) or the base with the adapter of that
            name.
        adapters: their names, one for every training seed.
        tasks: of `load_tasks`.
        limit: samples per task, from its first.
        seed: of few-shot draws and of the bootstrap.
    """
    with switch(None):
        base = run_arm(lm, tasks, limit, seed)
    tuned = []
    for name in adapters:
        with switch(name):
            tuned.append(run_arm(lm, tasks, limit, seed))
    return pair(base, tuned, tasks, seed)


def pair(
    base: Mapping[str, Samples],
    tuned: Sequence[Mapping[str, Samples]],
    tasks: Mapping[str, Any],
    seed: int,
) -> list[Row]:
    """Rows of samples that were scored under a base and under its adapters; the documents must be
    the same.
    """
    rows = []
    for name, ours in base.items():
        theirs = [run[name] for run in tuned]
        assert all(run.hashes == ours.hashes for run in theirs), (
            f"{name}: the arms saw different documents"
        )
        config = tasks["tasks"][name].config
        notes = config.metadata or {}
        better = {
            entry["metric"]: entry.get("higher_is_better") for entry in config.metric_list or []
        }
        primary = notes.get("primary", "acc")
        informative = above_chance(ours, primary, seed)
        sizes = len(ours.hashes), len(set(ours.documents))
        for metric in sorted(ours.scores, key=lambda metric: metric != primary):
            scores = np.stack([run.scores[metric] for run in theirs])
            weights, cells = ours.weights[metric], ours.cells.get(metric)
            of = np.zeros(len(weights), dtype=int) if cells is None else cells
            rows.append(
                Row(
                    name,
                    metric,
                    *sizes,
                    paired_difference(
                        ours.scores[metric], scores, weights, ours.documents, seed, cells=cells
                    ),
                    primary=metric == primary and not notes.get("control", False),
                    higher_is_better=better.get(metric),
                    by_adapter=tuple(
                        mean_per_weight(one - ours.scores[metric], weights, of) for one in scores
                    ),
                    informative=informative,
                )
            )
        for control in CONTROLS:
            for metric in (primary, *(["acc"] if primary == "bal_acc" else [])):
                value, none = chance(ours, metric, control), math.nan
                nothing = Difference(value, none, none, none, none, none, none, none)
                rows.append(
                    Row(name, f"{control}_{metric}", *sizes, nothing, tested=False, control=True)
                )
    return rows


def chance(samples: Samples, metric: str, control: str) -> float:
    """What an answer of CONTROLS that reads no text scores in `acc` or `bal_acc`; NaN of anything
    else.
    """
    if metric not in ("acc", "bal_acc") or not samples.gold:
        return math.nan
    hits = judging.majority(samples.gold) if control == "majority" else 1 / samples.choices  # (n,)
    return judging.mean_of_cells(hits, samples.gold) if metric == "bal_acc" else float(hits.mean())


def above_chance(samples: Samples, metric: str, seed: int) -> bool:
    """Whether the base's interval lies above every control; true where there is no control."""
    bounds = [
        value for control in CONTROLS if not math.isnan(value := chance(samples, metric, control))
    ]
    if not bounds or len(set(samples.documents)) < 2:
        return True  # of one document there is no interval, and no p to withhold
    low, _ = level(
        samples.scores[metric],
        samples.weights[metric],
        samples.documents,
        seed,
        samples.cells.get(metric),
    )
    return low > max(bounds) + SAME


def adjusted(rows: Sequence[Row]) -> dict[tuple[str, str], float]:
    """Holm's p of the primary metrics that have a p, by task and metric."""
    family = {
        f"{row.task}\n{row.metric}": row.given_p
        for row in rows
        if row.primary and not math.isnan(row.given_p)
    }
    return {(name.split("\n")[0], name.split("\n")[1]): p for name, p in holm(family).items()}


def _samples(samples: Sequence[Mapping[str, Any]]) -> Samples:
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    scores, weights, cells = {}, {}, {}
    gold, choices = _gold(ordered)
    for metric in ordered[0]["metrics"]:
        values = [sample[metric] for sample in ordered]
        weights[metric] = np.ones(len(values))
        if isinstance(values[0], Judged):
            scores[metric] = (
                judging.bits(values) if metric == "label_bits" else judging.right(values)
            )
            gold = judging.cells(values)
            if metric == "bal_acc":
                cells[metric] = judging.numbered(gold)
        elif isinstance(values[0], tuple):  # log-likelihood and bytes, for bits per byte
            scores[metric] = np.array([-log / math.log(2) for log, _ in values])
            weights[metric] = np.array([float(size) for _, size in values])
        else:
            scores[metric] = np.array(values, dtype=np.float64)
    documents = tuple(str(sample["doc"].get("document", sample["doc_id"])) for sample in ordered)
    return Samples(
        tuple(sample["doc_hash"] for sample in ordered),
        documents,
        scores,
        weights,
        cells,
        gold,
        choices,
    )


def _gold(samples: Sequence[Mapping[str, Any]]) -> tuple[tuple[tuple[str, int], ...], np.ndarray]:
    """The right choice's index and the number of choices, of multiple choice; nothing of other
    kinds.
    """
    known = [(sample["target"], len(sample["filtered_resps"])) for sample in samples]
    if not all(
        str(target).isdecimal() and int(target) < many and many > 1 for target, many in known
    ):
        return (), np.zeros(0)
    return tuple(("", int(target)) for target, _ in known), np.array(
        [float(many) for _, many in known]
    )
