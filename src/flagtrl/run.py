"""A recipe's run: train FLAG-Trader's policy on an asset, trade the test window with it, report.
`train.py` starts it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flagtrl.cpu import cpu_tuning
from flagtrl.hub import Publisher
from flagtrl.learning.progress import show_progress_lines
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import TradingEnv
from flagtrl.recipe import (
    Arguments,
    build_policy,
    checkpoint_to_resume,
    claimed_output_dir,
    close,
    parse_arguments,
    training_and_test_windows,
    validation,
)
from flagtrl.runs.judging import judge
from flagtrl.runs.recipes import RECIPES
from flagtrl.runs.tracking import Tracking


def run(recipe: str, args: Sequence[str], environment: type[TradingEnv] = TradingEnv) -> None:
    """Train, backtest, report.

    Args:
        recipe: an entry of RECIPES.
        args: of the command line.
        environment: what is trained in; a control changes it.
    """
    cpu_tuning()
    arguments = parse_arguments(RECIPES[recipe], args, recipe)
    if arguments.ppo.process_index == 0:
        print(arguments.announcement(), flush=True)
    with claimed_output_dir(arguments) as clear:
        _run(arguments, clear, environment)


def _run(arguments: Arguments, clear: Callable[[], None], environment: type[TradingEnv]) -> None:
    market = arguments.data.load()
    train, test = training_and_test_windows(arguments, market)

    def make_env() -> TradingEnv:
        return environment(train, arguments.market, arguments.ppo.max_episode_steps)

    model, encoder = build_policy(arguments, [train, test])
    valid = validation(arguments, market, encoder)
    publisher = Publisher.of(arguments.ppo)
    trainer = PPOTrainer(
        model,
        arguments.ppo,
        make_env,
        encoder,
        record=arguments.record(market, train=train, test=test),
        validate=valid,
        publisher=publisher,
    )
    trainer.add_callback(Tracking(trainer, valid))
    show_progress_lines(trainer)
    clear()  # only now: what could be refused has been read
    trainer.train(resume_from_checkpoint=checkpoint_to_resume(arguments.ppo))
    trainer.save_model()
    trainer.save_state()  # the learning curve: trainer_state.json
    # a sharded model runs in all processes or in none
    if trainer.sharded or trainer.is_world_process_zero():
        report = judge(
            trainer.accelerator.unwrap_model(trainer.model),
            encoder,
            test,
            arguments.market,
            train=train,
            seed=arguments.ppo.seed,
            volatility_periods=arguments.data.volatility_periods,
            sampled_paths=arguments.data.sampled_paths,
            say=trainer.say,
        )
        if trainer.is_world_process_zero():
            report.write(str(arguments.ppo.output_dir), trainer.record, **trainer.watch.told())
            report.print()
            if publisher is not None:
                print(f"pushed: {trainer.push_to_hub()}")
    close(trainer)
