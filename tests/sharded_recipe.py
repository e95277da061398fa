"""Run a recipe, as `python RECIPE OPTIONS` does, with tests/cpu_sharding.py: RECIPE OPTIONS."""

import runpy
import sys
from pathlib import Path

import cpu_sharding  # noqa: F401 (before accelerate's state is made)

if __name__ == "__main__":
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
