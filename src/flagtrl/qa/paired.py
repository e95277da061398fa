"""lm-eval's model around base and adapters, which computes what all arms share once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from flagtrl.qa.arms import Switch, arm
from flagtrl.qa.shared import SharedTrunk, shared_trunk

# tokens: in a forward of contexts that differ by more, padding and unread rows cost more than they
# save
SPREAD = 64
Request = tuple[Any, list[int], list[int]]  # lm-eval's: texts, context's and continuation's tokens
Score = tuple[float, bool]  # log-likelihood in nats, and whether it is what greedy decoding says


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
