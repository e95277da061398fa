"""Control for `flagtrl qa`: plain fine-tuning on a run's own prompts until it is as far from the
base as that run.

    python recipes/train_sft_control.py --like runs/msft --data msft.json --output_dir runs/msft_sft

The same base, the same trainable weights, the prompts of the run's training window with random
legal actions as answers, and the usual next-token loss over prompt and answer. It stops where
KL(base || adapter), over all positions of prompts that it does not train on, is the run's within
--tolerance: the weights of the last two measurements, one below it and one above, are mixed to get
there. What such an adapter changes in financial QA, any training on these prompts does.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flagtrl.cpu import cpu_tuning
from flagtrl.errors import ConfigError
from flagtrl.language.settings import saved_prompts
from flagtrl.language.tokens import PromptEncoder
from flagtrl.market.accounts import Accounts
from flagtrl.market.data import Window
from flagtrl.market.env import MarketSettings
from flagtrl.market.rewards import saved_reward
from flagtrl.market.sources import load
from flagtrl.places import check_output_dir
from flagtrl.play.loop import Uniformly, play
from flagtrl.play.policy import uniform
from flagtrl.policy.adapters import PolicySettings, attach_adapter
from flagtrl.policy.bases import check_base, context_length, device_or_gpu, load_base
from flagtrl.policy.pretrained import same_source
from flagtrl.policy.provenance import check_adapter_config, saved_base
from flagtrl.program import one_line_errors
from flagtrl.qa.arms import arm
from flagtrl.qa.divergence import Prompt, divergence
from flagtrl.qa.paired import PairedLM
from flagtrl.record import RunRecord

NOTE_FILE = "control.json"  # beside the adapter: what it was matched to, and how closely
OWN = "default"  # PEFT's name of the adapter that is trained here
Weights = list[Tensor]


def episode(
    window: Window, market: MarketSettings, encoder: PromptEncoder, seed: int
) -> list[list[int]]:
    """Token ids of the prompts of one random trader, each with its random legal action as its
    answer.
    """
    played = play(uniform, Accounts(window, market), Uniformly(seed))
    return [
        [*encoder.encode(seen).ids.tolist(), *encoder.action_paths[action]]
        for (seen,), (action,) in zip(played.seen, played.actions, strict=True)
    ]


def mean_kl(lm: PairedLM, adapter: str, prompts: list[Prompt]) -> float:
    """KL(base || adapter) per position, nats."""
    measured = divergence(lm, partial(arm, lm.model), adapter, prompts)
    return float(measured.kl.sum() / measured.positions.sum())


def matched(
    lm: PairedLM,
    prompts: list[Prompt],
    target: float,
    tolerance: float,
    below: Weights,
    above: Weights,
) -> float:
    """Set the adapter's weights to below + x (above - below), with x bisected until the KL is the
    target's; return that KL.

    Along the line the KL goes from below the target to above it without a jump, so that such an x
    exists.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        share = (low + high) / 2
        with torch.no_grad():
            for parameter, start, end in zip(trainable(lm), below, above, strict=True):
                parameter.copy_(start + share * (end - start))
        reached = measured(lm, prompts)
        if abs(reached - target) <= tolerance * target:
            return reached
        low, high = (share, high) if reached < target else (low, share)
    raise ConfigError(
        f"KL {reached:g} of {target:g} is as near as weights can be told apart; raise --tolerance "
        f"({tolerance:g})"
    )


def trainable(lm: PairedLM) -> list[Tensor]:
    """The weights that are trained here."""
    return [parameter for parameter in lm.model.parameters() if parameter.requires_grad]


def measured(lm: PairedLM, prompts: list[Prompt]) -> float:
    """KL of the adapter that is trained here, which is on again afterwards."""
    kl = mean_kl(lm, OWN, prompts)
    lm.model.set_adapter(OWN)
    return kl


