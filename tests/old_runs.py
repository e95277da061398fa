"""Runs as flagtrl 0.1.0's first versions left them: with flagtrl.json in place of run.json."""

import json
from pathlib import Path

from flagtrl.policy.manifest import POLICY_MANIFEST
from flagtrl.record import OLD_RECORD_FILE, RECORD_FILE

COURSE = ("gamma", "learning_rate", "kl_coef")  # of settings, some


def made_old(directory: Path, without: tuple[str, ...] = (), **changed) -> None:
    """Replace a run's record by the file that it once had, less the entries `without`."""
    new = json.loads((directory / RECORD_FILE).read_text())
    same = ("policy", "prompt", "market", "data", "windows", "seed", "preset", "action_paths")
    same += ("prompt_fingerprint", "split_engine", "versions", "watch")
    old = {name: new[name] for name in same}
    old |= {f"base_{name}": new["base"][name] for name in ("revision", "fingerprint", "probe")}
    old["model"] = {name: new["base"][name] for name in ("id", "source", "weights")}
    old["learning"] = {name: new["training"][name] for name in COURSE if name in new["training"]}
    old |= {"volatility_periods": 252, "sampled_paths": None} | changed
    for name in without:
        del old[name]
    (directory / OLD_RECORD_FILE).write_text(json.dumps(old))
    (directory / RECORD_FILE).unlink()
    manifest = directory / "manifest.json"  # a checkpoint's, of the files that it has
    manifest.unlink(missing_ok=True)
    without_manifest(directory)


def without_manifest(directory: Path) -> Path:
    """A policy as flagtrl saved it before it wrote the hashes of its files: they are read as they
    are.
    """
    (directory / POLICY_MANIFEST).unlink(missing_ok=True)
    return directory


def edited(directory: Path, **changed) -> None:
    """Change entries of a run's record, whatever a checkpoint's manifest says."""
    path = directory / RECORD_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    (directory / "manifest.json").unlink(missing_ok=True)
    without_manifest(directory)
