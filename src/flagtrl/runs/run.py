"""A run, stage by stage: data, environment, model and adapter, trainer, evaluation, report.

`recipes/train_msft.py` shows the same stages, to copy and change; a test keeps the two equal.
"""

from __future__ import annotations

from flagtrl.hub import Publisher
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.market.env import TradingEnv
from flagtrl.runs.parsing import Arguments, checkpoint_to_resume
from flagtrl.runs.stages import (
    Overwriting,
    after_training,
    begin,
    build_policy,
    claimed_output_dir,
    close,
    judged,
    publish,
    shown,
    validation,
)
from flagtrl.trading import Trading


def run(arguments: Arguments, environment: type[TradingEnv] = TradingEnv) -> None:
    """Train, backtest, report.

    Args:
        arguments: of the run.
        environment: what is trained in; a control changes it.
    """
    begin(arguments)
    with claimed_output_dir(arguments) as clear:
        # data
        market = arguments.data.load(arguments.reading)
        train, test = arguments.data.windows(market)

        # environment
        def make_env() -> TradingEnv:
            return environment(train, arguments.market, arguments.ppo.max_episode_steps)

        # model and adapter
        model, encoder = build_policy(arguments, [train, test])
        # trainer
        valid = validation(arguments, market, encoder)
        trainer = PPOTrainer(
            *(model, arguments.ppo),
            task=Trading(make_env, encoder),
            engine=arguments.engine,
            record=arguments.record(market, train=train, test=test),
            validate=valid,
            publisher=Publisher.of(arguments.ppo),
        )
        shown(trainer, valid)
        trainer.add_callback(Overwriting(clear))  # once training begins, not before
        trainer.train(resume_from_checkpoint=checkpoint_to_resume(arguments.ppo))
        after_training(trainer)
        # evaluation, on the test window and in sample; and report
        report = judged(trainer, arguments, test, train)
        if report is not None:
            publish(trainer, report)
        close(trainer)
