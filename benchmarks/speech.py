"""Does a trained model still speak English? Five general prompts, the base against the merged
model, and what it lost.

    python benchmarks/speech.py --run runs/demo --json docs/speech.json

Greedy continuations of the base and of base and adapter merged into one plain model; KL(base ||
adapter) on trading prompts where the action begins, and bits per byte of a general text, as
`flagtrl qa` measures them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flagtrl.cpu import cpu_tuning
from flagtrl.policy.bases import load_base
from flagtrl.policy.merging import merge
from flagtrl.policy.pretrained import same_source
from flagtrl.policy.provenance import saved_base
from flagtrl.qa.arms import load_arms, run_record
from flagtrl.qa.paired import PairedLM
from flagtrl.qa.retention import asked_of, general_passages, retention, trading_prompts_or_reason
from flagtrl.record import RunRecord

PROMPTS = (
    "What is the capital of France, and what is it known for?",
    "Explain in two sentences why the sky is blue.",
    "Write a short note to a neighbour who watered my plants.",
    "What should I look at before I buy a used bicycle?",
    "Name three things that a company's annual report tells its shareholders.",
)
NEW_TOKENS = 60
MEASURED = (("retention_trading", "kl_at_answer"), ("retention_general_text", "bits_per_byte"))


@torch.no_grad()
def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The greedy continuation of a chat's first turn, at most NEW_TOKENS long."""
    chat = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    out = model.generate(**ids, max_new_tokens=NEW_TOKENS, do_sample=False)
    return str(
        tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    ).strip()


def measures(measured: dict) -> str:
    """A table of the figures."""
    lines = ["| measured | base | adapter |", "|---|---:|---:|"]
    lines += [
        f"| {row['task']} {row['metric']} | {row['base']:.4f} | {row['adapter']:.4f} |"
        for row in measured["rows"]
    ]
    return "\n".join(lines)


def answers(measured: dict) -> str:
    """The answers, side by side."""
    lines = []
    for both in measured["answers"]:
        lines += ["", f"**{both['prompt']}**", ""]
        lines += [f"- {arm}: {' '.join(both[arm].split())}" for arm in ("base", "merged")]
    return "\n".join(lines[1:])


def main() -> None:
    """Measure, write JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, help="output directory of a run")
    parser.add_argument("--json", default="docs/speech.json")
    options = parser.parse_args()
    cpu_tuning()
    with tempfile.TemporaryDirectory() as folder:
        merged = merge(options.run, Path(folder) / "merged")
        base = load_base(same_source(saved_base(options.run), RunRecord.read(options.run).base))[0]
        models = {
            "base": base.eval(),
            "merged": AutoModelForCausalLM.from_pretrained(merged).eval(),
        }
        tokenizer = AutoTokenizer.from_pretrained(merged)
        said = [
            {"prompt": prompt}
            | {arm: answer(model, tokenizer, prompt) for arm, model in models.items()}
            for prompt in PROMPTS
        ]
    model, tokenizer, names, directories = load_arms(None, (options.run,), "cpu", "float32")
    lm = PairedLM(model, tokenizer, 4)
    trading, reason = trading_prompts_or_reason(lm, run_record(directories[0]), 16, None, 0)
    assert not reason, reason
    rows, _ = retention(lm, names, asked_of([]), {"general_text": general_passages()}, trading, 0)
    kept = [row.as_dict() for row in rows if (row.task, row.metric) in MEASURED]
    assert len(kept) == len(MEASURED), sorted((row.task, row.metric) for row in rows)
    measured = {
        "rows": [{k: row[k] for k in ("task", "metric", "n", "base", "adapter")} for row in kept],
        "answers": said,
    }
    Path(options.json).write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    print(f"{measures(measured)}\n\n{answers(measured)}")


if __name__ == "__main__":
    main()
