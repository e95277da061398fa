"""What does a policy over many actions cost? A prompt of 500 tokens with 200 actions of several
tokens, against the same with Buy, Sell and Hold, on the split engine.

    python benchmarks/actions.py  # about 3 minutes on 2 cores

`cold`: a prompt that was never seen, nothing of it kept. `warm`: its trunk states are kept, so only
the trained layers run, and the head. `update`: forward and backward of a warm one. Random weights
of SmolLM2-135M's shape, its real tokenizer. CPU seconds, medians of turns that alternate.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from measure import Case, make_policy, shared_folder

from flagtrl.cpu import cpu_tuning
from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.trie import trie_of

PROMPT, SHARED = 500, 400  # tokens, and how many of them a bar's visits share
PHASES = ("cold", "warm", "update")
VERBS = (
    *("go to", "open", "close", "take", "look at", "put down", "ask about", "pick up", "unlock"),
    *("push", "pull", "move", "break", "clean", "read", "show", "throw", "hide", "turn on", "buy"),
)
THINGS = (
    *("it", "the door", "the wooden door", "the key", "the iron key", "a lantern"),
    *("the map of the old town", "north", "the garden gate", "the old chest"),
)


def many_actions(encode: Callable[[str], list[int]]) -> tuple[tuple[int, ...], ...]:
    """200 of them, as text games have."""
    return tuple(tuple(encode(f"{verb} {thing}")) for verb in VERBS for thing in THINGS)


def turn(model: ActorCritic, prompt: EncodedPrompt) -> dict[str, float]:
    """CPU seconds of each phase, for a prompt that is new."""
    legal, spent = np.ones((1, len(model.action_paths)), dtype=bool), {}
    for phase in PHASES:
        began = time.process_time()
        with torch.set_grad_enabled(phase == "update"):
            output = model(**model.inputs([prompt], legal))
            if phase == "update":
                (output.logprobs[:, 0].sum() + output.values.sum()).backward()
        spent[phase] = time.process_time() - began
        model.zero_grad()
    return spent


def measured(turns: int) -> dict[str, object]:
    """What is printed, and kept as JSON."""
    few, encoder = make_policy(Case("split", "compact"), shared_folder())
    paths = many_actions(
        lambda text: encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    )
    many = ActorCritic(few.language_model, paths, few.settings)
    policies = {"few": few.eval(), "many": many.eval()}
    for model in policies.values():
        model.use_split()
    generator = np.random.default_rng(0)
    seconds: dict[str, dict[str, list[float]]] = {
        name: {phase: [] for phase in PHASES} for name in policies
    }
    for number in range(turns + 1):
        ids = generator.integers(100, 49_000, PROMPT)
        for name in sorted(policies, reverse=number % 2 == 1):
            spent = turn(policies[name], EncodedPrompt(ids, SHARED))
            if number:  # the first one lays out weights
                for phase in PHASES:
                    seconds[name][phase].append(spent[phase])
    medians = {name: {p: median(of[p]) for p in PHASES} for name, of in seconds.items()}
    return {
        "actions": len(paths),
        "inner_nodes": len(trie_of(paths).nodes),
        "chains": len(trie_of(paths).chains),
        "action_tokens": [min(map(len, paths)), max(map(len, paths))],
        "prompt_tokens": PROMPT,
        "threads": torch.get_num_threads(),
        "turns": turns,
        "cpu_seconds": medians,
        "ratio": {p: medians["many"][p] / medians["few"][p] for p in PHASES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the record here")
    parser.add_argument("--turns", type=int, default=9, help="new prompts, asked of both")
    args = parser.parse_args()
    cpu_tuning()
    record = measured(args.turns)
    print(json.dumps(record, indent=1))
    for phase, ratio in record["ratio"].items():  # type: ignore[attr-defined]
        print(f"{phase}: {record['actions']} actions cost {ratio:.2f} times what 3 do")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
