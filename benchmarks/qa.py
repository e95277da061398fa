"""Seconds and memory of one run with base and one adapter: 200 classification items with one-token
labels, both arms.

`flagtrl` runs the frozen layers once for both arms, as `flagtrl qa` does; `apart` runs each arm by
itself, with logits only where they are read; `lm_eval` is lm-eval's own model class. SmolLM2-135M's
shape with random weights, or a base of yours; real tweets; a LoRA adapter on the two top layers.
Base and adapter are written to disk by a process of their own and loaded as `flagtrl qa` loads
them; engines take turns; peak memory is the process's so far, above what it held before the model
came.

    python benchmarks/qa.py --data FOLDER --tokenizer DIR --threads 1 --json docs/qa_speed.json
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from lm_eval.models.huggingface import HFLM
from measure import peak_memory_mb
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from flagtrl.cpu import cpu_tuning
from flagtrl.qa.arms import arm, load_arms
from flagtrl.qa.evaluate import load_tasks, run_arm
from flagtrl.qa.paired import PairedLM

ENGINES = ("flagtrl", "apart", "lm_eval")
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
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}


def write_arms(directory: Path, tokenizer: str, size: str, known: str | None) -> None:
    """A base (a known one, or a shape of SIZES with random weights), and a LoRA adapter on its two
    top layers.
    """
    torch.manual_seed(0)
    base = (
        AutoModelForCausalLM.from_pretrained(known, dtype=torch.float32)
        if known
        else random_model(size)
    )
    base.save_pretrained(directory / "base")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(directory / "base")
    top = [base.config.num_hidden_layers - 2, base.config.num_hidden_layers - 1]
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    adapted = get_peft_model(
        base, LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=names, layers_to_transform=top)
    )
    for name, parameter in adapted.named_parameters():
        # one of zeros changes nothing, and its layer would be taken for a frozen one
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(directory / "adapter")


def random_model(size: str) -> LlamaForCausalLM:
    """A shape of SIZES with random weights."""
    config = LlamaConfig(
        **SIZES[size],
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=8192,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def run_both(engine: str, lm: HFLM, adapter: str, tasks: dict, items: int) -> list[dict]:
    """Both arms' samples."""
    together = (
        lm.together([adapter])
        if engine == "flagtrl"
        else nullcontext(lambda name: arm(lm.model, name))
    )
    results = []
    with together as switch:
        for name in (None, adapter):
            with switch(name):
                results.append(run_arm(lm, tasks, items))
    return results


def main() -> None:
    """Measure and print; one JSON row an engine, of its quickest turn."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder of prepared data")
    parser.add_argument("--tokenizer", required=True, help="directory of SmolLM2's tokenizer")
    parser.add_argument("--base", help="directory of a base of yours (default: random weights)")
    parser.add_argument("--task", default="twitter_fin")
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--size", choices=tuple(SIZES), default="135m")
    parser.add_argument("--json", help="file for the rows")
    options = parser.parse_args()
    cpu_tuning()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        writer = multiprocessing.get_context("spawn").Process(
            target=write_arms, args=(Path(folder), options.tokenizer, options.size, options.base)
        )
        writer.start()
        writer.join()
        tasks, before = load_tasks([options.task], options.data), peak_memory_mb("cpu")
        model, tokenizer, (adapter,), _ = load_arms(f"{folder}/base", [f"{folder}/adapter"], "cpu")
    weights_mb = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    ours = PairedLM(model, tokenizer, options.batch_size)
    theirs = HFLM(
        pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=options.batch_size
    )
    rows: dict[str, dict] = {}
    for turn in range(options.turns):
        for engine in options.engines:
            start, cpu = time.perf_counter(), time.process_time()
            run_both(engine, theirs if engine == "lm_eval" else ours, adapter, tasks, options.items)
            row = {
                "engine": engine,
                "arms": "base and adapter",
                "base": "random" if options.base is None else Path(options.base).name,
                "items": options.items,
                "seconds": round(time.perf_counter() - start, 1),
                "cpu_seconds": round(time.process_time() - cpu, 1),
                "weights_mb": round(weights_mb),
                "peak_above_start_mb": round(peak_memory_mb("cpu") - before, 1),
                "threads": options.threads,
            }
            print(turn, row, flush=True)
            if engine not in rows or row["cpu_seconds"] < rows[engine]["cpu_seconds"]:
                rows[engine] = row | {
                    "peak_above_start_mb": rows.get(engine, row)["peak_above_start_mb"]
                }
    if options.json:
        Path(options.json).write_text(
            json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
