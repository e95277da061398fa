"""PPO on a language model that trades, the whole algorithm in one file, from rollout to step.

`PPOTrainer` does this, with a faster engine, on any number of processes, and can be resumed;
tests/test_examples.py holds both to the same weights. Run it: a tiny random Llama, a market whose
news leads its price, a minute on one core.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from flagtrl import demo
from flagtrl.language.tokens import EncodedPrompt, PromptEncoder
from flagtrl.learning.advantages import generalised_advantages, whiten
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.losses import Targets, ppo_loss
from flagtrl.learning.rollout import Rollout
from flagtrl.learning.start import prepare_policy
from flagtrl.market.env import TradingEnv
from flagtrl.market.play import play
from flagtrl.market.vector import VectorTradingEnv
from flagtrl.policy.acting import reading
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.batch import ActorCriticOutput, PromptBatch


def rollout_targets(rollout: Rollout, config: PPOConfig) -> Targets:
    """What the sampled actions were worth, by the critic: T * B samples."""
    advantages = generalised_advantages(
        *(rollout.rewards, rollout.values, rollout.next_values),
        *(rollout.terminated, rollout.ended, config.gamma, config.gae_lambda),
    )
    returns = (advantages + rollout.values).flatten()
    whitened = whiten(advantages.flatten(), advantages.flatten())
    taken = functional.one_hot(rollout.actions.flatten(), rollout.legal.shape[-1]).float()
    return Targets(taken * whitened[:, None], taken, returns, torch.ones_like(returns))


def train(
    model: ActorCritic,
    encoder: PromptEncoder,
    make_env: Callable[[], TradingEnv],
    config: PPOConfig,
    say: Callable[[str], None] = print,
) -> None:
    """The training loop; of PPOTrainer's settings it reads those that define the algorithm."""

    def ask(
        prompts: list[EncodedPrompt], legal: np.ndarray, reference: bool = False
    ) -> ActorCriticOutput:
        """(B, A) log pi over the actions' own tokens, and (B,) V, of B prompts."""
        return model(**PromptBatch.of(prompts, legal).inputs(), reference=reference)

    def sample(logprobs: np.ndarray) -> np.ndarray:
        chances = torch.from_numpy(logprobs).exp()
        return torch.multinomial(chances, 1, generator=generator).squeeze(1).numpy()

    def loss_of(rows: Tensor) -> Tensor:
        output = ask([rollout.prompts[row] for row in rows.tolist()], legal[rows].numpy())
        then, chosen = (type(parts)(*(p[rows] for p in parts)) for parts in (old, targets))
        return ppo_loss(output, then, reference[rows], chosen, config)[0].mean()

    envs = VectorTradingEnv([make_env() for _ in range(config.num_envs)])
    envs.reset(seed=config.seed)  # environment b from seed + b
    generator = torch.Generator().manual_seed(config.seed)
    model.eval()  # no dropout: the first ratio is 1
    prepare_policy(model, model, make_env(), encoder, torch.device("cpu"), say)
    betas = config.adam_beta1, config.adam_beta2
    groups = model.parameter_groups(
        config.learning_rate, config.head_learning_rate, config.weight_decay
    )
    optimizer = torch.optim.AdamW(groups, betas=betas, eps=config.adam_epsilon)
    schedule = get_linear_schedule_with_warmup(
        optimizer, config.warmup_steps, config.optimizer_steps
    )
    for number in range(config.num_rollouts):
        with torch.no_grad():
            played = play(reading(encoder, ask), envs, sample, config.num_steps, predict_ends=True)
            rollout = Rollout.of(played)
            legal = rollout.legal.flatten(0, 1)
            old = ActorCriticOutput(rollout.logprobs.flatten(0, 1), rollout.values.flatten())
            reference = ask(rollout.prompts, legal.numpy(), reference=True).logprobs
        targets = rollout_targets(rollout, config)
        say(f"rollout {number + 1} of {config.num_rollouts}: reward {rollout.rewards.mean():+.5f}")
        shuffle = np.random.default_rng([config.seed, number, 0])
        for _ in range(config.update_epochs):
            order = shuffle.permutation(len(rollout))
            for minibatch in np.array_split(order, config.num_minibatches):
                loss_of(torch.from_numpy(minibatch)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def main() -> None:
    """The synthetic demo's market and model, with fewer steps."""
    torch.manual_seed(0)
    market, window, _ = demo.demo_market(seed=0)
    tokenizer = demo.demo_tokenizer(market)
    encoder = PromptEncoder(tokenizer, demo.PROMPT, max_length=512)
    adapted = attach_adapter(demo.demo_language_model(tokenizer), demo.POLICY)
    model = ActorCritic(adapted, encoder.action_paths, demo.POLICY)
    named = {"output_dir": "runs/loop", "total_timesteps": 1_280, "use_cpu": True}
    config = PPOConfig(**{**demo.PPO, **named})
    train(model, encoder, lambda: TradingEnv(window, demo.MARKET, config.max_episode_steps), config)


if __name__ == "__main__":
    main()
