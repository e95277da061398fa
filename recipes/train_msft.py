"""Train FLAG-Trader's policy on Microsoft and trade the paper's test window with it.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/train_msft.py

With no options: SmolLM2-135M-Instruct (downloaded), InvestorBench's prices and sentiment counts of
MSFT (shipped with flagtrl; --news_text true downloads the news texts too) and the paper's settings.
Every field of DataArguments, PPOConfig, MarketSettings, PromptSettings and PolicySettings is an
option (--help), or a key of a YAML file (--config FILE). What is run is flagtrl/train.py. The
published buy-and-hold row ends on 2021-05-05, one day before the window that the paper states: so
does this recipe.
"""

from flagtrl.errors import one_line_errors
from flagtrl.train import run_recipe

if __name__ == "__main__":
    with one_line_errors():
        run_recipe("msft")
