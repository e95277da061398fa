"""What the trunk's lean forward saves: a step of the split engine with it and with transformers'
own, in turn.

    python benchmarks/lean_forward.py  # about 2 minutes on 2 cores

The median round of each counts.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

from measure import Case, parsed, settled_trainer, shared_folder

from flagtrl.policy.lean import LeanDecoder


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", nargs="+", default=["compact", "paper"])
    parser.add_argument("--rounds", type=int, default=8, help="of each")
    return parsed(parser, steps=20)


def main() -> None:
    args = arguments()
    shared = shared_folder()
    print(f"{'prompt':<10}{'lean, s/step':>14}{'transformers':>14}{'ratio':>8}")
    for prompt in args.prompts:
        with tempfile.TemporaryDirectory() as out:
            trainer, _ = settled_trainer(Case("split", prompt, steps=args.steps), shared, out)
            split = trainer.model.split
            assert split is not None
            lean = split._trunk
            assert isinstance(lean, LeanDecoder)
            seconds: dict[str, list[float]] = {"lean": [], "transformers": []}
            for _ in range(args.rounds):
                for name, trunk in (("lean", lean), ("transformers", lean.decoder)):
                    split._trunk = trunk
                    seconds[name].append(trainer.timed_train().phases["all"].seconds / args.steps)
        ours, theirs = (statistics.median(times) for times in seconds.values())
        print(f"{prompt:<10}{ours:>14.4f}{theirs:>14.4f}{theirs / ours:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
