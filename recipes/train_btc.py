"""Train FLAG-Trader's policy on Bitcoin and trade the paper's test window with it: train_msft.py with other settings.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/train_btc.py

Bitcoin trades every day: 365 bars a year in both conventions. The published row ends on 2023-11-05.
"""

from train_msft import main

from flagtrl.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        main(
            symbol="BTC",
            train_start="2023-02-11",
            train_end="2023-04-04",
            test_start="2023-04-05",
            test_end="2023-11-05",
            volatility_periods=365,
        )