def train(
    lm: PairedLM,
    sequences: list[list[int]],
    held_out: list[Prompt],
    target: float,
    options: argparse.Namespace,
) -> tuple[float, int]:
    """Steps until the KL passes the target, then back to it; the KL that was reached, and the
    steps.
    """
    optimizer = torch.optim.AdamW(trainable(lm), lr=options.learning_rate)
    generator = np.random.default_rng(options.seed + 1)
    reached = 0.0
    for step in range(1, options.max_steps + 1):
        if (step - 1) % options.measure_every == 0:
            below = [parameter.detach().clone() for parameter in trainable(lm)]
        for place in generator.choice(len(sequences), options.batch_size):
            ids = torch.tensor([sequences[place]], device=lm.device)
            (lm.model(input_ids=ids, labels=ids).loss / options.batch_size).backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % options.measure_every == 0:
            reached = measured(lm, held_out)
            print(f"step {step}: KL {reached:.5f} of {target:.5f}", flush=True)
            if reached >= target:
                above = [parameter.detach().clone() for parameter in trainable(lm)]
                return matched(lm, held_out, target, options.tolerance, below, above), step
    short = f"KL {reached:g} of {target:g} after {options.max_steps} steps"
    raise ConfigError(f"{short}; raise --max_steps or --learning_rate")


def main() -> None:
    """Train to the run's distance and save a plain PEFT adapter."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--like", required=True, help="output directory of the run to match")
    parser.add_argument("--data", required=True, help="the market file that it was trained on")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_steps", type=int, default=2000)
    parser.add_argument(
        "--measure_every", type=int, default=5, help="steps between two measurements of the KL"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.02,
        help="of the KL, as a share of the run's (default: %(default)s)",
    )
    parser.add_argument(
        "--prompts", type=int, default=12, help="held-out prompts that the KL is measured on"
    )
    parser.add_argument(
        "--reward", help="FILE.py:FUNCTION, where the run was trained on a reward of that kind"
    )
    parser.add_argument("--prompt_style", help="the same of its prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", help="cpu, cuda ... (default: a GPU where there is one)")
    options = parser.parse_args()
    if not 0 < options.tolerance < 1:
        raise ConfigError(f"tolerance is {options.tolerance}; it must be above 0 and below 1")
    out, like = check_output_dir(options.output_dir), Path(options.like)
    record = RunRecord.read(like)
    check_adapter_config(like)
    prompts = saved_prompts(record.prompt, options.prompt_style)
    cpu_tuning()
    torch.manual_seed(options.seed)
    name = same_source(saved_base(like), record.base)
    base, tokenizer = load_base(name)
    check_base(base, name, like, record.base)
    base.to(device_or_gpu(options.device))
    encoder = PromptEncoder(tokenizer, prompts, context_length(base))
    model = attach_adapter(base, PolicySettings(**record.policy))
    rules, windows = record.market, record.windows
    market = MarketSettings(**{**rules, "reward": saved_reward(rules["reward"], options.reward)})
    asset = load(options.data, symbol=record.data.symbol)
    training, test = (asset.window(*windows[name][:2]) for name in ("train", "test"))
    unseen = episode(test, market, encoder, options.seed + 1)[: options.prompts]
    held_out = [Prompt(tuple(ids), str(i)) for i, ids in enumerate(unseen)]
    lm = PairedLM(model, tokenizer)
    model.load_adapter(str(like), "like")
    target = mean_kl(lm, "like", held_out)
    if target <= 0:
        raise ConfigError(
            f"{like} is its base on these prompts (KL {target:g}): there is no distance to match"
        )
    model.set_adapter(OWN)
    model.delete_adapter("like")
    reached, steps = train(
        lm, episode(training, market, encoder, options.seed), held_out, target, options
    )
    print(f"KL {reached:.5f} of {target:.5f}, within {options.tolerance:.1%}")
    model.save_pretrained(str(out), save_embedding_layers=False)
    tokenizer.save_pretrained(out)
    note = {
        "control": "sft",
        "like": like.name,
        "kl": reached,
        "kl_of_the_run": target,
        "steps": steps,
        "seed": options.seed,
    }
    (out / NOTE_FILE).write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
    kept = {name: getattr(record, name) for name in ("prompt", "market", "base", "data", "windows")}
    RunRecord.begin(seed=options.seed, **kept).write(out)


if __name__ == "__main__":
    with one_line_errors():
        main()
