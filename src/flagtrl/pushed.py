"""The files that a run writes, and which of them go to the Hub, without paths of this machine."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from huggingface_hub import CommitOperation, CommitOperationAdd

from flagtrl.card import CARD_FILE, QA_FIGURE, QA_FILE
from flagtrl.errors import AdapterError
from flagtrl.evidence.curves import LEARNING_CURVES
from flagtrl.evidence.days import DAYS_FILE
from flagtrl.evidence.page import AUDIT_FILE, PAGE_FILE
from flagtrl.evidence.report import CURVE_FILE, PICTURE, RESULTS_FILE, TRADES_FILE
from flagtrl.policy.manifest import (
    POLICY_MANIFEST,
    TOKENIZER_FILES,
    manifest_names,
    manifest_of,
)
from flagtrl.policy.provenance import (
    ADAPTER_CONFIG,
    on_hub,
    public_name,
    without_paths,
)
from flagtrl.policy.reference import REFERENCE_FILE
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.record import RECORD_FILES

logger = logging.getLogger(__name__)

# What a run writes and what goes up of it, by name. All else in its directory is the user's own, as
# a settings file with a token in it.
PUSHED = (
    *(ADAPTER_CONFIG, ADAPTER_FILE, HEADS_FILE, *RECORD_FILES),
    *(RESULTS_FILE, TRADES_FILE, CURVE_FILE, f"{PICTURE}-*.png", QA_FILE, QA_FIGURE),
    *TOKENIZER_FILES,
)
# What a run writes beside that: checkpoints hold pickles, which can run code where they are loaded;
# a card is written anew for each push.
NOT_PUSHED = (
    *(
        CARD_FILE,
        LEARNING_CURVES,
        "trainer_state.json",
        "training_args.bin",
        REFERENCE_FILE,
        "qa.json",
    ),
    # they quote the news, which may be nobody's to publish
    *(DAYS_FILE, PAGE_FILE, AUDIT_FILE),
    *(POLICY_MANIFEST, "checkpoint-[0-9]*", "incomplete-checkpoint-[0-9]*", "incomplete-policy-*"),
)


def pushed_files(directory: Path, card: str) -> list[CommitOperation]:
    """The files of a run that go to the Hub; those that name paths of this machine as cleaned
    copies.
    """
    cleaned = _cleaned(directory)
    found = sorted(path for pattern in PUSHED for path in directory.glob(pattern) if path.is_file())
    for path in found:
        check_no_link(path)
    names = [path.relative_to(directory).as_posix() for path in found]
    contents = {name: cleaned.get(name, directory / name) for name in names}
    contents[CARD_FILE] = card.encode()
    if policy := manifest_names(directory):
        whole = manifest_of({name: contents[name] for name in policy if name in contents})
        contents[POLICY_MANIFEST] = whole.encode()
    return [
        CommitOperationAdd(name, str(content) if isinstance(content, Path) else content)
        for name, content in contents.items()
    ]


def check_no_link(path: Path) -> None:
    """AdapterError where it is a symbolic link: what it leads to is no part of a run."""
    if path.is_symlink():
        raise AdapterError(
            f"{path} is a symbolic link to {os.readlink(path)!r}, which is not the run's; put the "
            "file itself there"
        )


def _cleaned(directory: Path) -> dict[str, bytes]:
    """What is pushed in place of the JSON files that name paths of this machine."""
    cleaned = {}
    for name in (ADAPTER_CONFIG, *RECORD_FILES, RESULTS_FILE):
        path = directory / name
        if (
            path.is_file()
            and (public := without_paths(content := json.loads(path.read_text(encoding="utf-8"))))
            != content
        ):
            cleaned[name] = json.dumps(public, indent=2).encode() + b"\n"
    return cleaned


def say_what_is_renamed(directory: Path) -> None:
    """Warn where the base goes by another name on the Hub."""
    base = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8")).get(
        "base_model_name_or_path"
    )
    if base and not on_hub(base):
        logger.warning(
            "the base model is a directory or file of this machine: the pushed adapter names it "
            "%r, without its path; who loads it must have that model, and say where (--base)",
            public_name(base),
        )
