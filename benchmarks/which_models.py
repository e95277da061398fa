"""Which architectures of transformers a policy can be trained on, and by which engine: tiny models
of each, in both ways of fine-tuning.

    python benchmarks/which_models.py --json docs/architectures.json [--only NAME ...]

Each is made with random weights, adapted, run by both engines on the same prompts, compared, and
learns for one step; in training, too, it must answer as it acted. One process each.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import warnings
from collections.abc import Sequence
from typing import Any

from flagtrl.errors import kind_and_words

SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "n_embd": 32,
    "d_model": 32,
    "ffn_hidden_size": 48,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "shared_expert_intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_hidden_layers": 4,
    "num_layers": 4,
    "n_layer": 4,
    "n_layers": 4,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "word_embed_proj_dim": 32,
    "max_position_embeddings": 256,
    "n_positions": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# What a configuration needs beside, to be tiny and consistent.
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v2": {
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
        **{"v_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4},
    },
    "deepseek_v3": {
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
        **{"v_head_dim": 8, "first_k_dense_replace": 1, "num_key_value_heads": 4},
        **{"n_group": 2, "topk_group": 1},
    },
    "gemma3n_text": {
        **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 96},
        **{"num_kv_shared_layers": 1, "laurel_rank": 4},
        **{"activation_sparsity_pattern": [0.0] * 4, "intermediate_size": [48] * 4},
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "falcon_h1": {
        **{"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8},
        **{"mamba_n_groups": 1, "mamba_chunk_size": 16},
    },
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1},
    "mamba": {"state_size": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "num_heads": 4},
    "codegen": {"rotary_dim": 4},
    "gptj": {"rotary_dim": 4},
    "glm4_moe": {"first_k_dense_replace": 1, "n_group": 1, "topk_group": 1},
}
# Text decoders, and their likes, that people take for language models.
NAMES = (
    "arcee",
    "apertus",
    "bamba",
    "bitnet",
    "bloom",
    "codegen",
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "dots1",
    "ernie4_5",
    "exaone4",
    "falcon",
    "falcon_h1",
    "falcon_mamba",
    "flex_olmo",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3n_text",
    "glm",
    "glm4",
    "glm4_moe",
    "gpt2",
    "gpt_bigcode",
    "gpt_neo",
    "gpt_neox",
    "gpt_oss",
    "gptj",
    "granite",
    "granitemoe",
    "helium",
    "hunyuan_v1_dense",
    "jamba",
    "lfm2",
    "llama",
    "mamba",
    "mamba2",
    "minimax",
    "ministral",
    "mistral",
    "mixtral",
    "mpt",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "opt",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
    "vaultgemma",
    "xglm",
    "zamba2",
)
FINETUNINGS = ("full_top", "lora")
PATIENCE_S = 120


def main() -> None:
    """Try each, print a line each, and write them all."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", default=None, metavar="FILE", help="write the rows there")
    parser.add_argument("--only", nargs="+", default=NAMES, metavar="NAME", help="of transformers")
    options = parser.parse_args()
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=8) as pool:
        for name in options.only:
            row = {"architecture": name}
            for finetuning in FINETUNINGS:
                try:
                    row |= pool.apply_async(tried, (name, finetuning)).get(PATIENCE_S)
                except multiprocessing.TimeoutError:
                    row[finetuning] = f"crash: no answer in {PATIENCE_S} s"
            rows.append(row)
            print(row, flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
            file.write("\n")


def tried(name: str, finetuning: str) -> dict[str, str]:
    """What becomes of one architecture, as `split`, `plain: WHY`, `refused: WHY` or `crash: WHY`.

    `not made` where transformers makes no tiny model of it, or has none.
    """
    import torch

    from flagtrl.errors import FlagtrlError

    logging.disable(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    try:
        model = made(name)
    except Exception as error:
        return {finetuning: f"not made: {kind_and_words(error)}"[:200]}
    try:
        return {finetuning: learns(model, finetuning)}
    except FlagtrlError as error:
        return {finetuning: f"refused: {error}"[:300]}
    except Exception as error:
        return {finetuning: f"crash: {kind_and_words(error)}"[:300]}


def made(name: str) -> Any:
    """A tiny model of an architecture."""
    import inspect

    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    kind = CONFIG_MAPPING[name]
    known = set(inspect.signature(kind.__init__).parameters) | set(kind.attribute_map)
    known |= set(getattr(kind, "__annotations__", {}))
    shape = {key: value for key, value in SHAPE.items() if key in known}
    for alias, field in kind.attribute_map.items():  # one of two names of one thing
        if field in shape:
            shape.pop(alias, None)
    config = kind(**{**shape, **OWN.get(name, {})})
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager")


def learns(model: Any, finetuning: str) -> str:
    """The engine that is chosen, after a step of learning on it."""
    import numpy as np
    import torch

    from flagtrl.language.prompt import EncodedPrompt
    from flagtrl.policy.actor_critic import ActorCritic
    from flagtrl.policy.adapters import attach_adapter
    from flagtrl.policy.dropouts import check_repeats, switch_off_dropout
    from flagtrl.policy.engine import choose_engine
    from flagtrl.policy.settings import PolicySettings
    from flagtrl.policy.trunk_settings import TrunkSettings

    switch_off_dropout(model)
    check_repeats(model)
    settings = PolicySettings(finetuning=finetuning, trainable_layers=2, head_width=8)
    policy = ActorCritic(attach_adapter(model, settings), ((20, 21), (22,), (23,)), settings)
    generator = np.random.default_rng(0)
    shared = generator.integers(3, 90, 9)
    prompts: Sequence[EncodedPrompt] = [
        EncodedPrompt(np.concatenate([shared, generator.integers(3, 90, n)]).astype(np.int64), 9)
        for n in (3, 5, 4)
    ]
    legal = np.array([[False, True, True], [True, True, False], [False, True, True]])
    said: list[str] = []
    logger = logging.getLogger("flagtrl.policy.engine")
    logging.disable(logging.NOTSET)
    logger.addFilter(lambda record: not said.append(record.getMessage()))  # type: ignore[func-returns-value]
    logger.propagate = False
    logger.addHandler(logging.NullHandler())
    engine = choose_engine(policy, "auto", TrunkSettings(), (prompts, legal))
    with torch.no_grad():
        before = policy(**policy.inputs(prompts, legal)).logprobs
    policy.train()
    output = policy(**policy.inputs(prompts, legal))
    chosen = output.logprobs[torch.from_numpy(legal)]
    ratio = (chosen - before[torch.from_numpy(legal)]).exp()
    if (ratio - 1).abs().max() > 1e-3:
        raise ValueError(f"the first ratio is {ratio.flatten().tolist()}")
    (-chosen.mean() + output.values.square().mean()).backward()
    learnt = [p for n, p in policy.language_model.named_parameters() if p.grad is not None]
    if not any(float(p.grad.abs().sum()) > 0 for p in learnt if p.grad is not None):
        raise ValueError("no gradient reaches the language model")
    return (
        engine
        if engine == "split"
        else f"plain: {said[-1].partition(': ')[2].partition('; training')[0]}"
    )


if __name__ == "__main__":
    main()
