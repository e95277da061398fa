"""Train FLAG-Trader's policy on Tesla and trade the paper's test window with it: MSFT's recipe with
other settings.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/train_tsla.py

The published buy-and-hold row ends on 2021-05-06 and annualises its volatility with 365 bars a
year, unlike the other equities': so does this recipe, in the `paper` convention alone.
"""

from flagtrl.errors import one_line_errors
from flagtrl.train import run_recipe

if __name__ == "__main__":
    with one_line_errors():
        run_recipe("tsla")
