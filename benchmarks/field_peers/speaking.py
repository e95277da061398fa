"""The chances of the three answers, for peers whose policy is a language model that speaks."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from common import ACTIONS


def scores_of(
    model: Any, tokenizer: Any, words: Sequence[str] = ACTIONS, batch: int = 64
) -> Callable[[Sequence[str]], np.ndarray]:
    """As `Watch.look` asks: (N, A) logits of the actions' first tokens after N prompts."""
    ids = [tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in words]

    @torch.no_grad()
    def scores(texts: Sequence[str]) -> np.ndarray:
        was, parts = model.training, []
        model.eval()
        for i in range(0, len(texts), batch):
            rows = tokenizer(
                list(texts[i : i + batch]),
                return_tensors="pt",
                padding=True,
                padding_side="left",
                add_special_tokens=False,
            )
            rows.pop("token_type_ids", None)
            parts.append(model(**rows).logits[:, -1, ids].float().numpy())
        model.train(was)
        return np.concatenate(parts)

    return scores
