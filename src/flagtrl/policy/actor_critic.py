"""Policy and value in one module on a language model: one forward, so that DDP, FSDP and ZeRO hooks
fire.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from flagtrl.errors import ConfigError
from flagtrl.policy import heads
from flagtrl.policy.adapters import PolicySettings
from flagtrl.policy.backbone import Backbone
from flagtrl.policy.batch import ActorCriticOutput, Paths
from flagtrl.policy.boundary import Boundary
from flagtrl.policy.padding import batches, tokens_per_pass
from flagtrl.policy.prior import LabelPrior, Survey
from flagtrl.policy.provenance import base_fingerprint
from flagtrl.policy.scoring import (
    ChainRun,
    Group,
    LabelScores,
    label_scores,
    masked_log_softmax,
    padded,
    vocabulary_kl,
)
from flagtrl.policy.trie import Trie, grouped, trie_for, trie_of

# The vocabulary matrix is read once for so many prompts; always so many, so that scores do not
# depend on what else is scored.
HEAD_ROWS = 8
# of the heads' state
MEASURED = frozenset({"standard.mean", "standard.deviation", "prior.legal", "prior.offsets"})


class ActorCritic(Backbone):
    """A language model that acts.

    Args:
        language_model: a causal LM with a PEFT adapter; the adapter's parameters are theta_train.
        action_paths: each action's token ids after the answer prefix, indexed by Action; None:
            every prompt has actions of its own.
        settings: policy parameterisation, length normalisation, width of the heads.
        dropout: of the heads' hidden layer while training.
    """

    def __init__(
        self,
        language_model: PeftModel,
        action_paths: Sequence[Sequence[int]] | None,
        settings: PolicySettings | None = None,
        dropout: float = 0.0,
    ):
        settings, paths = settings or PolicySettings(), tuple(map(tuple, action_paths or ()))
        if action_paths is None:
            check_own_actions(settings)
        trie = None if action_paths is None else trie_of(paths)
        super().__init__(language_model, trie, settings.trainable_layers)
        self.settings, self.action_paths = settings, paths
        # set by who has base and tokenizer (`provenance.base_probe`)
        self.base_probe: dict[str, float] | None = None
        # now, while every process holds all weights
        self.base_fingerprint = base_fingerprint(language_model)
        hidden = self.config.get_text_config().hidden_size
        # Values start at exactly 0: rewards of daily trading are small, and a random critic would
        # drown them.
        self.value_head = heads.mlp(hidden, self.settings.head_width, 1, dropout, gain=0.0)
        self.policy_head: nn.Module | None = None
        self.reference_head: nn.Module | None = None
        if self.settings.policy == "head":
            # A small gain starts the policy close to uniform over the legal actions.
            self.policy_head = heads.mlp(
                hidden, self.settings.head_width, len(self.action_paths), dropout, gain=0.01
            )
            self.reference_head = copy.deepcopy(self.policy_head).requires_grad_(False).eval()
        # Both are measured when training starts, over prompts of the training window.
        self.standard = heads.Standardise(hidden)
        self.prior = LabelPrior(len(self.action_paths))

    def forward(
        self,
        legal: Tensor,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        boundaries: Sequence[Boundary] | None = None,
        reference: bool = False,
        survey: bool = False,
        language: bool = False,
        paths: Sequence[Paths | None] | None = None,
    ) -> ActorCriticOutput | Survey:
        """Prompts and legal (B, A) -> ActorCriticOutput.

        Prompts are given as left-padded ids and mask (B, L), with `paths` where some have actions
        of their own, or to the split engine as B boundaries. With `reference`, the policy is the
        initial one: the model with its adapter off, and the initial policy head. With `survey`,
        what the label prior and the heads' standardisation are measured from. With `language`,
        `language_kl` too.
        """
        prompts = (legal.device, input_ids, attention_mask, boundaries, paths)
        runs, index = self.runs(*prompts)
        if survey:
            answers = self._answers(runs, mass=True)
            scored = padded(answers.scores, legal.shape[1])[index]
            return Survey(legal, scored, answers.mass[index], answers.hidden[index])
        drift: Tensor | None = None
        if language:
            whole = [(trie, list(own)) for trie, own in runs]
            with torch.no_grad(), self.adapter_off():
                base = [list(own) for _, own in self.runs(*prompts)[0]]
            drifts = [
                vocabulary_kl(own, of_base, trie.chains)
                for (trie, own), of_base in zip(whole, base, strict=True)
            ]
            drift, runs = torch.cat(drifts)[index], iter(map(Group._make, whole))
        with self.as_reference() if reference else nullcontext():
            scores, hidden = self.scores(runs, reference)
        logprobs = self.logprobs(scores[index], legal)
        return ActorCriticOutput(logprobs, self._values(hidden)[index], drift)

    def untrained_scores(self, legal: Tensor, **prompts: Any) -> Tensor:
        """(B, A) scores of the actions' tokens under the language model without its adapter;
        arguments as `forward`'s.
        """
        runs, index = self.runs(legal.device, **prompts)
        with self.adapter_off():
            return self._answers(runs).scores[index]

    def logprobs(self, scores: Tensor, legal: Tensor) -> Tensor:
        """(B, A) scores -> log pi, the label prior taken out where the settings say so."""
        scores = padded(scores, legal.shape[1])
        if self.settings.prior == "calibrated" and self.policy_head is None:
            scores = self.prior(scores, legal)
        return masked_log_softmax(scores, legal)

    @torch.no_grad()
    def reference_logprobs(self, boundaries: Sequence[Boundary], legal: Tensor) -> Tensor:
        """(B, A) log pi_ref as `forward(reference=True)` gives it, with all kept that never
        changes.

        That is the scores of a prompt seen before, and the top layers' keys and values of a known
        shared part.
        """
        assert self.trunk is not None, "call use_split() first"
        scores = {
            boundary: self.trunk.reference_scores(boundary.prompt, legal.device)
            for boundary in boundaries
        }
        missing = [boundary for boundary, known in scores.items() if known is None]
        hidden: dict[Boundary, Tensor] = {}
        with self.as_reference() if missing else nullcontext():
            for rows in batches(
                [self.trunk.own_tokens(boundary.prompt) for boundary in missing],
                tokens_per_pass(legal.device),
            ):
                chosen = [missing[row] for row in rows]
                past = self.trunk.reference_past(chosen, legal.device)
                hidden |= zip(chosen, self.split_hidden(chosen, legal.device, past), strict=True)
            for trie, rows in grouped([self.trunk.trie_of(each.prompt) for each in hidden]).items():
                asked, size = list(hidden), 1 if trie.branches else HEAD_ROWS
                for start in range(0, len(rows), size):
                    group = [asked[row] for row in rows[start : start + size]]
                    filled = group + [group[-1]] * (size - len(group))
                    states = torch.stack([hidden[each][: 1 + len(trie.nodes)] for each in filled])
                    runs = iter([Group(trie, self.split_runs(states, trie))])
                    found = self.scores(runs, reference=True)[0]
                    for boundary, row in zip(group, found, strict=False):
                        scores[boundary] = row.clone()  # not a view: it would keep the whole batch
                        self.trunk.keep_reference_scores(boundary.prompt, row.clone())
        known = [padded(scores[boundary], legal.shape[1]) for boundary in boundaries]  # type: ignore[arg-type]
        return self.logprobs(torch.stack(known), legal)

    def parameter_groups(
        self, learning_rate: float, head_learning_rate: float, weight_decay: float = 0.0
    ) -> list[dict]:
        """theta_train with beta = `learning_rate`; theta_V and theta_P with eta =
        `head_learning_rate`.

        Matrices decay, biases and norms do not.
        """
        groups = []
        for in_top, rate in ((True, learning_rate), (False, head_learning_rate)):
            for matrices, decay in ((True, weight_decay), (False, 0.0)):
                chosen = [
                    p
                    for name, p in self.named_parameters()
                    if p.requires_grad
                    and name.startswith("language_model.") == in_top
                    and (p.ndim > 1) == matrices
                ]
                if chosen:
                    groups.append({"params": chosen, "lr": rate, "weight_decay": decay})
        return groups

    def head_state(self) -> dict[str, Tensor]:
        """All tensors that are not the language model's: the heads', the standardisation and the
        label prior.
        """
        own = [(name, module) for name, module in self.named_children() if name != "language_model"]
        return {
            k: v for name, module in own for k, v in module.state_dict(prefix=f"{name}.").items()
        }

    def load_head_state(self, state: dict[str, Tensor]) -> None:
        """Load what `head_state` gave; every tensor must be there, and no other.

        Heads of flagtrl 0.1.0's first runs, which read the hidden state as it is, have no measured
        tensors: they stay so.
        """
        expected = set(self.head_state())
        if set(state) not in (expected, expected - MEASURED):
            raise ConfigError(
                f"the saved heads hold {sorted(state)}, this policy needs {sorted(expected)}; load "
                "it with its own settings"
            )
        self.load_state_dict(self.load_measured(state), strict=False)
        if self.trunk is not None:
            self.trunk.cache.clear()  # the reference's scores are of the head that was

    def load_measured(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Load of `head_state` what was measured before training, whose shapes are the saved ones;
        what is left of it.
        """
        if set(state) >= MEASURED:
            self.standard.load(state["standard.mean"], state["standard.deviation"])
            self.prior.load(state["prior.legal"], state["prior.offsets"])
        return {name: tensor for name, tensor in state.items() if name not in MEASURED}

    def scores(self, runs: Iterator[Group], reference: bool) -> tuple[Tensor, Tensor]:
        """Unmasked scores (B, A), log-likelihoods up to a term common to all actions, and the
        hidden state (B, D); -inf where a prompt has fewer actions than another.
        """
        head = self.reference_head if reference else self.policy_head
        if head is None:
            answers = self._answers(runs)
            return answers.scores, answers.hidden
        hidden = torch.cat([next(iter(own)).hidden for _, own in map(self._checked, runs)])
        return heads.apply(head, self.standard(hidden)), hidden

    def _answers(self, runs: Iterator[Group], mass: bool = False) -> LabelScores:
        """Of all groups, one after the other."""
        found = [self._label_scores(own, trie, mass) for trie, own in map(self._checked, runs)]
        scores, hidden, share = zip(*found, strict=True)
        width = max(each.shape[-1] for each in scores)
        return LabelScores(
            torch.cat([padded(each, width) for each in scores]), torch.cat(hidden), torch.cat(share)
        )

    def _checked(self, group: Group) -> Group:
        if group.trie is not self.trie:
            check_own_actions(self.settings)
        return group

    def _label_scores(
        self, runs: Iterable[ChainRun], trie: Trie | None = None, mass: bool = False
    ) -> LabelScores:
        per_token = self.settings.length_normalisation == "token"
        return label_scores(runs, trie_for(None, trie or self.trie), per_token, mass)

    def _values(self, hidden: Tensor) -> Tensor:
        return heads.apply(self.value_head, self.standard(hidden)).squeeze(-1)


def check_own_actions(settings: PolicySettings) -> None:
    """Refuse settings that fix the actions, where prompts have actions of their own."""
    for name, value, wanted in (
        ("policy", settings.policy, "action_tokens"),
        ("prior", settings.prior, "raw"),
    ):
        if value != wanted:
            raise ConfigError(
                f"{name} is {value!r}, which is of one set of actions, and prompts have actions of "
                f"their own; use {name}={wanted}"
            )
