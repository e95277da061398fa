"""The Hugging Face Hub: push a run with its model card, and pull one."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import LocalTokenNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoSibling
from huggingface_hub.utils import filter_repo_objects
from transformers import TrainingArguments
from transformers.trainer_utils import HubStrategy

from flagtrl.card import CARD_FILE, model_card
from flagtrl.errors import AdapterError, FlagtrlError, kind_and_words
from flagtrl.patience import patiently
from flagtrl.places import run_directory
from flagtrl.policy.adapters import PolicySettings
from flagtrl.policy.manifest import POLICY_MANIFEST
from flagtrl.policy.prior import PLAIN_PEFT_LACKS, lacks_offsets
from flagtrl.policy.provenance import ADAPTER_CONFIG
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE
from flagtrl.pushed import PUSHED, pushed_files, say_what_is_renamed
from flagtrl.record import RECORD_FILE, RECORD_FILES, RunRecord

logger = logging.getLogger(__name__)

# transformers' name of the folder that `hub_strategy="checkpoint"` keeps
LAST_CHECKPOINT = "last-checkpoint"
# Of a repository, whoever wrote it, no more than a run of flagtrl pushes.
PULLED = [*PUSHED, CARD_FILE, POLICY_MANIFEST]


def push(
    directory: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    whole_as: str | None = None,
) -> str:
    """Upload a run, or a checkpoint of one, with its model card, in one commit.

    What is uploaded names no path of this machine: where the base, the data or the output directory
    were one, the copies of adapter_config.json, run.json and results.json that go up have its
    last part alone, and a warning says so of the base.

    Args:
        directory: a run's output directory.
        repo_id: `owner/name`; made if it does not exist.
        private: of a repository that is made now.
        token: with write access; else that of HF_TOKEN or `hf auth login`.
        whole_as: upload the whole directory, training state included, to this folder too.

    Returns:
        The address of the commit.

    Raises:
        AdapterError: no finished run there, a damaged file, or results of other windows than its
            own.
        HubError: a repository's name, a token, the network or the Hub is in the way; `directory` is
            whole, and pushing again continues: files that the Hub has are not sent twice.
    """
    directory = Path(directory)
    record = RunRecord.read(directory)
    for name in (HEADS_FILE, ADAPTER_FILE, ADAPTER_CONFIG):
        if not (directory / name).is_file():
            raise AdapterError(
                f"{directory} has no {name}; give the output directory of a finished flagtrl run"
            )
    card = model_card(directory, repo_id)
    say_what_is_renamed(directory)
    if lacks_offsets(PolicySettings(**record.policy)):
        logger.warning(PLAIN_PEFT_LACKS)
    api = HfApi(token=token)

    def upload() -> str:
        _need_token(token)
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        return _commit(api, made.repo_id, directory, card, whole_as)

    return patiently(upload, f"{repo_id} was not pushed", f"{directory} is whole: push it again")


def _commit(api: HfApi, repo_id: str, directory: Path, card: str, whole_as: str | None) -> str:
    message = "flagtrl: adapter, heads, results and card"
    commit = api.create_commit(repo_id, pushed_files(directory, card), commit_message=message)
    if whole_as is not None:
        api.upload_folder(
            repo_id=repo_id,
            folder_path=directory,
            path_in_repo=whole_as,
            commit_message=f"flagtrl: {directory.name}, to resume from",
            delete_patterns="*",
        )
    return str(commit.commit_url)


class Publisher:
    """Pushes a run as it trains: the trainer's side of `push_to_hub` and `hub_strategy`.

    `end` pushes the finished run; `every_save` also each checkpoint's adapter, heads and card;
    `checkpoint` also the newest checkpoint whole, as `last-checkpoint`, to resume from;
    `all_checkpoints` every one under its own name. A whole checkpoint is pushed as it was written,
    paths of this machine included: resuming compares them.

    Args:
        repo_id: `owner/name`, or a name under the token's own account.
        strategy: one of transformers' HubStrategy.
        private: of a repository that is made now.
        token: with write access; else that of HF_TOKEN or `hf auth login`.
    """

    def __init__(
        self,
        repo_id: str,
        strategy: str = "end",
        private: bool | None = None,
        token: str | None = None,
    ):
        self.repo_id, self.strategy = repo_id, HubStrategy(strategy)
        self.private, self.token = private, token

    @classmethod
    def of(cls, args: TrainingArguments) -> Publisher | None:
        """The publisher that a run's settings ask for; None where push_to_hub is off."""
        if not args.push_to_hub:
            return None
        name = args.hub_model_id or Path(str(args.output_dir)).name
        return cls(name, args.hub_strategy, args.hub_private_repo, args.hub_token)

    def prepare(self) -> str:
        """Make the repository, so that a name or token that will not do is known before training;
        its full name.
        """
        api = HfApi(token=self.token)

        def make() -> str:
            _need_token(self.token)
            return api.create_repo(self.repo_id, private=self.private, exist_ok=True).repo_id

        self.repo_id = patiently(
            make, f"{self.repo_id} cannot be pushed to", "or train without --push_to_hub"
        )
        return self.repo_id

    def push_checkpoint(self, directory: Path) -> None:
        """Push a checkpoint as the strategy says.

        What fails is said in a warning: training goes on, and the next push carries all.
        """
        if self.strategy == HubStrategy.END:
            return
        whole = {
            HubStrategy.CHECKPOINT: LAST_CHECKPOINT,
            HubStrategy.ALL_CHECKPOINTS: directory.name,
        }.get(self.strategy)
        try:
            push(directory, self.repo_id, private=self.private, token=self.token, whole_as=whole)
        except FlagtrlError as error:
            logger.warning("%s", error)
        except Exception as error:  # whatever it is: a push is not worth the run
            logger.warning("%s was not pushed: %s", directory, kind_and_words(error))

    def push(self, directory: Path) -> str:
        """Push the finished run; the commit's address."""
        return push(directory, self.repo_id, private=self.private, token=self.token)


