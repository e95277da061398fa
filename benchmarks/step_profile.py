"""Where does a step of the split engine go on a CPU? Matrix products, attention and the rest, by
torch's profiler.

    python benchmarks/step_profile.py  # about 3 minutes on 2 cores

One round as `throughput.py` has them: the paper's settings, one environment, the steady state.
`rest` is element-wise work, copies, Python and the profiler's own cost. The rate is that of the
products, of frozen and trained layers alike.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from measure import (
    DTYPES,
    PHASES,
    Case,
    Clocked,
    free_memory,
    matmul_peak,
    parsed,
    settled_trainer,
    shared_folder,
)
from torch.profiler import ProfilerActivity, profile, record_function

from flagtrl.cpu import cpu_tuning

KINDS = ("products", "attention", "rest")
# where the first factor is among the arguments
PRODUCTS = {"mkldnn::_linear_pointwise": 0, "aten::mm": 0, "aten::addmm": 1}


def profiled(case: Case, shared: Path) -> tuple[dict[str, Counter[str]], dict[str, float]]:
    """Per phase, seconds per step of each kind of work; and floating-point operations per step of
    its products.
    """
    with tempfile.TemporaryDirectory() as out:
        trainer, _ = settled_trainer(case, shared, out)
        with (
            marked(trainer),
            profile(activities=[ProfilerActivity.CPU], record_shapes=True) as record,
        ):
            trainer.timed_train()
    events = list(record.events())
    spans = {
        name: [event.time_range for event in events if event.name == f"phase {name}"]
        for name in PHASES[:-2]
    }
    seconds: dict[str, Counter[str]] = {name: Counter() for name in PHASES}
    flops: Counter[str] = Counter()
    steps = len(trainer.prompts)
    for event in events:
        within = (
            name
            for name, ranges in spans.items()
            if any(r.start <= event.time_range.start < r.end for r in ranges)
        )
        for phase in (next(within, "update"), "all"):
            if event.name in PRODUCTS:
                seconds[phase]["products"] += event.self_cpu_time_total / 1e6 / steps
                flops[phase] += operations(event) / steps
            elif (
                "scaled_dot_product" in event.name
                and event.name != "aten::scaled_dot_product_attention"
            ):
                seconds[phase]["attention"] += event.self_cpu_time_total / 1e6 / steps
    for name in PHASES:
        whole = trainer.phases[name].seconds / steps
        seconds[name]["rest"] = whole - sum(seconds[name].values())
    return seconds, dict(flops)


@contextmanager
def marked(trainer: Clocked) -> Iterator[None]:
    """Within it the profiler's record names the trainer's phases."""
    phase = trainer.phase

    @contextmanager
    def named(name: str) -> Iterator[None]:
        with record_function(f"phase {name}"), phase(name):
            yield

    trainer.phase = named  # type: ignore[method-assign]
    yield
    trainer.phase = phase  # type: ignore[method-assign]


def operations(event: Any) -> float:
    """2 M N K of a product (M, K) x (K, N)."""
    first = PRODUCTS[event.name]
    left, right = event.input_shapes[first], event.input_shapes[first + 1]
    return 2.0 * prod(left) * (right[0] if event.name.startswith("mkldnn") else right[1])


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/speed.md: whole steps."""
    lines = [
        "| prompt | trunk | products | attention | rest | GFLOP/s of products |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if row["phase"] == "all":
            cells = [f"{row[kind]:.3f}" for kind in KINDS]
            lines.append(
                " | ".join(
                    [f"| {row['prompt']}", row["dtype"], *cells, f"{row['products_gflops']:.0f}"]
                )
                + " |"
            )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", nargs="+", default=["paper", "compact", "markov"])
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=["float32", "bfloat16"],
        choices=DTYPES,
        help="of the frozen layers",
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    return parsed(parser, steps=20)


def main() -> None:
    args = arguments()
    cpu_tuning()
    shared, rows = shared_folder(), []
    for dtype in args.dtypes:
        print(f"matrix products reach {matmul_peak(dtype, 'cpu') / 1e9:,.0f} GFLOP/s in {dtype}")
    print(
        f"{'prompt':<9}{'trunk':<10}{'phase':<11}"
        + "".join(f"{kind:>11}" for kind in KINDS)
        + "  s/step  GFLOP/s"
    )
    for prompt in args.prompts:
        for dtype in args.dtypes:
            free_memory()
            seconds, flops = profiled(Case("split", prompt, dtype, steps=args.steps), shared)
            for phase in PHASES:
                spent = seconds[phase]
                rate = flops[phase] / spent["products"] / 1e9 if spent["products"] else 0.0
                rows.append(
                    {
                        "prompt": prompt,
                        "dtype": dtype,
                        "phase": phase,
                        **spent,
                        "products_gflops": rate,
                    }
                )
                cells = "".join(f"{spent[kind]:>11.4f}" for kind in KINDS)
                print(f"{prompt:<9}{dtype:<10}{phase:<11}{cells}{rate:>17.0f}", flush=True)
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
        print(f"wrote {args.json}\n{markdown(rows)}")


if __name__ == "__main__":
    main()
