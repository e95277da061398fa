"""PPO on a language model that trades, the whole algorithm in one file, from rollout to step.

`PPOTrainer` does this, with a faster engine, on any number of processes, and can be resumed;
tests/test_examples.py holds both to the same weights. Run it: a tiny random Llama, a market whose
news leads its price, a minute on one core.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from flagtrl import demo
from flagtrl.language.tokens import PromptEncoder
from flagtrl.learning.advantages import generalised_advantages, whiten
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.losses import Targets, ppo_loss
from flagtrl.learning.rollout import Rollout
from flagtrl.learning.start import prepare_policy
from flagtrl.market.env import TradingEnv
from flagtrl.play.loop import Environments, play
from flagtrl.policy.acting import reading
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.batch import ActorCriticOutput, PromptBatch
from flagtrl.trading import Trading


def ask(model: ActorCritic, prompts, legal: np.ndarray, reference=False) -> ActorCriticOutput:
    """(B, A) log pi over the actions' own tokens, and (B,) V, of B prompts."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and not reference):
        return model(**PromptBatch.of(prompts, legal).inputs(), reference=reference)


@torch.no_grad()
def rollout(model, encoder: PromptEncoder, envs: Environments, steps: int, generator):
    """T * B prompts, their legal actions (T * B, A), and what happened in T steps (T, B, ...)."""

    def sample(logprobs: np.ndarray) -> np.ndarray:
        chances = torch.from_numpy(logprobs).exp()
        return torch.multinomial(chances, 1, generator=generator).squeeze(1).numpy()

    policy = reading(encoder, partial(ask, model))
    happened = Rollout.of(play(policy, envs, sample, steps, predict_ends=True))
    return happened.prompts, happened.legal.flatten(0, 1).numpy(), happened


def estimate(happened: Rollout, config: PPOConfig) -> tuple[ActorCriticOutput, Targets]:
    """Of T * B samples, the outputs of the policy that acted, and GAE's whitened advantages."""
    advantages = generalised_advantages(
        *(happened.rewards, happened.values, happened.next_values),
        *(happened.terminated, happened.ended, config.gamma, config.gae_lambda),
    )
    returns = (advantages + happened.values).flatten()
    advantages = whiten(advantages.flatten(), advantages.flatten())
    taken = functional.one_hot(happened.actions.flatten(), happened.legal.shape[-1]).float()
    targets = Targets(taken * advantages[:, None], taken, returns, torch.ones_like(returns))
    return ActorCriticOutput(happened.logprobs.flatten(0, 1), happened.values.flatten()), targets


def minibatches(samples: int, rollout: int, config: PPOConfig):
    """The rows of each minibatch, in an order of their own in every epoch."""
    shuffle = np.random.default_rng([config.seed, rollout, 0])
    for _ in range(config.update_epochs):
        yield from np.array_split(shuffle.permutation(samples), config.num_minibatches)


def those(record, rows: np.ndarray):
    """The rows of a record of tensors (N, ...)."""
    return type(record)(*(part[rows] for part in record if part is not None))


def train(model, task, config: PPOConfig, say=print) -> None:
    """The training loop; of PPOTrainer's settings it reads those that define the algorithm."""
    envs = task.environments(config.num_envs)
    envs.reset(seed=config.seed)  # environment b with seed + b
    generator = torch.Generator().manual_seed(config.seed)
    model.eval()  # no dropout: the first ratio is 1
    prepare_policy(model, model, task, torch.device("cpu"), say)
    rates = (config.learning_rate, config.head_learning_rate, config.weight_decay)
    groups, betas = model.parameter_groups(*rates), (config.adam_beta1, config.adam_beta2)
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=config.adam_epsilon)
    steps = config.warmup_steps, config.optimizer_steps
    schedule = get_linear_schedule_with_warmup(optimizer, *steps)
    for number in range(config.num_rollouts):
        prompts, legal, happened = rollout(model, task.encoder, envs, config.num_steps, generator)
        old, targets = estimate(happened, config)
        reference = ask(model, prompts, legal, reference=True).logprobs  # the adapter off
        say(f"rollout {number + 1}: mean return {targets.returns.mean():+.5f}")
        for rows in minibatches(len(prompts), number, config):
            output = ask(model, [prompts[row] for row in rows], legal[rows])
            past = those(old, rows), reference[rows], those(targets, rows)
            loss, _ = ppo_loss(output, *past, config)
            loss.mean().backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()


def main() -> None:
    """The synthetic demo's market and model, with fewer steps."""
    torch.set_num_threads(1)  # for a model this small more threads only wait for one another
    torch.manual_seed(0)
    market, window, _ = demo.demo_market(seed=0)
    tokenizer = demo.demo_tokenizer(market)
    encoder = PromptEncoder(tokenizer, demo.PROMPT, max_length=512)
    task = Trading(lambda: TradingEnv(window, demo.MARKET, max_episode_steps=65), encoder)
    adapted = attach_adapter(demo.demo_language_model(tokenizer), demo.POLICY)
    model = ActorCritic(adapted, encoder.action_paths, demo.POLICY)
    sampled = {"advantage": "gae", "gamma": 0.5, "num_envs": 8, "total_timesteps": 1_280}
    config = PPOConfig(**{**demo.PPO, **sampled}, output_dir="runs/loop", use_cpu=True)
    train(model, task, config)


if __name__ == "__main__":
    main()
