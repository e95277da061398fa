"""The two arms of a comparison in one model: adapter off is the base, adapter on the tuned model;
never two copies.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftConfig, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from flagtrl.errors import AdapterError, ConfigError, in_one_line, reason
from flagtrl.hub import local_or_pulled
from flagtrl.policy.bases import check_base, load_base
from flagtrl.policy.pretrained import find_pretrained, same_source
from flagtrl.policy.provenance import (
    ADAPTER_CONFIG,
    came_from_hub,
    check_adapter_config,
    is_hub_name,
    saved_base,
)
from flagtrl.policy.saving import ADAPTER_FILE, WEIGHT_DTYPES
from flagtrl.qa.shared import SharedTrunk, shared_trunk
from flagtrl.record import BaseFacts, RunRecord, has_record

logger = logging.getLogger(__name__)

ZERO = "flagtrl_zero"
# tokens: in a forward of contexts that differ by more, padding and unread rows cost more than they
# save
SPREAD = 64
Request = tuple[Any, list[int], list[int]]  # lm-eval's: texts, context's and continuation's tokens
Score = tuple[float, bool]  # log-likelihood in nats, and whether it is what greedy decoding says
# base (None) or an adapter, within a `with`
Switch = Callable[[str | None], AbstractContextManager]


class PairedLM(HFLM):
    """lm-eval's Hugging Face model around one PeftModel, whose logits are computed only where they
    are read.

    lm-eval itself computes them at every position: with a vocabulary of 49,152 and a document of
    1,000 tokens, 200 MB a sample, of which a multiple-choice question reads one row. The
    log-likelihoods are the same.

    Args:
        model: base and adapters.
        tokenizer: of the base.
        batch_size: contexts in one forward.

    Attributes:
        cut: how many of the last requests' contexts were longer than the model's, and were cut on
            the left.
    """

    def __init__(self, model: PeftModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 1):
        super().__init__(
            pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=batch_size
        )
        self.cut, self._keep = 0, 0
        self._arms: tuple[str | None, ...] = ()
        self._arm: str | None = None
        self._known: dict[tuple[str | None, bytes], Score] = {}
        self._shared: SharedTrunk | None = None

    @contextmanager
    def together(self, adapters: Sequence[str]) -> Iterator[Switch]:
        """Within it what no adapter changes runs once for base and adapters; gives the switch
        between them.

        What is asked of one arm is computed of all, batch by batch, and kept until it is asked of
        them: lm-eval asks one arm after the other. Weights must not change meanwhile.

        Args:
            adapters: names, on the model; None is the base.
        """
        assert not self._arms, "already within together()"
        self._shared = shared_trunk(self.model, adapters, arm)
        self._arms, self._arm = (None, *adapters), None
        try:
            with arm(self.model, None):
                yield self._switch
        finally:
            self._arms, self._arm, self._known, self._shared = (), None, {}, None

    @contextmanager
    def _switch(self, adapter: str | None) -> Iterator[None]:
        before, self._arm = self._arm, adapter
        try:
            with arm(self.model, adapter):
                yield
        finally:
            self._arm = before

    def next_logits(self, ids: Tensor, keep: int) -> Tensor:
        """(1, S) ids -> (1, K, V) at the last K = min(keep, S) positions, under the arm that is
        on.
        """
        if self._shared is not None:
            return self._shared.logits(ids, keep)
        with torch.no_grad():
            return self.model(input_ids=ids, logits_to_keep=keep).logits

    def _loglikelihood_tokens(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[Score]:
        """Scores under the arm that is on; within `together`, computed for all arms where they are
        asked for first.
        """
        if not self._arms:
            return self._score(requests, disable_tqdm, override_bs, (self._arm,))[0]
        keys = [_key(request) for request in requests]
        new = {
            key: request
            for key, request in zip(keys, requests, strict=True)
            if (self._arm, key) not in self._known
        }
        scores = self._score(list(new.values()), disable_tqdm, override_bs, self._arms)
        for name, one in zip(self._arms, scores, strict=True):
            self._known.update(zip(((name, key) for key in new), one, strict=True))
        return [self._known[self._arm, key] for key in keys]

    def _score(
        self,
        requests: Sequence[Request],
        disable_tqdm: bool,
        override_bs: int | None,
        arms: Sequence[str | None],
    ) -> list[list[Score]]:
        """For each arm, its scores. Requests that share a forward go together: lm-eval's own code
        reads each group's rows.
        """
        order = sorted(
            range(len(requests)),
            key=lambda i: (-_length(requests[i]), requests[i][1] + requests[i][2][:-1]),
        )
        scores: dict[str | None, dict[int, Score]] = {name: {} for name in arms}
        with tqdm(
            total=len(requests), disable=disable_tqdm or len(requests) < 2, desc="log-likelihoods"
        ) as bar:
            for group in _groups([requests[i] for i in order], override_bs or int(self.batch_size)):
                chosen = [order[place] for place in group]
                chunk = [requests[i] for i in chosen]
                self.cut += sum(_length(request) > self.max_length + 1 for request in chunk)
                lengths = [min(_length(request) - 1, self.max_length) for request in chunk]
                self._keep = max(lengths) - min(lengths) + max(len(request[2]) for request in chunk)
                for name in arms:
                    with arm(self.model, name) if len(arms) > 1 else nullcontext():
                        found = super()._loglikelihood_tokens(chunk, True, len(chunk))
                    scores[name].update(zip(chosen, found, strict=True))
                bar.update(len(chunk))
        self._keep = 0
        return [[one[i] for i in range(len(requests))] for one in scores.values()]

    def _model_call(
        self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        if not self._keep:
            return super()._model_call(inps, attn_mask, labels)
        return self.next_logits(inps, self._keep).float()


def load_arms(
    base: str | None,
    adapters: Sequence[str],
    device: str | None = None,
    dtype: str = "float32",
    accept_base: bool = False,
) -> tuple[PeftModel, PreTrainedTokenizerBase, tuple[str, ...], tuple[Path, ...]]:
    """Load one base and put every adapter on it.

    Args:
        base: any name of `find_pretrained`; None: the one that the first adapter names, from where
            training had it.
        adapters: directories or Hub ids, one for every training seed.
        device: cpu, cuda ...; None: a GPU where there is one.
        dtype: of the weights; float32 for likelihoods.
        accept_base: put them on `base` whatever its weights are, and say by how much it differs.

    Returns:
        Model, tokenizer, the adapters' names in the model, and their directories.

    Raises:
        AdapterError: a base or an adapter that cannot be loaded, that do not fit one another, or a
            base of other weights than an adapter was trained on.
    """
    directories = tuple(adapter_directory(adapter) for adapter in adapters)
    if dtype not in WEIGHT_DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; use one of {', '.join(WEIGHT_DTYPES)}")
    bases = [run_record(directory).base for directory in directories]
    named = base or same_source(saved_base(directories[0]), bases[0])
    model, tokenizer = load_base(named, revision=_revision(base, named, bases[0]))
    accepted = tokenizer if accept_base else None
    checked = [
        check_base(model, named, *run, accepted) for run in zip(directories, bases, strict=True)
    ]
    if not all(checked):
        unknown = ", ".join(
            str(path) for path, known in zip(directories, checked, strict=True) if not known
        )
        logger.warning(
            "not checked: whether %s is the base of %s, which says nothing of its base's weights",
            named,
            unknown,
        )
    model.to(WEIGHT_DTYPES[dtype]).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))  # type: ignore[arg-type]
    names = tuple(f"adapter_{i}" for i in range(len(directories)))
    policy: PeftModel | None = None
    for name, directory in zip(names, directories, strict=True):
        try:
            if policy is None:
                policy = PeftModel.from_pretrained(model, str(directory), adapter_name=name)
            else:
                policy.load_adapter(str(directory), name)
        except (SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
            raise AdapterError(
                f"{directory}: it cannot be put on the base {named!r} ({in_one_line(error)}); give "
                "adapters of one kind, and their own base"
            ) from error
    assert policy is not None
    return policy.eval(), tokenizer, names, directories


def load_vllm(
    base: str | None, adapters: Sequence[str], dtype: str = "float32"
) -> tuple[LM, Switch, tuple[str, ...]]:
    """The same arms on vLLM: one engine, whose requests name an adapter or none.

    Raises:
        ConfigError: vLLM is not installed.
        AdapterError: an adapter that vLLM cannot serve: all but plain LoRA.
    """
    directories = tuple(adapter_directory(adapter) for adapter in adapters)
    configs = [PeftConfig.from_pretrained(str(directory)) for directory in directories]
    for directory, config in zip(directories, configs, strict=True):
        if config.peft_type != "LORA" or config.modules_to_save or config.use_dora:
            raise AdapterError(
                f"{directory}: vLLM serves plain LoRA alone; train with --finetuning lora, or use "
                "--model hf"
            )
    trained_on = run_record(directories[0]).base
    named = base or same_source(saved_base(directories[0]), trained_on)
    revision = _revision(base, named, trained_on)
    engine = {"dtype": dtype, "revision": revision, "lora_local_path": str(directories[0])}
    engine["max_lora_rank"] = max(config.r for config in configs)
    try:
        lm = get_model("vllm")(pretrained=find_pretrained(named, revision=revision).path, **engine)
    except ImportError as error:
        raise ConfigError(
            f"vLLM cannot be used: {reason(error)}; install it on a GPU machine, or use --model hf"
        ) from error
    names = tuple(f"adapter_{i}" for i in range(len(directories)))
    request = type(lm.lora_request)
    requests = {
        name: request(name, i, str(path))
        for i, (name, path) in enumerate(zip(names, directories, strict=True), start=1)
    }

    @contextmanager
    def switch(name: str | None) -> Iterator[None]:
        lm.lora_request = None if name is None else requests[name]
        yield

    return lm, switch, names


def run_record(directory: Path) -> RunRecord:
    """The record of a run; an empty one of an adapter that flagtrl did not train.

    Raises:
        AdapterError: a damaged file.
    """
    return RunRecord.read(directory) if has_record(directory) else RunRecord()


def _revision(base: str | None, named: str, trained_on: BaseFacts) -> str | None:
    """The commit of the Hub that a run was trained on, where the base is taken from what it
    says.
    """
    return trained_on.revision if base is None and is_hub_name(named) else None


def adapter_directory(adapter: str) -> Path:
    """A local adapter's directory, or that of one pulled from the Hub; flagtrl need not have
    trained it.

    Raises:
        AdapterError, HubError: neither a directory with an adapter in safetensors nor a repository;
            or one of the Hub that asks PEFT for more than flagtrl's adapters do.
    """
    path = local_or_pulled(adapter, any_adapter=True)
    for name in (ADAPTER_CONFIG, ADAPTER_FILE):
        if not (path / name).is_file():
            raise AdapterError(
                f"{adapter!r} has no {name}; give a PEFT adapter's directory or its name on the Hub"
            )
    if came_from_hub(path):
        check_adapter_config(path)
    return path


@contextmanager
def arm(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """Within it, `model` is its base (None) or the base with one adapter, also within another arm,
    which it then is again.
    """
    if adapter is None:
        with model.disable_adapter():
            yield
        return
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    before, off = model.active_adapter, any(layer.disable_adapters for layer in layers)
    tuner: Any = model.base_model
    model.set_adapter(adapter)
    if off:  # PEFT's set_adapter leaves them off
        tuner.enable_adapter_layers()
    try:
        yield
    finally:
        model.set_adapter(before)
        if off:
            tuner.disable_adapter_layers()


def add_zero_adapter(model: PeftModel) -> str:
    """Attach a LoRA adapter whose product is 0: whatever differs from the base with it is the
    measurement's own error.
    """
    # A map that an adapter was on is no nn.Linear any more, and adapters' own matrices are.
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | BaseTunerLayer)
    ]
    own = {
        name.rpartition(".")[2]
        for name in linear
        if "lora_" not in name and not name.endswith("base_layer")
    }
    targets = sorted(own - {"lm_head"})
    model.add_adapter(
        ZERO, LoraConfig(task_type="CAUSAL_LM", r=1, bias="none", target_modules=targets)
    )
    model.eval()
    return ZERO


def _length(request: Request) -> int:
    return len(request[1]) + len(request[2])


def _key(request: Request) -> bytes:
    """A request's name by its tokens alone: documents of thousands of tokens are not kept."""
    return hashlib.sha256(repr(request[1:]).encode()).digest()


def _groups(requests: Sequence[Request], contexts: int) -> Iterator[list[int]]:
    """Places of requests, longest first, that go together: at most `contexts` that differ before
    their last token.
    """
    group: list[int] = []
    seen: list[list[int]] = []
    for place, (_, context, continuation) in enumerate(requests):
        read = context + continuation[:-1]
        if read not in seen:
            if len(seen) == contexts or (seen and len(seen[0]) - len(read) > SPREAD):
                yield group
                group, seen = [], []
            seen.append(read)
        group.append(place)
    if group:
        yield group
