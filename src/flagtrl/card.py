"""A run's model card, written from what was measured."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from flagtrl.errors import AdapterError, reason
from flagtrl.evidence.report import CURVE_FILE, RESULTS_FILE
from flagtrl.evidence.rows import markdown_table
from flagtrl.own_code import own_options
from flagtrl.policy.adapters import PolicySettings
from flagtrl.policy.prior import PLAIN_PEFT_LACKS, lacks_offsets
from flagtrl.policy.provenance import (
    ADAPTER_CONFIG,
    HUB_FILE,
    on_hub,
    public_name,
    without_paths,
)
from flagtrl.record import BaseFacts, RunRecord

CARD_FILE = "README.md"
_JUDGED = ("train", "test")  # windows
QA_FILE, QA_FIGURE = "qa.md", "qa.png"  # what `flagtrl qa` leaves in a run's directory


def model_card(directory: str | Path, repo_id: str) -> str:
    """A run's model card in Markdown: what it is, what was measured, what it cannot show, how to
    load it.

    Raises:
        AdapterError: a damaged file, or results of other windows than the run's own, as a backtest
            of other days has them.
    """
    directory = Path(directory)
    record = RunRecord.read(directory)
    adapter, results = _read(directory / ADAPTER_CONFIG), {}
    if (directory / RESULTS_FILE).is_file():
        results = _read(directory / RESULTS_FILE)
        _check_windows(results, record, directory)
    base = str(adapter.get("base_model_name_or_path") or "a model made in memory")
    file = HUB_FILE.fullmatch(base)
    public = on_hub(base)
    repository = file[1] if file else base
    trades = "prompt_style" in record.prompt
    data = ModelCardData(
        base_model=repository if public else None,
        library_name="peft",
        pipeline_tag="text-generation",
        tags=["flagtrl", "ppo", "reinforcement-learning", *(["trading", "finance"] * trades)],
    )
    base_name = public_name(base)
    parts = [
        f"---\n{data.to_yaml()}\n---\n\n# {repo_id}",
        _introduction(base_name, record if not trades else None),
        ""
        if public
        else (
            f"The base model was not on the Hub: `{base_name}`; the adapter is of use with that "
            "model alone."
        ),
        _weights_line(record.base),
        _data_section(record),
        _result_section(results, record, (directory / CURVE_FILE).is_file()) if trades else "",
        _qa_section(directory),
        _LIMITS if trades else "",
        _loading_section(repo_id, base_name, record, public, trades),
        _settings_section(record),
        "## Licence\n\nThe adapter changes the base model and is bound by its licence"
        + (f"; see [{repository}](https://huggingface.co/{repository})." if public else ".")
        + (" The market data are not part of this repository." if trades else ""),
        _CITATION,
    ]
    text = "\n\n".join(part for part in parts if part) + "\n"
    ModelCard(text)  # its header is parsed: a card that the Hub would refuse fails here
    return text


def _introduction(base: str, record: RunRecord | None) -> str:
    """What the policy is; with a record, of another task than trading."""
    by = (
        "trained with PPO by [flagtrl](https://arxiv.org/abs/2502.11433), the open implementation "
        "of FLAG-Trader."
    )
    if record is None:
        return (
            f"A trading policy: the likelihood that `{base}` gives to the words Buy, Sell and Hold "
            f"after a prompt about the market, {by}"
        )
    environment = escaped(str(record.market.get("environment", "an environment of its own")))
    words = record.prompt.get("actions")
    named = "each state's own" if words is None else escaped(", ".join(words))
    return (
        f"A policy for {environment}: the likelihood that `{base}` gives to an action's words "
        f"({named}) after a state told in words, {by}"
    )


def write_card(directory: Path) -> None:
    """Write a run's card to its directory, under the directory's name."""
    (directory / CARD_FILE).write_text(model_card(directory, directory.name), encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; AdapterError where the file is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged ({reason(error)}); restore it") from error
    if not isinstance(content, dict):
        raise AdapterError(f"{path} is damaged (it holds no JSON object); restore it")
    return content


def _check_windows(results: Mapping[str, Any], record: RunRecord, directory: Path) -> None:
    """Refuse results that are not of the run's own windows; AdapterError."""
    measured = results.get("windows")
    measured = measured if isinstance(measured, dict) else {}
    theirs = {name: list(days or ())[:2] for name, days in measured.items() if name in _JUDGED}
    ours = {name: list(days)[:2] for name, days in record.windows.items() if name in _JUDGED}
    if ours and theirs != ours:
        told = f"is of the windows {theirs}" if theirs else "does not say of which windows it is"
        raise AdapterError(
            f"{directory}: {RESULTS_FILE} {told}, the run's own are {ours}; measure them again "
            f"(flagtrl backtest --adapter {directory}), and put those results there"
        )


def _weights_line(base: BaseFacts) -> str:
    """What the base's weights were, where the run says so."""
    if base.source is None or base.weights is None:
        return ""
    text = f"Base weights in training: {base.weights} (from: {public_name(base.source)})."
    if base.source.startswith("package"):
        text += (
            f" They are not the full-precision weights of `{base.id}`, on which this adapter "
            "acts otherwise: `flagtrl backtest` and `merge` take the package's, where it is "
            "installed."
        )
    return text