def pull(
    repo_id: str,
    directory: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    checkpoint: bool = False,
) -> Path:
    """Download a run from the Hub. What is returned is what the Hub has now: every file is compared
    with its list.

    Args:
        repo_id: `owner/name`.
        directory: where to; the Hub's cache if None.
        revision: a branch, a tag or a commit.
        token: for a private repository; else that of HF_TOKEN or `hf auth login`.
        checkpoint: also the newest checkpoint, which `hub_strategy="checkpoint"` pushed, to resume
            from. It holds pickles: only from a repository that you trust.

    Raises:
        HubError: no such repository, no access, no network; a download that broke off is continued
            by the next.
        AdapterError: a repository without a flagtrl run, or without the checkpoint.
    """
    api = HfApi(token=token)

    def download() -> Path:
        # The Hub's client returns what a directory holds, whatever it is, where it cannot reach the
        # Hub: so ask first.
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        _check_is_run(repo_id, {file.rfilename for file in info.siblings or ()}, checkpoint)
        path = Path(
            api.snapshot_download(
                repo_id, revision=revision, local_dir=directory, allow_patterns=PULLED
            )
        )
        _check_arrived(path, info, PULLED)
        if checkpoint:
            whole = f"{LAST_CHECKPOINT}/*"
            api.snapshot_download(
                repo_id,
                revision=revision,
                local_dir=directory,
                allow_patterns=whole,
                ignore_patterns="*.py",
            )
            _check_arrived(path, info, [whole], "*.py")
        return path

    return patiently(download, f"{repo_id} was not pulled", "pull it again")


def local_or_pulled(run: str, revision: str | None = None, any_adapter: bool = False) -> Path:
    """The directory of a run: itself, where there is one of that name, else the Hub's repository,
    downloaded to its cache.

    Args:
        run: a directory, or `owner/name`.
        revision: a branch, a tag or a commit of the Hub.
        any_adapter: a repository needs no flagtrl run in it.

    Raises:
        AdapterError: neither a directory nor the name of a repository, or a repository without a
            run.
        HubError: see `pull`.
    """
    if (found := run_directory(run)) is not None:
        return found
    api = HfApi()

    def download() -> Path:
        return Path(api.snapshot_download(run, revision=revision, allow_patterns=PULLED))

    path = patiently(download, f"{run} was not pulled", "try again")
    if not any_adapter:
        _check_is_run(run, {file.name for file in path.iterdir()})
    return path


def _check_is_run(repo_id: str, names: set[str], checkpoint: bool = False) -> None:
    if not names & set(RECORD_FILES):
        raise AdapterError(
            f"{repo_id} has no {RECORD_FILE}: it is not a flagtrl run; load it with PEFT"
        )
    if checkpoint and not names & {f"{LAST_CHECKPOINT}/{name}" for name in RECORD_FILES}:
        raise AdapterError(
            f"{repo_id} has no {LAST_CHECKPOINT}: it was not trained with --hub_strategy checkpoint"
        )


def _check_arrived(
    directory: Path, info: ModelInfo, allowed: list[str], ignored: str | None = None
) -> None:
    """ConnectionError where a file of the Hub's list is not in `directory` as the Hub has it."""
    files = {file.rfilename: file for file in info.siblings or ()}
    wanted = list(filter_repo_objects(files, allow_patterns=allowed, ignore_patterns=ignored))
    if missing := [name for name in wanted if not _is_the_hubs(directory / name, files[name])]:
        raise ConnectionError(
            f"of {len(wanted)} files {len(missing)} did not arrive, as {missing[0]}"
        )


def _is_the_hubs(path: Path, file: RepoSibling) -> bool:
    """Whether its content has the hash that the Hub lists: SHA-256 of large files, git's SHA-1 of
    others.
    """
    if not path.is_file():
        return False
    content = path.read_bytes()
    if file.lfs is not None:
        return hashlib.sha256(content).hexdigest() == file.lfs.sha256
    return file.blob_id in (None, hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest())


def _need_token(token: str | None) -> None:
    """The Hub answers who has no token as it answers who has a wrong one; the two are told apart
    here.
    """
    if not (token or get_token()):
        raise LocalTokenNotFoundError
