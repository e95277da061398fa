"""The field, side by side: flagtrl and its peers on one market, one model and one machine.

    python benchmarks/field.py --json docs/field.json
    python benchmarks/field.py --model HuggingFaceTB/SmolLM2-135M-Instruct --steps 320 \
        --train_bars 240 --looks false --json docs/field_smollm2.json \
        --peers flagtrl flagtrl_gae trl_ppo twosome lamorel \
        --settings '{"twosome": {"critic_warm_up_steps": 0}, "trl_ppo": {"at_once": 8}}'

The market is `news70` of the suite: headlines are right in 70%, orders fill at the next price, and
the best rule is known. Every language model is the same one: a random Llama of 3 layers that was
taught to answer in words and to call tools, by drawn answers, so that peers which sample text can
begin; `--model NAME` takes a pretrained one. A peer runs as it is, at the version or commit that
PEERS names, in an environment of its own, by a script of `field_peers/` with what its user writes.
What no peer decides itself is the same for all: the prompts, the policy's learning rate, episodes
of 40 days, and looks at unseen bars, whose time is not counted. docs/field.md says what differs.

An environment is made with pip where there is none yet; the source of a peer that is on no registry
is cloned from GitHub, or is in `--sources`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from field_start import TRAIN_BARS, prepare
from field_table import summary

from flagtrl.errors import ConfigError, unknown
from flagtrl.made_with import commit
from flagtrl.program import one_line_errors
from learning import BUDGET, numbers

SCRIPTS = Path(__file__).resolve().parent / "field_peers"
TORCH = "torch==2.13.0"  # first and by itself: where a CPU build is at hand, pip takes it
LEARNING_RATE = {"tiny": 1e-3}
PRETRAINED_RATE = 1e-4


@dataclass(frozen=True)
class Peer:
    """Whoever learns.

    Attributes:
        title: in the table.
        script: of `field_peers`.
        requirements: for pip, pinned; none: this environment.
        source: repository on GitHub and its commit, of a peer that is on no registry.
        options: settings of the script, over those that are the same for all.
        reads: `text`, or `numbers`.
    """

    title: str
    script: str
    requirements: tuple[str, ...] = ()
    source: tuple[str, str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    reads: str = "text"


PEERS: dict[str, Peer] = {
    "flagtrl": Peer("flagtrl, exact advantages", "flagtrl_peer.py"),
    "flagtrl_gae": Peer(
        "flagtrl, sampled actions and GAE", "flagtrl_peer.py", options={"advantage": "gae"}
    ),
    "trl_ppo": Peer("TRL 1.12 PPOTrainer", "trl_ppo.py", ("trl==1.12.0", "transformers==5.24.0")),
    # at 1e-3 it calls no tools any more after a few steps
    "trl_grpo": Peer(
        "TRL GRPOTrainer with TradingEnv", "trl_grpo.py", options={"learning_rate": 1e-4}
    ),
    "twosome": Peer(
        "TWOSOME",
        "twosome_peer.py",
        (
            *("transformers==5.24.0", "accelerate==1.15.0", "peft==0.9.0", "gym==0.23.1"),
            *("numpy==2.4.6", "scipy==1.17.1", "tensorboard==2.21.0", "setuptools==79.0.1"),
        ),
        ("WeihaoTan/TWOSOME", "969456668ca312742fa2d79381414cb2872adaa7"),
    ),
    "lamorel": Peer(
        "lamorel",
        "lamorel_peer.py",
        (
            *("transformers==4.47.1", "accelerate==1.2.1", "peft==0.14.0", "hydra-core==1.3.8"),
            *("tqdm==4.70.1", "scipy==1.17.1", "numpy==2.4.6"),
        ),
        ("flowersteam/lamorel", "dce6f0dd7c350ec6e919b957cc15ffe890b525d2"),
    ),
    "sb3": Peer("Stable-Baselines3 PPO", "sb3_peer.py", reads="numbers"),
}


def environment(name: str, peer: Peer, folder: Path) -> Path:
    """The Python of a peer, made where it is not yet; without requirements, this one."""
    if not peer.requirements:
        return Path(sys.executable)
    python = folder / name / "bin" / "python"
    if not (folder / name / "made").is_file():
        venv.create(folder / name, with_pip=True, clear=True)
        for words in ([TORCH], list(peer.requirements)):
            subprocess.run([python, "-m", "pip", "install", "--quiet", *words], check=True)
        (folder / name / "made").touch()
    return python


def source(peer: Peer, folder: Path) -> Path | None:
    """The folder of a peer's repository, at its commit."""
    if peer.source is None:
        return None
    repository, at = peer.source
    path = folder / repository.partition("/")[2]
    if not path.is_dir():
        subprocess.run(["git", "clone", f"https://github.com/{repository}", path], check=True)
    subprocess.run(["git", "-C", path, "checkout", "--quiet", at], check=True)
    return path


