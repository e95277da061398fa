"""Train FLAG-Trader's policy on Microsoft and trade the paper's test window: stages to copy.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/train_msft.py

Another asset: `--config recipes/btc.yaml`. Every setting is an option (--help) or a key there. As
it is: real SmolLM2-135M-Instruct, 5 minutes on 2 CPU cores, in sample +56%, else within chance.
"""

import sys

from flagtrl.program import one_line_errors
from flagtrl.runs.arguments import check_run
from flagtrl.runs.recipes import RECIPES


def main() -> None:
    """Data, environment, model and adapter, trainer, evaluation, report."""
    check_run(sys.argv[1:], "msft")  # a mistyped option ends here, before torch is imported
    from flagtrl.hub import Publisher
    from flagtrl.learning.trainer import PPOTrainer
    from flagtrl.market.env import TradingEnv
    from flagtrl.runs import parsing, stages

    arguments = parsing.parse_arguments(RECIPES["msft"], recipe="msft")
    stages.begin(arguments)
    with stages.claimed_output_dir(arguments) as clear:
        # data
        market = arguments.data.load(arguments.reading)
        train, test = arguments.data.windows(market)

        # environment
        def make_env() -> TradingEnv:
            return TradingEnv(train, arguments.market, arguments.ppo.max_episode_steps)

        # model and adapter
        model, encoder = stages.build_policy(arguments, [train, test])
        # trainer
        valid = stages.validation(arguments, market, encoder)
        trainer = PPOTrainer(
            *(model, arguments.ppo),
            task=stages.Trading(make_env, encoder),
            engine=arguments.engine,
            record=arguments.record(market, train=train, test=test),
            validate=valid,
            publisher=Publisher.of(arguments.ppo),
        )
        stages.shown(trainer, valid)
        trainer.add_callback(stages.Overwriting(clear))  # once training begins, not before
        trainer.train(resume_from_checkpoint=parsing.checkpoint_to_resume(arguments.ppo))
        stages.after_training(trainer)
        # evaluation, on the test window and in sample; and report
        report = stages.judged(trainer, arguments, test, train)
        if report is not None:
            stages.publish(trainer, report)
        stages.close(trainer)


if __name__ == "__main__":
    with one_line_errors():
        main()