def _data_section(record: RunRecord) -> str:
    data = record.data
    if data is None:
        return ""
    shown = Path(data.source).name if os.sep in data.source else data.source
    lines = [
        f"## Data\n\n{escaped(data.symbol)}, from {escaped(shown)} (sha256 of its prices and news: "
        f"`{data.sha256[:16]}`)\n"
    ]
    for name, (begin, end, bars) in record.windows.items():
        lines.append(f"- {name}: {begin} to {end}, {bars} bars")
    lines.append(f"- seed: {record.seed}; base revision: {record.base.revision}")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """A user's text as Markdown shows it, on one line: no markup, no control characters."""
    plain = "".join(c if c.isprintable() else " " for c in text)
    return re.sub(r"([\\`*_{}\[\]<>#|~$])", r"\\\1", plain)


def _result_section(results: dict[str, Any], record: RunRecord, has_curve: bool) -> str:
    rows = results.get("test")
    if not rows:
        return "## Result\n\nNothing was measured on a test window."
    verdict = "".join(f"\n- {sentence}" for sentence in results.get("verdict", []))
    picture = f"\n\n![Account value over the test window]({CURVE_FILE})" if has_curve else ""
    return (
        f"## Result\n\nOn the test window{_how_unseen(record)}, beside Buy and hold, the flat "
        "account and Random policies. CR, AV and MDD are percentages; `paper` is FLAG-Trader's "
        "convention, `standard` the usual one.\n\n"
        + markdown_table(rows)
        + (f"\n{verdict}" if verdict else "")
        + picture
    )


def _how_unseen(record: RunRecord) -> str:
    """What of the test window training saw, by the windows of the record."""
    if not {"train", "test"} <= set(record.windows):
        return ""
    train, test = record.windows["train"], record.windows["test"]
    begins = record.options.get("init_adapter")
    former = "" if begins is None else "; what the run it began from saw is not known here"
    if train[1] < test[0]:  # ISO dates
        return f" ({test[2]} bars, all after training's last day, {train[1]}{former})"
    return f" ({test[2]} bars, of which training saw some, or later ones: no test of skill{former})"


def _qa_section(directory: Path) -> str:
    if not (directory / QA_FILE).is_file() or (directory / QA_FILE).is_symlink():
        return ""
    picture = f"\n\n![Adapter minus base]({QA_FIGURE})" if (directory / QA_FIGURE).is_file() else ""
    return (
        "## Financial QA: base against adapter\n\n"
        f"{(directory / QA_FILE).read_text(encoding='utf-8').strip()}{picture}"
    )


def _loading_section(repo_id: str, base: str, record: RunRecord, public: bool, trades: bool) -> str:
    file = HUB_FILE.fullmatch(base)
    opened = f'"{file[1]}", gguf_file="{file[2]}"' if file else f'"{base}"'
    named = "" if public else " --base DIRECTORY"
    lacking = lacks_offsets(PolicySettings(**record.policy))
    lacks = f"\n\nNote: {PLAIN_PEFT_LACKS}." if lacking else ""
    return f"""## How to use it

With plain PEFT, without flagtrl:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({opened}), "{repo_id}")
```

With flagtrl, which also loads the value head{_with_flagtrl(repo_id, named, record, trades)}
{lacks}""".rstrip()


def _with_flagtrl(repo_id: str, named: str, record: RunRecord, trades: bool) -> str:
    merging = f"`flagtrl merge {repo_id} OUT{named}` makes one plain model of base and adapter;"
    if not trades:
        return f""" (prompts come from `to_text`, as in training):
{merging}
`flagtrl.learning.episodes.load_text_policy` loads a directory that `flagtrl pull` made."""
    told = without_paths({**record.market, **record.prompt})
    own = own_options(told)
    options, code = named + own, " Code that the options name is not part of it." if own else ""
    return f""" and writes the prompts (style `{told["prompt_style"]}`):
`flagtrl backtest --adapter {repo_id}{options}` trades its test window again, or any other;
{merging}
`flagtrl.policy.loading.load_policy` loads a directory that `flagtrl pull` made.{code}"""


def _settings_section(record: RunRecord) -> str:
    shown = {
        **{"policy": record.policy, "prompt": record.prompt, "market": record.market},
        **{"training": record.course, "versions": record.versions},
    }
    return f"## Settings\n\n```json\n{json.dumps(without_paths(shown), indent=1)}\n```"


_LIMITS = """## Limits

One asset over one window shows little. First compare the agent with the band of random policies
(p5 to p95). The only trading costs are those in the settings below. This is not investment
advice."""

_CITATION = """## Citation

```
@article{xiong2025flagtrader,
  title = {FLAG-Trader: Fusion LLM-Agent with Gradient-based Reinforcement Learning for Financial
    Trading},
  author = {Guojun Xiong and others},
  journal = {arXiv:2502.11433},
  year = {2025}
}
```"""
