"""Forwards of the trained policy over the prompts of a rollout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from flagtrl.language.prompt import EncodedPrompt
from flagtrl.policy.actor_critic import ActorCritic
from flagtrl.policy.backbone import BATCH
from flagtrl.policy.batch import ActorCriticOutput


class Asking:
    """What a trainer asks its policy.

    Args:
        policy: gives the actor-critic.
        wrapped: gives it as the Trainer calls it, so that the hooks of DDP, FSDP and ZeRO fire.
        accelerator: its device, and its autocast for the frozen layers.
        sharded: all processes must run as many forwards.
        language: forwards that learn also say how far the language model is from its base.
    """

    def __init__(
        self,
        policy: Callable[[], ActorCritic],
        wrapped: Callable[[], nn.Module],
        accelerator: Accelerator,
        sharded: bool,
        language: bool = False,
    ):
        self.policy, self.wrapped = policy, wrapped
        self.accelerator, self.sharded = accelerator, sharded
        self._asked = {"language": True} if language else {}
        self.device = accelerator.device
        self._begun: ActorCriticOutput | None = None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Within it the policy is in evaluation mode; after it, sharded as it was."""
        module = self.wrapped()
        was_training = module.training
        module.eval()
        try:
            yield
        finally:
            module.train(was_training)
            # FSDP2 keeps its root's weights whole from a forward to the backward, which none
            # follows here: the optimizer's are the sharded ones, and so must be those that are
            # saved.
            if isinstance(module, FSDPModule):
                module.reshard()

    @torch.no_grad()
    def act(self, prompts: Sequence[EncodedPrompt], legal: np.ndarray) -> ActorCriticOutput:
        """Policy and value of B prompts that the rollout came to, legal (B, A); float32, on the
        CPU.
        """
        with self.accelerator.autocast():
            self.policy().keep(prompts, self.device)
        output = self.wrapped()(**self.inputs(prompts, legal))
        return ActorCriticOutput(output.logprobs.float().cpu(), output.values.float().cpu())

    def act_on_many(self, prompts: Sequence[EncodedPrompt], legal: np.ndarray) -> ActorCriticOutput:
        """`act`, a few prompts a forward; equal ones once, as in `logprobs`."""
        rows, place = self._different(prompts, legal)
        size, parts = self.policy().prompts_per_pass, []
        for start in range(0, len(rows), size):
            some = rows[start : start + size]
            parts.append(self.act([prompts[row] for row in some], legal[some]))
        logprobs, values, _ = zip(*parts, strict=True)
        return ActorCriticOutput(torch.cat(logprobs)[place], torch.cat(values)[place])

    def act_to_learn(
        self, prompts: Sequence[EncodedPrompt], legal: np.ndarray
    ) -> ActorCriticOutput:
        """`act`, by the forward that the update begins with: before its first step the policy that
        acts and the one that learns are the same.
        """
        with self.accelerator.autocast():
            self.policy().keep(prompts, self.device)
        module = self.wrapped().train()
        self._begun = module(**self.inputs(prompts, legal), **self._asked)
        module.eval()
        parts = (self._begun.logprobs, self._begun.values)
        return ActorCriticOutput(*(part.detach().float().cpu() for part in parts))

    def learn(
        self,
        module: nn.Module,
        prompts: Sequence[EncodedPrompt],
        legal: np.ndarray,
        rows: Tensor,
    ) -> ActorCriticOutput:
        """Policy and value of prompts, with their graph.

        Args:
            module: the policy as the Trainer calls it.
            prompts: of a micro-batch.
            legal: (n, A).
            rows: (n,) which of the rollout's prompts they are.
        """
        begun, self._begun = self._begun, None
        if begun is not None:
            rows = rows.to(self.device)
            return ActorCriticOutput(*(part[rows] for part in begun if part is not None))
        return module(**self.inputs(prompts, legal), **self._asked)

    @torch.no_grad()
    def reference(self, prompts: Sequence[EncodedPrompt], legal: Tensor) -> Tensor:
        """(N, A) log pi_ref of the rollout's prompts."""
        if not self.policy().keeps:
            return self.logprobs(prompts, legal, reference=True)
        with self.accelerator.autocast():
            inputs = self.inputs(prompts, legal.numpy())
            return self.policy().reference_logprobs(**inputs).float().cpu()

    @torch.no_grad()
    def logprobs(
        self, prompts: Sequence[EncodedPrompt], legal: Tensor, reference: bool = False
    ) -> Tensor:
        """(N, A) log pi, a few prompts a forward; equal ones once, but where all processes must run
        as many forwards.
        """
        rows, place = self._different(prompts, legal.numpy())
        done = []
        for start in range(0, len(rows), BATCH):
            some = rows[start : start + BATCH]
            inputs = self.inputs([prompts[row] for row in some], legal[some].numpy())
            done.append(self.wrapped()(**inputs, reference=reference).logprobs.float().cpu())
        return torch.cat(done)[place]

    def _different(
        self, prompts: Sequence[EncodedPrompt], legal: np.ndarray
    ) -> tuple[list[int], list[int]]:
        """The first row of each different prompt, or all rows of a sharded model; and where among
        them each prompt's is.
        """
        asked = zip(prompts, legal, strict=True)
        keys = [
            n if self.sharded else (prompt.key, row.tobytes())
            for n, (prompt, row) in enumerate(asked)
        ]
        first: dict[Any, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        place = {key: n for n, key in enumerate(first)}
        return list(first.values()), [place[key] for key in keys]

    def inputs(self, prompts: Sequence[EncodedPrompt], legal: np.ndarray) -> dict[str, Any]:
        """The keyword arguments of the policy's forward for prompts of the rollout."""
        return self.policy().inputs(prompts, legal, self.device)
