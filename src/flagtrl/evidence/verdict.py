"""What a table says in words, computed from it; and how the agent behaved."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from flagtrl.evidence.backtest import Backtest
from flagtrl.market.ledger import ACTION_WORDS
from flagtrl.market.metrics import Metrics

TWO_SIDED_5_PERCENT = 1.96  # quantile of the normal distribution
# the row of a kind of luck's best, and who they are
LUCK = {
    "random_p95": "random policies",
    "matched_p95": "accounts with its own times in the market, in another order,",
    "perturbed_p95": "random models of its kind",
}
SAME_VALUE = 1e-9  # relative difference of two account values that counts as none


def behaviour(run: Backtest) -> dict[str, Any]:
    """How an agent acted over a window.

    Returns:
        entropy: mean over its decisions, in nats, of the policy before any temperature.
            action_shares: by word.
        exposure: share of the bars on which it held shares. trades: orders that were filled.
        switching_rate: the same as a share of the decisions.
        depends_on_day: whether it ever decided otherwise in the same position.
        mean_probabilities: by position, then by word: of an untrained model its label prior.
    """
    p = run.probabilities
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return {
        "entropy": float(-(p * logs).sum(-1).mean()),
        "action_shares": {
            word: float(np.mean(run.actions == a)) for a, word in enumerate(ACTION_WORDS)
        },
        "exposure": float(np.mean(run.shares > 0)),
        "trades": int(np.count_nonzero(np.diff(run.shares))),
        "switching_rate": float(np.mean(np.diff(run.shares) != 0)),
        "depends_on_day": depends_on_day(run),
        "mean_probabilities": _by_position(run),
    }


def _by_position(run: Backtest) -> dict[str, dict[str, float]]:
    held, found = run.shares[:-1] > 0, {}
    for name, rows in (("flat", ~held), ("long", held)):
        if rows.any():
            means = run.probabilities[rows].mean(0).tolist()
            found[name] = dict(zip(ACTION_WORDS, means, strict=True))
    return found


def depends_on_day(run: Backtest) -> bool:
    """Whether two bars in the same position were decided differently."""
    held = run.shares[:-1] > 0
    return any(len(set(run.actions[held == position].tolist())) > 1 for position in (False, True))


def verdict(
    rows: Mapping[str, Mapping[str, Metrics]],
    curves: Mapping[str, np.ndarray],
    agent: Backtest,
    periods_per_year: int,
    train_rows: Mapping[str, Mapping[str, Metrics]] | None = None,
) -> list[str]:
    """Plain sentences about the row `agent_greedy`.

    Args:
        rows: the test window's table.
        curves: account values (n,) by row.
        agent: the greedy pass.
        periods_per_year: of the market.
        train_rows: the training window's table.
    """
    said = []
    if not depends_on_day(agent):
        said.append("agent_greedy: its decisions do not depend on the day, only on its position.")
    for row in ("buy_and_hold_by_order", "buy_and_hold", "flat"):
        if row in curves and np.allclose(curves[row], agent.values, rtol=SAME_VALUE, atol=0):
            said.append(f"agent_greedy is identical to {row}, on every day.")
            break
    said += _beside_luck(rows)
    if "agent_without_news" in rows:
        blind = rows["agent_without_news"]["standard"].CR
        said.append(f"Shown every day as one without news, it makes {blind:.1f}%.")
    if "untrained_calibrated" in rows:
        base = rows["untrained_calibrated"]["standard"].CR
        said.append(
            f"The same model before training, with its label prior removed, made {base:.1f}%."
        )
    said += least_ratio(len(agent.values) - 1, periods_per_year)
    if train_rows and "untrained_calibrated" in train_rows:
        made = {row: by["standard"].CR for row, by in train_rows.items()}
        kind = max((row for row in LUCK if row in made), key=lambda row: made[row])
        luck = f"95% of {LUCK[kind]} at most {made[kind]:.1f}%"
        untrained = made["untrained_calibrated"]
        said.append(_in_sample(made["agent_greedy"], untrained, made[kind], luck))
    return said


def least_ratio(returns: int, periods_per_year: int) -> list[str]:
    """The Sharpe ratio a year from which on so many returns show that it is not 0: where the true
    one is 0, its standard error a bar is 1 / sqrt(n - 1). Nothing of one return.
    """
    if returns < 2:
        return []
    least = TWO_SIDED_5_PERCENT * math.sqrt(periods_per_year / (returns - 1))
    return [
        f"With {returns} returns, a Sharpe ratio below {least:.2f} is not significantly different "
        "from zero (5%, two-sided)."
    ]


def _beside_luck(rows: Mapping[str, Mapping[str, Metrics]]) -> list[str]:
    """How the greedy return compares with each kind of luck in the table."""
    said = []
    ours = rows["agent_greedy"]["standard"].CR
    if "random_p5" in rows:
        low, high = (rows[f"random_p{share}"]["standard"].CR for share in (5, 95))
        within = low <= ours <= high
        where = "within" if within else "above" if ours > high else "below"
        said.append(
            f"Its return of {ours:.1f}% is {where} the band of random policies, {low:.1f} to "
            f"{high:.1f}%"
            + (": chance alone can explain it." if within else ", in which 90% of them lie.")
        )
    if "matched_p5" in rows:
        low, high = (rows[f"matched_p{share}"]["standard"].CR for share in (5, 95))
        said.append(
            "Accounts that are in the market as long and trade as often, at other times, made "
            f"{low:.1f} to {high:.1f}% in 90% of draws."
        )
    if "perturbed_p5" in rows:
        low, high = (rows[f"perturbed_p{share}"]["standard"].CR for share in (5, 95))
        said.append(
            "Of models of its kind whose weights are moved at random instead of trained, 90% made "
            f"{low:.1f} to {high:.1f}%."
        )
    return said


def _in_sample(ours: float, untrained: float, chance: float, luck: str) -> str:
    made = f"In sample it made {ours:.1f}%, untrained {untrained:.1f}%, and {luck}"
    if ours > max(chance, untrained):
        return f"{made}: it learnt its training window, which is no evidence of skill."
    if ours > untrained:
        return f"{made}: more than before training, and no more than chance."
    return f"{made}: it did not even learn its training window."
