"""How the cost of a step grows with environments, prompt length, trainable layers and model size,
on the split engine.

    python benchmarks/scaling.py                # about 15 minutes on 2 cores
    python benchmarks/scaling.py --device cuda

One thing is varied at a time from the paper's settings: compact prompts, one environment, two
trainable layers, SmolLM2-135M's shape. Prompt length is varied by the tokens of news, which are in
the part that a bar's visits share. All cases take a second turn, in the opposite order, so that a
machine that gets slower meanwhile does not look like a trend; the median round counts.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from measure import PHASES, Case, Measured, free_memory, measure, parsed, shared_folder

from flagtrl.cpu import cpu_tuning

VARIED = {
    "num_envs": [1, 2, 4, 8],
    "news_tokens": [0, 64, 256, 512],
    "trainable_layers": [1, 2, 4, 8],
    "shape": ["135M", "360M"],
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--prompt", default="compact")
    parser.add_argument("--vary", nargs="+", default=list(VARIED), choices=VARIED)
    parser.add_argument(
        "--seconds",
        type=float,
        default=5,
        help="a case has rounds until it was timed for so long",
    )
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument(
        "--plot", type=Path, default=Path("runs/scaling.png"), help="write the plot here"
    )
    return parsed(parser, steps=16)


def main() -> None:
    args = arguments()
    cpu_tuning()
    shared = shared_folder()
    base = Case("split", args.prompt, device=args.device, steps=args.steps)
    cases = {
        (name, value): replace(base, **{name: value})
        for name in args.vary
        for value in VARIED[name]
    }
    # As many bars for every number of environments: an update needs the value of one bar more,
    # known to the next.
    cases = {key: replace(case, steps=args.steps * case.num_envs) for key, case in cases.items()}
    once = list(dict.fromkeys(cases.values()))  # the paper's settings are in every series
    measured: dict[Case, Measured] = {}
    for number, case in enumerate(turns := once + once[::-1], start=1):
        free_memory()
        turn = measure(case, shared, args.seconds)
        if case in measured:
            measured[case].add_visit(turn)
        else:
            measured[case] = turn
        names = [f"{name} {value}" for (name, value), of in cases.items() if of == case]
        print(
            f"turn {number} of {len(turns)}: {turn.seconds('all'):.4f} s a step with "
            f"{', '.join(names)}",
            flush=True,
        )
    done = {key: measured[case] for key, case in cases.items()}
    print(
        f"{'varied':<17}{'value':>7}{'tokens':>8}"
        + "".join(f"{phase:>11}" for phase in PHASES)
        + "  s/step"
    )
    for (name, value), case in done.items():
        seconds = "".join(f"{case.seconds(phase):>11.4f}" for phase in PHASES)
        print(f"{name:<17}{value:>7}{case.tokens / case.steps:>8.0f}{seconds}")
    rows = [
        {"varied": name, "value": value, **case.row(phase)}
        for (name, value), case in done.items()
        for phase in PHASES
    ]
    if args.json:
        args.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n", encoding="utf-8")
    args.plot.parent.mkdir(parents=True, exist_ok=True)
    draw(rows).savefig(args.plot, dpi=150)
    print(f"wrote {args.plot}")


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A panel per varied setting: seconds per step by phase."""
    names = list(dict.fromkeys(row["varied"] for row in rows))
    figure = Figure(figsize=(3.2 * len(names), 3), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        for phase in PHASES:
            chosen = [row for row in rows if (row["varied"], row["phase"]) == (name, phase)]
            seconds = [row["seconds_per_step"] for row in chosen]
            axes.plot([str(row["value"]) for row in chosen], seconds, marker="o", label=phase)
        axes.set_xlabel(name.replace("_", " "))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)  # of all panels, and so after the last is drawn
    panels[0].set_ylabel("seconds per environment step")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


if __name__ == "__main__":
    main()
