"""The README's two commands, as a newcomer runs them: how long they take, and what they print.

    python benchmarks/commands.py demo demo-synthetic test  # about 5 and 10 minutes on 2 cores

Each is `make NAME` in a clone of the last commit in a new folder, set-up included. Its entry in
docs/commands.json holds the commit, the number of cores, the seconds and the output, and what a
demo writes is kept beside it; `python docs/tables.py` then brings it into the README.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Command to what it writes, and the name of that in docs/.
COMMANDS: dict[str, dict[str, str]] = {
    "demo": {
        "runs/demo/results.json": "demo.json",
        "runs/demo/equity_curve.png": "demo_equity_curve.png",
    },
    "demo-synthetic": {"runs/demo-synthetic/results.json": "demo_synthetic.json"},
    "test": {},
}


def record(name: str, docs: Path) -> dict[str, Any]:
    """Run `make NAME` in a clone, and keep what it writes in `docs`; an error where it fails."""
    # the test data lie beside this check-out, not beside the clone
    env = {"FLAGTRL_SHARED": str(ROOT.parent / "shared"), **os.environ}
    with tempfile.TemporaryDirectory() as folder:
        env["FLAGTRL_CACHE"] = str(Path(folder) / "cache")  # a newcomer's has nothing in it
        env["FLAGTRL_TRIALS"] = str(Path(folder) / "trials.jsonl")  # nor this
        clone = Path(folder) / "flagtrl"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        commit = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=clone)
        began = time.perf_counter()
        done = subprocess.run(
            ["make", name], cwd=clone, env=env, check=True, stdout=subprocess.PIPE, encoding="utf-8"
        )
        seconds = round(time.perf_counter() - began)
        for written, kept in COMMANDS[name].items():
            shutil.copyfile(clone / written, docs / kept)
    return {
        "command": f"make {name}",
        "commit": commit.decode().strip(),
        "cores": os.cpu_count(),
        "seconds": seconds,
        "output": done.stdout.splitlines(),
    }


def main() -> None:
    """Run and write; entries of other commands stay."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("commands", nargs="+", choices=list(COMMANDS))
    parser.add_argument("--json", type=Path, default=ROOT / "docs/commands.json")
    options = parser.parse_args()
    entries = json.loads(options.json.read_text(encoding="utf-8")) if options.json.is_file() else {}
    for name in options.commands:
        entries[name] = record(name, options.json.parent)
        text = json.dumps(entries, indent=1, ensure_ascii=False)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
