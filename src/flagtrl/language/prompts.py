"""Prompts: what the language model reads about one bar. A new style is one more function in this
file, or in a file of the user's own, named as `path/to/file.py:function`.

A style takes an Observation and the headlines that fit its token budget, and returns a Prompt. The
four parts of FLAG-Trader's prompt come in the paper's order: task, legible actions, state, output
format. `shared` holds what every visit to a bar has in common (task, actions, market), so that it
can be computed once; `own` holds the account and all that follows. Dates are left out: a pretrained
model may remember what happened on them.
"""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from flagtrl.errors import ConfigError, kind_and_words
from flagtrl.language.prompt import Prompt
from flagtrl.market.data import SENTIMENTS, count_sentiments
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.market.observation import Observation
from flagtrl.own_code import find_own, load_own

ANSWER_PREFIX = '{"Action": "'
# The three answers as the model is to write them. Named in full they get over nine tenths of
# SmolLM2's probability; asked to "answer in JSON" alone it gives the action words a third.
ANSWER_FORMAT = (
    'Answer with one JSON object: {"Action": "Buy"}, {"Action": "Sell"} or {"Action": "Hold"}.'
)


# The short styles name the answers in their shared part, where they cost nothing, and end in a
# question.
_QUESTION = "Buy, Sell or Hold? Answer in JSON."

# The same two sentences for a model that acts by calling tools.
_BY_TOOL = {
    ANSWER_FORMAT: "Call one tool: buy, sell or hold.",
    _QUESTION: "Buy, sell or hold? Call the tool.",
}

PromptStyle = Callable[[Observation, Sequence[str]], Prompt]


def asking_for_a_tool(prompt: Prompt) -> str:
    """The words of a prompt, with a call of `buy`, `sell` or `hold` asked for in place of an answer
    in JSON.
    """
    text = prompt.shared + prompt.own
    for answer, call in _BY_TOOL.items():
        text = text.replace(answer, call)
    return text


def paper(observation: Observation, headlines: Sequence[str]) -> Prompt:
    """The paper's fields, spelt out: prices, news sentiment, account_status,
    previous_decision_metrics.

    As JSON without blanks, and without the decimals of a reward of 0: SmolLM2 has a token for every
    blank and digit.
    """
    counts = dict(zip(SENTIMENTS, count_sentiments(observation.news[-1]), strict=True))
    news = f'"news":{_json(headlines)},\n' if headlines else ""
    shared = (
        f"You trade one asset, {observation.symbol}, once a day. "
        "Maximise long-term return while managing risk.\n"
        "Buy spends all cash on it: for when you expect its price to rise. Sell liquidates every "
        "share: for when you expect a fall. "
        "Hold changes nothing: for when a trade is not worth it.\n"
        "Actions: {Buy, Sell, Hold}\n"
        f'State: {{"historical_prices":{_numbers(observation.prices)},\n'
        f'"news_sentiment":{_json(counts)},\n{news}'
    )
    account = (
        f'{{"cash_balance":{_money(observation.cash)},"asset_position":{_short(observation.shares)},'
        f'"total_account_value":{_money(observation.value)}}}'
    )
    metrics = (
        f'{{"recent_rewards":{_numbers(observation.rewards, 3)},'
        f'"net_values":[{",".join(_money(value) for value in observation.net_values)}],'
        f'"actions":"{" ".join(ACTION_WORDS[a] for a in observation.actions)}"}}'
    )
    own = f'"account_status":{account},\n"previous_decision_metrics":{metrics}}}\n{ANSWER_FORMAT}'
    return Prompt(shared, own)


def compact(observation: Observation, headlines: Sequence[str]) -> Prompt:
    """The same facts in few tokens: the last price, moves in tenths of a percent, initials for
    actions.

    `day` lists the daily price moves up to now, `did` each action's initial with its reward in
    hundredths, oldest first, and no number where that is 0. What follows from other fields is left
    out: the account's value from cash, shares and price, and past values from the price moves and
    what was done.
    """
    shared = (
        f"{_short_task(observation)}Did: action and reward.\n"
        f"price {_short(observation.prices[-1])}, day {_moves(observation.prices)}\n"
        f"{_short_news(observation, headlines)}"
    )
    done = zip(observation.actions, observation.rewards, strict=True)
    did = (
        " ".join(f"{ACTION_WORDS[action][0]}{round(100 * reward) or ''}" for action, reward in done)
        or "none"
    )
    cash, shares = f"cash {observation.cash:.0f}", f"shares {_short(observation.shares)}"
    account = (
        f"{cash}, {shares}"
        if observation.cash > 0 and observation.shares > 0
        else shares
        if observation.shares
        else cash
    )
    return Prompt(shared, f"{account}\ndid {did}\n{_QUESTION}")


