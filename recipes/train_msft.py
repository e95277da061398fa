"""Train FLAG-Trader's policy on Microsoft and trade the paper's test window with it.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/train_msft.py

With no options: SmolLM2-135M-Instruct, InvestorBench's MSFT and the paper's settings, both downloaded. Every field of
DataArguments, PPOConfig, MarketSettings, PromptSettings and PolicySettings is an option (--help), or a key of a YAML
file (--config FILE). The published buy-and-hold row ends on 2021-05-05, one day before the window that the paper
states: so does this recipe.
"""

from flagtrl.errors import one_line_errors
from flagtrl.evidence.backtest import language_policy
from flagtrl.evidence.report import evaluate
from flagtrl.learning.progress import show_progress_lines
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import TradingEnv
from flagtrl.recipe import build_policy, check_output_dir, checkpoint_to_resume, close, parse_arguments


def main(**defaults: object) -> None:
    """Train, backtest, report; `defaults` are what another asset's recipe changes."""
    arguments = parse_arguments(defaults)
    out = check_output_dir(arguments.ppo.output_dir)
    market = arguments.data.load()
    train = market.window(arguments.data.train_start, arguments.data.train_end)
    test = market.window(arguments.data.test_start, arguments.data.test_end)
    facts = arguments.facts(market, train, test)

    def make_env() -> TradingEnv:
        return TradingEnv(train, arguments.market, arguments.ppo.max_episode_steps)

    model, encoder = build_policy(arguments, [TradingEnv(window, arguments.market) for window in (train, test)])
    trainer = PPOTrainer(model, arguments.ppo, make_env, encoder, extra=arguments.saved(facts))
    show_progress_lines(trainer)
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(arguments.ppo))
    trainer.save_model()
    if trainer.is_world_process_zero():
        policy = language_policy(trainer.accelerator.unwrap_model(trainer.model), encoder)
        report = evaluate(policy, test, arguments.market, arguments.ppo.seed, arguments.data.volatility_periods)
        report.write(out, **facts)
        report.print()
    close(trainer)


if __name__ == "__main__":
    with one_line_errors():
        main()
