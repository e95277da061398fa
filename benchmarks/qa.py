"""Seconds and memory of 200 multiple-choice items with one-token labels, base arm and adapter arm.

SmolLM2-135M's shape with random weights and its real tokenizer, real tweets; lm-eval's own model class beside flagtrl's,
which computes only the logits that are read. Base and adapter are written to disk by a process of their own and loaded as
`flagtrl qa` loads them; peak memory is the process's, above what it held before the model came.

    python benchmarks/qa.py --data FOLDER --tokenizer DIR --json docs/qa_speed.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flagtrl.qa.arms import PairedLM, arm, load_arms
from flagtrl.qa.evaluate import load_tasks, run_arm

SIZES = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "tiny": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}


def write_arms(directory: Path, tokenizer: str, size: str) -> None:
    """SmolLM2-135M's shape (or a tiny one) with random weights, and a LoRA adapter on its two top layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        **SIZES[size], vocab_size=49152, tie_word_embeddings=True, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2
    )
    base = LlamaForCausalLM(config)
    base.save_pretrained(directory / "base")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory / "base")
    top = [config.num_hidden_layers - 2, config.num_hidden_layers - 1]
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=names, layers_to_transform=top)
    get_peft_model(base, lora).save_pretrained(directory / "adapter")


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
    parser.add_argument("--size", choices=tuple(SIZES), default="135m")
    parser.add_argument("--json", help="file for the rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        writer = multiprocessing.get_context("spawn").Process(
            target=write_arms, args=(Path(folder), options.tokenizer, options.size)
        )
        writer.start()
        writer.join()
        tasks, before = load_tasks([options.task], options.data), peak_mb()
        model, tokenizer, (adapter,), _ = load_arms(f"{folder}/base", [f"{folder}/adapter"], "cpu")
    weights_mb = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    if options.engine == "flagtrl":
        lm = PairedLM(model, tokenizer, options.batch_size)
    else:
        lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=options.batch_size)
    rows = []
    for name in (None, adapter):
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