def markov(observation: Observation, headlines: Sequence[str]) -> Prompt:
    """The position is all that is said of the account, and prices are moves: a bar has two prompts
    in all, for ever.

    What the account was worth and did before cannot change what an action earns, so with a reward
    that adds up over steps nothing is lost, and every visit to a bar in the same position repeats a
    known prompt.
    """
    shared = (
        f"{_short_task(observation)}day {_moves(observation.prices)}\n"
        f"{_short_news(observation, headlines)}"
    )
    return Prompt(shared, f"position {'long' if observation.shares > 0 else 'flat'}\n{_QUESTION}")


@cache
def style_names() -> tuple[str, ...]:
    """The names of the prompt styles of this module: its public functions of an observation and
    headlines.
    """
    module = sys.modules[__name__]
    return tuple(
        name
        for name, fn in inspect.getmembers(module, inspect.isfunction)
        if fn.__module__ == __name__
        and not name.startswith("_")
        and list(inspect.signature(fn).parameters) == ["observation", "headlines"]
    )


def prompt_style(spec: str) -> PromptStyle:
    """A prompt style by its name, or a user's own as `path/to/file.py:function`.

    Raises:
        ConfigError: an unknown name, a missing file or function. A user's own style raises it when
            it raises anything, or returns no Prompt.
    """
    if not find_own("prompt_style", spec, style_names()):
        return getattr(sys.modules[__name__], spec)
    style = load_own("prompt_style", spec)

    def named(observation: Observation, headlines: Sequence[str]) -> Prompt:
        where = f"prompt_style {spec!r}, {observation.symbol} {observation.date}"
        try:
            prompt = style(observation, headlines)
        except Exception as error:
            raise ConfigError(f"{where}: it raised {kind_and_words(error)}; mend it") from error
        if not isinstance(prompt, Prompt) or not (
            isinstance(prompt.shared, str) and isinstance(prompt.own, str)
        ):
            raise ConfigError(
                f"{where}: it returned {prompt!r:.60}; it must return a Prompt(shared, own) of two "
                "texts, of flagtrl.language.prompt"
            )
        return prompt

    return named


def _short_task(observation: Observation) -> str:
    return (
        f"Trade {observation.symbol}: grow the account, limit risk. Buy: all cash in. Sell: all "
        f"out. Hold: wait.\n{ANSWER_FORMAT}\n"
    )


def _short_news(observation: Observation, headlines: Sequence[str]) -> str:
    positive, neutral, negative = count_sentiments(observation.news[-1])
    return (f"news {positive} good {negative} bad {neutral} neutral\n") + "".join(
        f"- {line}\n" for line in headlines
    )


def _numbers(values: Sequence[float] | np.ndarray, decimals: int = 2) -> str:
    """[1.50,2.25,0]: fixed decimals, but four significant digits for prices below 1, and none for a
    rounded 0.
    """
    rounded = (round(float(v), decimals) for v in values)
    fixed = (v == 0 or abs(v) >= 1 or decimals > 2 for v in values)
    shown = (
        (f"{r:.{decimals}f}" if r else "0") if f else f"{v:.4g}"
        for r, f, v in zip(rounded, fixed, values, strict=True)
    )
    return f"[{','.join(shown)}]"


def _json(content: Sequence[str] | dict[str, int]) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _short(value: float) -> str:
    """Four significant digits, never in scientific notation."""
    return (
        np.format_float_positional(value, precision=4, fractional=False, trim="-") if value else "0"
    )


def _money(value: float) -> str:
    """Whole units of account, or cents where there are few."""
    return f"{value:.0f}" if value == 0 or abs(value) >= 10_000 else f"{value:.2f}"


def _moves(values: Sequence[float] | np.ndarray) -> str:
    """Moves between neighbours in tenths of a percent, as whole numbers."""
    values = np.asarray(values, dtype=np.float64)
    return " ".join(str(round(1000 * move)) for move in values[1:] / values[:-1] - 1) or "none"