def measured(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """A record of one run, in a session of its own, whose processes are counted together."""
    peer, work = PEERS[name], options.work / options.model.rpartition("/")[2]
    folder = work / f"seed-{seed}-{options.train_bars}"
    started = prepare(folder, options.model, seed, options.train_bars)
    python = environment(name, peer, options.work / "environments")
    out = work / "runs" / f"{name}-{seed}"
    out.mkdir(parents=True, exist_ok=True)
    settings = {
        **started,
        **{
            "steps": options.steps,
            "seed": seed,
            "looks": options.looks == "true",
            "limit": options.limit,
        },
        "train_bars": options.train_bars,
        "learning_rate": LEARNING_RATE.get(options.model, PRETRAINED_RATE),
        "source": str(source(peer, options.sources)) if peer.source else None,
        "out": str(out / "record.json"),
        **peer.options,
        **options.settings.get(name, {}),
    }
    (out / "record.json").unlink(missing_ok=True)
    (out / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    quiet = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with open(out / "log.txt", "w", encoding="utf-8") as log:
        done = subprocess.run(
            [python, SCRIPTS / peer.script, out / "settings.json"],
            cwd=out,
            env={**os.environ, **quiet, "TRL_EXPERIMENTAL_SILENCE": "1", "HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            check=False,
        )
    if done.returncode or not (out / "record.json").is_file():
        raise ConfigError(f"{name} ended with {done.returncode}; see {out / 'log.txt'}")
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    return {
        **{"peer": name, "title": peer.title, "reads": peer.reads, "model": options.model},
        **{"seed": seed, "limit": options.limit, "statements": statements(SCRIPTS / peer.script)},
        **record,
        "versions": versions(python),
        "commit": commit(),
    }


def versions(python: Path) -> dict[str, str]:
    """Of the packages that learn, in a peer's environment."""
    code = (
        "import json, importlib.metadata as m\n"
        "names = ('torch', 'transformers', 'trl', 'stable-baselines3', 'peft')\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions()}\n"
        "print(json.dumps({n: found[n] for n in names if n in found}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, encoding="utf-8", check=True)
    return json.loads(done.stdout)


def statements(script: Path) -> int:
    """Statements between each `# user:` and `# end`, docstrings aside: what a user of the peer
    writes, however it is broken into lines.
    """
    text = script.read_text(encoding="utf-8")
    inside, marked = False, set()
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        inside = line != "# end" and (inside or line == "# user:")
        marked |= {number} if inside else set()
    return sum(
        isinstance(node, ast.stmt)
        and node.lineno in marked
        and not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in ast.walk(ast.parse(text))
    )


def written(made: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Write a record into a file, in place of that of the same peer, model and seed."""
    same = ("peer", "model", "seed")
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    records = [r for r in there if any(r[name] != made[name] for name in same)] + [made]
    path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return records


def options_of(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--seeds", type=numbers, default=[0], metavar="0,1,2")
    parser.add_argument("--model", default="tiny", help="tiny, or as --model_name_or_path")
    parser.add_argument("--steps", type=int, default=BUDGET, help="environment steps of a run")
    parser.add_argument("--train_bars", type=int, default=TRAIN_BARS)
    parser.add_argument("--limit", type=float, default=900.0, help="seconds of a run")
    parser.add_argument("--looks", choices=("true", "false"), default="true")
    parser.add_argument(
        "--settings", type=json.loads, default={}, help="JSON: by peer, settings of its script"
    )
    parser.add_argument("--json", type=Path, default=Path("docs/field.json"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "flagtrl-field")
    parser.add_argument("--sources", type=Path, help="cloned repositories (default: in --work)")
    options = parser.parse_args(words)
    for name in options.settings:
        if name not in PEERS:
            raise unknown("peer in --settings", name, PEERS)
    options.work = options.work.resolve()
    options.sources = (options.sources or options.work / "sources").resolve()
    return options


def main() -> None:
    """Run each peer with each seed, one after another, and write each record at once."""
    options = options_of()
    if not Path("/proc/self/stat").is_file():
        raise ConfigError("there is no /proc, where a run's processes are counted; use Linux")
    failed = []
    for seed, name in product(options.seeds, options.peers):
        try:
            record = measured(name, seed, options)
        except ConfigError as error:  # the others are not in vain
            failed.append(str(error))
            continue
        written(record, options.json)
        print(summary([record]).splitlines()[-1], flush=True)
    if failed:
        raise ConfigError("; ".join(failed))


if __name__ == "__main__":
    with one_line_errors():
        main()
