"""PPO on a language model that trades, the whole algorithm in one file, from rollout to step.

`PPOTrainer` does this, with a faster engine, on any number of processes, and can be resumed;
tests/test_examples.py holds both to the same weights. Run it: a tiny random Llama, a market whose
news leads its price, a minute on one core.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import get_linear_schedule_with_warmup

from flagtrl.demo import (
    MARKET,
    POLICY,
    PPO,
    PROMPT,
    demo_language_model,
    demo_market,
    demo_tokenizer,
)
from flagtrl.language.tokens import EncodedPrompt, PromptEncoder
from flagtrl.learning.advantages import generalised_advantages, whiten
from flagtrl.learning.config import PPOConfig
from flagtrl.learning.losses import Targets, ppo_loss
from flagtrl.learning.start import prepare_policy
from flagtrl.market.env import TradingEnv
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.adapters import attach_adapter
from flagtrl.policy.batch import PolicyOutput, PromptBatch


def ask(
    model: ActorCritic, prompts: list[EncodedPrompt], legal: np.ndarray, reference: bool = False
) -> PolicyOutput:
    """(B, A) log pi over the actions' own tokens, and (B,) V, of B prompts."""
    return model(**PromptBatch.of(prompts, legal).inputs(), reference=reference)


@torch.no_grad()
def rollout(
    model: ActorCritic,
    encoder: PromptEncoder,
    envs: list[TradingEnv],
    steps: int,
    generator: torch.Generator,
):
    """`steps` steps of every environment: T * B prompts, and columns (T, B, ...) of what
    happened.
    """

    def seen() -> tuple[list[EncodedPrompt], np.ndarray]:
        return [encoder.encode(env.observe()) for env in envs], np.stack(
            [env.legal for env in envs]
        )

    prompts, rows = [], []
    for _ in range(steps):
        now, legal = seen()
        output = ask(model, now, legal)
        actions = torch.multinomial(output.logprobs.exp(), 1, generator=generator).squeeze(1)
        outcomes = [env.step(int(action)) for env, action in zip(envs, actions, strict=True)]
        reward, terminated, truncated = (
            torch.tensor([outcome[i] for outcome in outcomes]) for i in (1, 2, 3)
        )
        # of the state a step led to, before any reset; ruin is worth nothing
        after = ask(model, *seen()).values * ~terminated
        for env in envs:
            if env.ended:
                env.reset()
        prompts += now
        rows.append(
            (
                torch.from_numpy(legal),
                actions,
                *output,
                reward.float(),
                after,
                terminated,
                terminated | truncated,
            )
        )
    return prompts, [torch.stack(column) for column in zip(*rows, strict=True)]


def train(
    model: ActorCritic, encoder: PromptEncoder, make_env, config: PPOConfig, say=print
) -> None:
    """The training loop; of PPOTrainer's settings it reads those that define the algorithm."""
    envs = [make_env() for _ in range(config.num_envs)]
    for number, env in enumerate(envs):
        env.reset(seed=config.seed + number)
    generator = torch.Generator().manual_seed(config.seed)
    model.eval()  # no dropout: the first ratio is 1
    prepare_policy(model, model, make_env(), encoder, torch.device("cpu"), say)
    groups = model.parameter_groups(
        config.learning_rate, config.head_learning_rate, config.weight_decay
    )
    optimizer = torch.optim.AdamW(
        groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon
    )
    schedule = get_linear_schedule_with_warmup(
        optimizer, config.warmup_steps, config.optimizer_steps
    )
    for number in range(config.num_rollouts):
        prompts, columns = rollout(model, encoder, envs, config.num_steps, generator)
        legal, actions, logprobs, values, rewards, next_values, terminated, ended = columns
        advantages = generalised_advantages(
            rewards, values, next_values, terminated, ended, config.gamma, config.gae_lambda
        )
        returns, advantages = (
            (advantages + values).flatten(),
            whiten(advantages.flatten(), advantages.flatten()),
        )
        taken = functional.one_hot(actions.flatten(), legal.shape[-1]).float()
        targets = Targets(taken * advantages[:, None], taken, returns, torch.ones_like(returns))
        old, legal = PolicyOutput(logprobs.flatten(0, 1), values.flatten()), legal.flatten(0, 1)
        with torch.no_grad():
            reference = ask(model, prompts, legal.numpy(), reference=True).logprobs
        say(f"rollout {number + 1} of {config.num_rollouts}: mean reward {rewards.mean():+.5f}")

        def loss_of(
            rows: Tensor,
            old=old,
            reference=reference,
            targets=targets,
            prompts=prompts,
            legal=legal,
        ) -> Tensor:
            output = ask(model, [prompts[row] for row in rows.tolist()], legal[rows].numpy())
            chosen = Targets(*(part[rows] for part in targets))
            return ppo_loss(
                output, PolicyOutput(*(part[rows] for part in old)), reference[rows], chosen, config
            )[0].mean()

        shuffle = np.random.default_rng([config.seed, number, 0])
        for _ in range(config.update_epochs):
            for minibatch in np.array_split(
                shuffle.permutation(len(prompts)), config.num_minibatches
            ):
                loss_of(torch.from_numpy(minibatch)).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()


def main() -> None:
    """The synthetic demo's market and model, with fewer steps."""
    torch.manual_seed(0)
    market, window, _ = demo_market(seed=0)
    tokenizer = demo_tokenizer(market)
    encoder = PromptEncoder(tokenizer, PROMPT, max_length=512)
    model = ActorCritic(
        attach_adapter(demo_language_model(tokenizer), POLICY), encoder.action_paths, POLICY
    )
    config = PPOConfig(
        **{**PPO, "output_dir": "runs/loop", "total_timesteps": 1_280, "use_cpu": True}
    )
    train(model, encoder, lambda: TradingEnv(window, MARKET, config.max_episode_steps), config)


if __name__ == "__main__":
    main()
