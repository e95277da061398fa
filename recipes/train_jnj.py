"""Train FLAG-Trader's policy on Johnson & Johnson and trade the paper's test window with it: MSFT's
recipe with other settings.

    accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/train_jnj.py

The published buy-and-hold row ends on 2021-05-05, one day before the window that the paper states:
so does this recipe.
"""

from flagtrl.errors import one_line_errors
from flagtrl.train import run_recipe

if __name__ == "__main__":
    with one_line_errors():
        run_recipe("jnj")
