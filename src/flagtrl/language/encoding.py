"""Text to token ids: the chat template around a prompt, the answer's prefix, each action's path.

Of any task; what a market's prompts add is in tokens.py.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from flagtrl.errors import PromptError, kind_and_words
from flagtrl.language.prompt import Prompt
from flagtrl.signals import limited

# that a chat template may take
TEMPLATE_S = 10.0
# stands for the prompt while the chat template is rendered around it
_CONTENT = "<<<flagtrl-content>>>"


class Encoder:
    """Prompts -> EncodedPrompt, with the chat template where the tokenizer has one.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: the model's context, in tokens; a prompt and its longest answer must fit.
        prefix: what the answer begins with, before the action's own words.

    Raises:
        PromptError: a chat template that cannot be used.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, prefix: str):
        self.tokenizer, self.max_length, self.prefix = tokenizer, max_length, prefix
        self._special = _special_tokens(tokenizer)
        self._head, tail = _frame(tokenizer)
        self._tail = tail + prefix
        self._bos = [] if tokenizer.chat_template else _leading_specials(tokenizer)
        self._shared_ids = lru_cache(maxsize=4096)(
            lambda text: tuple(self.tokenize(self._head + text))
        )

    def described(self) -> dict[str, Any]:
        """Its settings, as a run's record has them."""
        raise NotImplementedError

    def fingerprint(self) -> str:
        """SHA-256: equal where prompts read the same."""
        raise NotImplementedError

    def ids_of(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, up to and including the answer's prefix."""
        return self.tokenize(self._head + prompt.shared + prompt.own + self._tail)

    def neutralise(self, text: str) -> str:
        """`text` with every special token of the tokenizer broken by a space, so that it is read as
        plain text.
        """
        for _ in range(8):
            found = [token for token in self._special if token in text]
            if not found:
                return text
            for token in found:
                text = text.replace(
                    token, " ".join(token) if len(token) == 1 else f"{token[0]} {token[1:]}"
                )
        raise PromptError(
            f"the special tokens {found} cannot be removed from the text {text[:80]!r}; clean its "
            "source"
        )

    def tokenize(self, text: str) -> list[int]:
        """Token ids of a text that frame and special tokens are part of."""
        return (
            self._bos + self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        )

    def paths_of(self, words: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """The token ids of each action after the answer's prefix.

        Raises:
            PromptError: a tokenizer that merges an action with what stands before it, or spells
                two alike.
        """
        context = self._head + self._tail
        prefix = self.tokenize(context)
        paths = []
        for word in words:
            ids = self.tokenize(context + word)
            if ids[: len(prefix)] != prefix or len(ids) == len(prefix):
                raise PromptError(
                    f"the tokenizer merges the action {word!r} with {self.prefix!r} before it, "
                    "so its likelihood cannot be read off; use a tokenizer that splits there, or "
                    "move a blank from its end to the action"
                )
            paths.append(tuple(ids[len(prefix) :]))
        if len(set(paths)) < len(paths) or any(
            self.tokenizer.unk_token_id in path for path in paths
        ):
            raise PromptError(
                f"the tokenizer spells {words} as {paths}; the paths must differ and be known to it"
            )
        return tuple(paths)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    # Control tokens are not always flagged as special (Qwen's <think> is not); runs of blanks are
    # no control tokens.
    added = {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()
    }
    return tuple(sorted({*added, *tokenizer.all_special_tokens} - {""}, key=len, reverse=True))


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What stands before and after the prompt's words: the chat template's turn, if any, and the
    answer prefix.
    """
    if not tokenizer.chat_template:
        return "", "\n"
    try:
        with limited(TEMPLATE_S):
            rendered = str(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": _CONTENT}],
                    tokenize=False,
                    add_generation_prompt=True,
                )
            )
    # a template is a program of whoever made the tokenizer: it raises what it likes, or never ends
    except Exception as error:
        raise PromptError(
            f"the tokenizer's chat template fails on a user's message ({kind_and_words(error)}); "
            "pass a tokenizer with a usable template"
        ) from error
    head, found, tail = rendered.partition(_CONTENT)
    if not found:
        raise PromptError(
            "the tokenizer's chat template drops the user's message; pass a tokenizer with a "
            "usable template"
        )
    return head, tail


def _leading_specials(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that the tokenizer puts before every text, such as a beginning-of-sequence token."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for i in range(len(full) - len(plain) + 1):
        if full[i : i + len(plain)] == plain:
            return list(full[:i])
    raise PromptError(
        "the tokenizer changes a text when it adds special tokens; no stable prompt can be made "
        "with it"
    )
