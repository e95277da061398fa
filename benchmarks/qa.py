"""Seconds and memory of 200 multiple-choice items with one-token labels, base arm and adapter arm.

SmolLM2-135M's shape with random weights and its real tokenizer, real tweets; lm-eval's own model class beside flagtrl's,
which computes only the logits that are read. Peak memory is the process's, above what it held before the model came.

    python benchmarks/qa.py --data FOLDER --tokenizer DIR --json docs/qa_speed.json
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flagtrl.qa.arms import PairedLM, arm
from flagtrl.qa.evaluate import load_tasks, run_arm


def smollm2(seed: int = 0) -> LlamaForCausalLM:
    """SmolLM2-135M's shape with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def peak_mb() -> float:
    """The process's largest resident set so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure and print; one JSON row an arm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of prepared data")
    parser.add_argument("--tokenizer", required=True, help="directory of SmolLM2's tokenizer")
    parser.add_argument("--task", default="twitter_fin")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", choices=("flagtrl", "lm_eval"), default="flagtrl")
    parser.add_argument("--json", help="file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tasks, before = load_tasks([options.task], options.data), peak_mb()
    base = smollm2()
    weights_mb = sum(p.numel() * p.element_size() for p in base.parameters()) / 2**20
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=names, layers_to_transform=[28, 29])
    model = get_peft_model(base, lora, adapter_name="adapter_0").eval()
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    if options.engine == "flagtrl":
        lm = PairedLM(model, tokenizer, options.batch_size)
    else:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=options.batch_size)
    rows = []
    for name in (None, "adapter_0"):
        start, cpu = time.perf_counter(), time.process_time()
        with arm(model, name):
            run_arm(lm, tasks, options.items)
        rows.append(
            {
                "engine": options.engine,
                "arm": name or "base",
                "items": options.items,
                "seconds": round(time.perf_counter() - start, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "weights_mb": round(weights_mb),
                "peak_above_start_mb": round(peak_mb() - before),
                "threads": options.threads,
            }
        )
        print(rows[-1], flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
