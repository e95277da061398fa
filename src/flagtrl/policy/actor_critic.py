"""Policy and value in one module on a split language model: one forward, so that DDP, FSDP and ZeRO hooks fire.

Two engines compute the same. `plain`: one full Hugging Face forward per prompt, logits at its last positions only; the
reference that the other must equal. `split`: the frozen trunk's states are computed as seldom as possible (trunk.py), and a
forward runs the top layers alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from torch import Tensor, nn

from flagtrl.errors import ConfigError
from flagtrl.language.tokens import EncodedPrompt
from flagtrl.policy.adapters import PolicySettings, decoder_layers
from flagtrl.policy.trunk import Boundary, SplitDecoder, Trunk, pad_left


class PolicyOutput(NamedTuple):
    """Policy and value of B prompts.

    logprobs: (B, A) float32, log pi(a | s); -inf for illegal actions, the legal ones' exponentials sum to 1.
    values: (B,) float32, V(s).
    """

    logprobs: Tensor
    values: Tensor


@dataclass(frozen=True)
class PromptBatch:
    """B left-padded prompts: input_ids (B, L) int64, attention_mask (B, L) int64, legal (B, A) bool."""

    input_ids: Tensor
    attention_mask: Tensor
    legal: Tensor

    def inputs(self) -> dict[str, Tensor]:
        """The keyword arguments of ActorCritic.forward."""
        return {"input_ids": self.input_ids, "attention_mask": self.attention_mask, "legal": self.legal}

    @classmethod
    def of(cls, prompts: Sequence[EncodedPrompt], legal: np.ndarray, device: torch.device | str = "cpu") -> PromptBatch:
        """Pad prompts on the left with id 0, which the mask hides."""
        length = max(len(p.ids) for p in prompts)
        ids = np.zeros((len(prompts), length), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt.ids) :] = prompt.ids
            mask[row, length - len(prompt.ids) :] = 1
        return cls(*(torch.from_numpy(x).to(device) for x in (ids, mask, np.ascontiguousarray(legal))))


class ActorCritic(nn.Module):
    """A language model that trades.

    Args:
        language_model: a causal LM with a PEFT adapter; the adapter's parameters are theta_train.
        action_paths: each action's token ids after the answer prefix, indexed by Action.
        settings: policy parameterisation, length normalisation, width of the heads.
        dropout: of the heads' hidden layer while training.
    """

    def __init__(
        self,
        language_model: PeftModel,
        action_paths: Sequence[Sequence[int]],
        settings: PolicySettings | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.settings = settings or PolicySettings()
        self.language_model = language_model
        self.config = language_model.config
        self.action_paths = tuple(tuple(path) for path in action_paths)
        # The `head` policy needs no answer token: its only chain is the empty one.
        self.chains = _answer_chains(self.action_paths) if self.settings.policy == "action_tokens" else ((),)
        self.split: SplitDecoder | None = None
        self.trunk: Trunk | None = None
        hidden = self.config.get_text_config().hidden_size
        # Values start at exactly 0: rewards of daily trading are small, and a random critic would drown them.
        self.value_head = _head(hidden, self.settings.head_width, 1, dropout, gain=0.0)
        self.policy_head: nn.Module | None = None
        self.reference_head: nn.Module | None = None
        if self.settings.policy == "head":
            # A small gain starts the policy close to uniform over the legal actions.
            self.policy_head = _head(hidden, self.settings.head_width, len(self.action_paths), dropout, gain=0.01)
            self.reference_head = copy.deepcopy(self.policy_head).requires_grad_(False).eval()

    def use_split(self, cache_bytes: int) -> Trunk:
        """Switch to the split engine: forwards then take `boundaries` of the returned trunk."""
        depth = decoder_layers(self.language_model.get_base_model())[1] - self.settings.trainable_layers
        self.split = SplitDecoder(self.language_model, depth)
        self.trunk = Trunk(self.split, self.chains, cache_bytes)
        return self.trunk

    def inputs(self, prompts: Sequence[EncodedPrompt], legal: np.ndarray, device: torch.device | str = "cpu") -> dict[str, Any]:
        """The keyword arguments of `forward` for B prompts and legal (B, A), for the engine in use."""
        if self.trunk is None:
            return PromptBatch.of(prompts, legal, device).inputs()
        return {"legal": torch.from_numpy(np.ascontiguousarray(legal)).to(device), "boundaries": self.trunk(prompts, device)}

    def use_plain(self) -> None:
        """Switch to the plain engine."""
        self.split = self.trunk = None

    def forward(
        self,
        legal: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        boundaries: Sequence[Boundary] | None = None,
        reference: bool = False,
    ) -> PolicyOutput:
        """Prompts and legal (B, A) -> PolicyOutput.

        Prompts are given as left-padded ids and mask (B, L), or to the split engine as B boundaries. With `reference`,
        the policy is the initial one: the model with its adapter off, and the initial policy head.
        """
        with self.adapter_off() if reference else nullcontext():
            if boundaries is None:
                assert input_ids is not None and attention_mask is not None, "give ids and mask, or boundaries"
                runs = self.plain_runs(input_ids, attention_mask)
            else:
                runs = self.split_runs(boundaries)
            scores, hidden = self._scores(runs, self.reference_head if reference else self.policy_head)
        return PolicyOutput(masked_log_softmax(scores, legal), self.value_head(hidden).squeeze(-1))

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """Within it the language model is the frozen base."""
        flags = [(p, p.requires_grad) for p in self.language_model.parameters()]
        try:
            with self.language_model.disable_adapter():
                yield
        finally:
            # PEFT makes every adapter tensor trainable when it enables the adapter again, the frozen anchor included.
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def parameter_groups(self, learning_rate: float, head_learning_rate: float, weight_decay: float = 0.0) -> list[dict]:
        """theta_train with beta = `learning_rate`; theta_V and theta_P with eta = `head_learning_rate`.

        Matrices decay, biases and norms do not.
        """
        groups = []
        for in_top, rate in ((True, learning_rate), (False, head_learning_rate)):
            for matrices, decay in ((True, weight_decay), (False, 0.0)):
                chosen = [
                    p
                    for name, p in self.named_parameters()
                    if p.requires_grad and name.startswith("language_model.") == in_top and (p.ndim > 1) == matrices
                ]
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        return groups

    def head_state(self) -> dict[str, Tensor]:
        """The heads' tensors, all that is not the language model's."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("language_model.")}

    def load_head_state(self, state: dict[str, Tensor]) -> None:
        """Load what `head_state` gave; every tensor must be there, and no other."""
        expected = set(self.head_state())
        if set(state) != expected:
            raise ConfigError(
                f"the saved heads hold {sorted(state)}, this policy needs {sorted(expected)}; load it with its own settings"
            )
        self.load_state_dict(state, strict=False)

    def _scores(self, runs: Iterator[tuple[Tensor, Tensor]], head: nn.Module | None) -> tuple[Tensor, Tensor]:
        """Unmasked scores (B, A) and the last hidden state (B, D) at the prompt's end, float32."""
        logits, hidden = next(runs)
        if head is not None:
            return head(hidden).float(), hidden
        # per chain: (B, 1 + len(chain), V)
        token_logprobs = [logits.log_softmax(-1), *(more.log_softmax(-1) for more, _ in runs)]
        columns = [self._path_logprob(path, token_logprobs) for path in self.action_paths]
        return torch.stack(columns, dim=-1), hidden

    def _path_logprob(self, path: tuple[int, ...], token_logprobs: list[Tensor]) -> Tensor:
        """(B,) sum over the path's tokens of log p(token | prompt, tokens before it), divided by their number on request."""
        chain = next(i for i, chain in enumerate(self.chains) if chain[: len(path) - 1] == path[:-1])
        total = torch.stack([token_logprobs[chain][:, depth, token] for depth, token in enumerate(path)]).sum(0)
        return total / len(path) if self.settings.length_normalisation == "token" else total

    def plain_runs(self, input_ids: Tensor, attention_mask: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Per chain: logits (B, 1 + len(chain), V) from the prompt's last position on, hidden state (B, D) there; float32."""
        for chain in self.chains:
            answer = torch.tensor(chain, device=input_ids.device, dtype=input_ids.dtype).expand(len(input_ids), -1)
            mask = torch.cat([attention_mask, torch.ones_like(answer)], dim=1)
            out = self.language_model(
                input_ids=torch.cat([input_ids, answer], dim=1),
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                logits_to_keep=1 + len(chain),
                output_hidden_states=True,
                use_cache=False,
            )
            yield out.logits.float(), out.hidden_states[-1][:, -1 - len(chain)].float()

    def split_runs(self, boundaries: Sequence[Boundary]) -> Iterator[tuple[Tensor, Tensor]]:
        """The same from the trunk's states: the top layers alone."""
        assert self.split is not None, "call use_split() before a forward with boundaries"
        for number, chain in enumerate(self.chains):
            hidden = self.split.top(*pad_left([boundary.states[number] for boundary in boundaries]))[:, -1 - len(chain) :]
            yield self.split.logits(hidden).float(), hidden[:, 0].float()


def masked_log_softmax(scores: Tensor, legal: Tensor) -> Tensor:
    """Renormalise (B, A) scores over the legal actions; illegal ones get -inf, that is probability exactly 0."""
    return scores.masked_fill(~legal, -torch.inf).log_softmax(-1)


def _answer_chains(paths: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
    """The token sequences after which a next token must be scored, without those that others begin with.

    With SmolLM2 (Buy and Hold one token, Sell two) this is one chain, Sell's first token: one forward scores all.
    """
    inner = sorted({path[:-1] for path in paths}, key=len, reverse=True)
    kept: list[tuple[int, ...]] = []
    for chain in inner:
        if not any(other[: len(chain)] == chain for other in kept):
            kept.append(chain)
    return tuple(kept)


def _head(inputs: int, width: int, outputs: int, dropout: float, gain: float) -> nn.Sequential:
    first, last = nn.Linear(inputs, width), nn.Linear(width, outputs)
    for layer, scale in ((first, 2**0.5), (last, gain)):
        nn.init.orthogonal_(layer.weight, scale)  # times `scale`: a gain of 0 gives zeros
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.Tanh(), nn.Dropout(dropout), last)
