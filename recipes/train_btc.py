"""Train FLAG-Trader's policy on Bitcoin and trade the paper's test window with it: MSFT's recipe
with other settings.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/train_btc.py

Bitcoin trades every day: 365 bars a year in both conventions. The published row ends on 2023-11-05.
"""

from flagtrl.errors import one_line_errors
from flagtrl.train import run_recipe

if __name__ == "__main__":
    with one_line_errors():
        run_recipe("btc")
