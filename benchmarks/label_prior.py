r"""What a base reads of a text, in the classification tasks' cloze form and in the question form
that they had before.

Per task and form: accuracy and balanced accuracy of raw scores and with the label prior taken out,
the shares of the labels that raw scores say, and the correlation of log p(last label) - log p(first
label) with the label; beside it the majority.

    python benchmarks/label_prior.py --data qa_data --base SMOLLM2_DIR --threads 1 \
        --json docs/qa_prior.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

from flagtrl.cpu import cpu_tuning
from flagtrl.qa.evaluate import load_tasks
from flagtrl.qa.judging import Judged, credits, mean_of_cells, right
from flagtrl.qa.paired import PairedLM
from flagtrl.qa.records import read_records

BEFORE = {  # doc_to_text of version 1 of the tasks
    "phrasebank": "Is the news negative, neutral or positive for investors?\nNews: {text}\nAnswer:",
    "twitter_fin": (
        "Is the tweet negative, neutral or positive for the stock?\nTweet: {text}\nAnswer:"
    ),
    "fiqa_sa": "Is the text negative, neutral or positive for {about}?\nText: {text}\nAnswer:",
}


def measured(logs: np.ndarray, labels: np.ndarray) -> dict[str, float | list[float]]:
    """Figures of one form: logs (n, K) in nats, labels (n,)."""
    raw = credits(logs, labels)
    calibrated = right(
        [Judged(tuple(row), int(label)) for row, label in zip(logs, labels, strict=True)]
    )
    figures = {"raw_acc": raw.mean(), "raw_bal_acc": mean_of_cells(raw, labels.tolist())}
    figures |= {"acc": calibrated.mean(), "bal_acc": mean_of_cells(calibrated, labels.tolist())}
    figures["correlation"] = np.corrcoef(logs[:, -1] - logs[:, 0], labels)[0, 1]
    figures["majority_acc"] = np.bincount(labels).max() / len(labels)
    said = np.bincount(logs.argmax(axis=1), minlength=logs.shape[1]) / len(labels)
    return {name: round(float(value), 4) for name, value in figures.items()} | {
        "raw_shares": said.round(4).tolist()
    }


def main() -> None:
    """Measure and print; one JSON row a task and form."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of prepared data")
    parser.add_argument("--base", required=True, help="model directory or Hub id")
    parser.add_argument(
        "--tasks", nargs="+", choices=tuple(BEFORE), default=["twitter_fin", "fiqa_sa"]
    )
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", help="file for the rows")
    options = parser.parse_args()
    cpu_tuning()
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.base, dtype=torch.float32).eval()
    lm = PairedLM(model, AutoTokenizer.from_pretrained(options.base), 4)
    rows = []
    for name in options.tasks:
        records = read_records(options.data, name)[: options.limit]
        task = load_tasks([name], options.data)["tasks"][f"flagtrl_{name}"]
        words = task.config.doc_to_choice
        labels = np.array([record.label for record in records])
        for form in ("before", "now"):
            docs = [vars(record) for record in records]
            texts = [
                BEFORE[name].format(**doc) if form == "before" else task.doc_to_text(doc)
                for doc in docs
            ]
            pairs = [(text, f" {word}") for text in texts for word in words]
            asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
            logs = np.array([log for log, _ in lm.loglikelihood(asked, disable_tqdm=True)]).reshape(
                len(texts), -1
            )
            rows.append({"task": name, "form": form, "n": len(texts)} | measured(logs, labels))
            print(rows[-1], flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
