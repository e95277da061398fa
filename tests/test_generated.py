"""Five hundred generated inputs: data files, settings, model directories, saved policies. Each is
read as its maker knows it to be, or ends with exit code 2 and one line that names what is wrong.

docs/limits.md has count and seed (`docs/tables.py`).
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from safetensors.torch import load_file, save_file

from flagtrl import cli
from flagtrl.errors import FlagtrlError
from flagtrl.policy.bases import load_base
from flagtrl.policy.saving import read_settings
from training import tiny_trainer

SEED = 20261129
COUNTS = {"data files": 300, "settings": 120, "models": 40, "policies": 40}


class Case(NamedTuple):
    """An input: how to give it, and what comes of it; None: it is refused."""

    about: str
    run: Callable[[], Any]
    known: Any


def cases_of(kind: str, make: Callable[[random.Random, int], Case]) -> list[Case]:
    """All of a kind; at least a third of them valid."""
    cases = [make(random.Random(f"{SEED} {kind} {n}"), n) for n in range(COUNTS[kind])]
    valid = sum(case.known is not None for case in cases)
    assert valid >= len(cases) / 3, f"{valid} of {len(cases)} are valid"
    assert valid < len(cases), "some are not"
    return cases


def check(cases: list[Case], capsys: pytest.CaptureFixture) -> None:
    """Each gives what is known of it, or is refused in one line."""
    failures = []
    for case in cases:
        capsys.readouterr()
        try:
            found = case.run()
        except SystemExit as stopped:
            said = capsys.readouterr().err.strip()
            found = None if stopped.code == 2 and is_one_line(said) else f"{stopped.code}: {said}"
        except FlagtrlError as error:
            found = None if is_one_line(f"flagtrl: {error}") else str(error)
        except Exception as error:  # what this is for
            found = repr(error)
        if found != case.known:
            failures.append((case.about, found, case.known))
    assert not failures, f"{len(failures)} of {len(cases)}: {failures[:5]}"


def is_one_line(said: str) -> bool:
    """One line of ours, or argparse's three; told to a terminal as it is."""
    lines = said.splitlines()
    ours = [line for line in lines if line.startswith("flagtrl")]
    return (len(lines) == 1 or ("usage:" in lines[0] and len(lines) <= 3)) and bool(ours or lines)


# ------------------------------------------------------------------------------------- data files

DATES = {
    "iso": "%Y-%m-%d",
    "compact": "%Y%m%d",
    "day first": "%d/%m/%Y",
    "month first": "%m/%d/%Y",
    "german": "%d.%m.%Y",
    "named": "%b %d, %Y",
    "stamp": "%Y-%m-%dT00:00:00Z",
}
NAMES = {
    "date": ("date", "Date", "timestamp", "<DATE>", "TradeDate", "ds"),
    "price": ("close", "Close", "Adj Close", "adj_close", "Close/Last", "c", "price"),
    "news": ("headline", "title", "news", "text"),
}


def drawn_bars(r: random.Random) -> list[tuple[date, float]]:
    """Working days that tell a day from a month, and prices with cents."""
    day, bars, price = date(2020, 1, 1) + timedelta(r.randrange(900)), [], 50 + 100 * r.random()
    for _ in range(r.randint(25, 60)):
        day += timedelta(1)
        while day.weekday() > 4:
            day += timedelta(1)
        price *= 1 + 0.02 * (r.random() - 0.5)
        bars.append((day, round(price, 2)))
    return bars


def drawn_table(r: random.Random, bars: list[tuple[date, float]]) -> tuple[list[list[str]], str]:
    """Rows with a header, and the delimiter."""
    delimiter, style = r.choice(",;\t|"), r.choice(list(DATES))
    mark = r.choice((".", ",")) if delimiter != "," else "."
    header = [r.choice(NAMES["date"]), r.choice(NAMES["price"]), "volume"]
    has_news = r.random() < 0.4
    if has_news:
        header.append(r.choice(NAMES["news"]))
    rows = []
    for n, (day, price) in enumerate(bars):
        # cents that no thousands look like
        row = [day.strftime(DATES[style]), f"{price:.2f}".replace(".", mark), str(r.randint(1, 9))]
        rows.append([*row, f"Item number {n}"] if has_news else row)
    if r.random() < 0.3:
        rows.reverse()
    return [header, *rows], delimiter


def text_of(rows: list[list[str]], delimiter: str) -> str:
    return "".join(
        delimiter.join(f'"{cell}"' if delimiter in cell else cell for cell in row) + "\n"
        for row in rows
    )


Rows = list[list[str]]


def cell(value: str, column: int) -> Callable[[Rows, random.Random], Rows]:
    def change(rows: Rows, r: random.Random) -> Rows:
        rows[r.randrange(2, len(rows) - 1)][column] = value
        return rows

    return change


def moved(rows: Rows, r: random.Random) -> Rows:
    """Two bars exchanged, not the first or the last."""
    at = r.randrange(3, len(rows) - 3)
    rows[at], rows[at + 1] = rows[at + 1], rows[at]
    return rows


def repeated(rows: Rows, r: random.Random) -> Rows:
    at = r.randrange(2, len(rows) - 1)
    twin = [*rows[at]]
    twin[1] = "9999" + twin[1]
    return [*rows[: at + 1], twin, *rows[at + 1 :]]


BAD_PRICES = ("", "nan", "inf", "-5", "0", "abc", "1e999", "1_0", "5%", "--", "1.2.3", "True")
BAD_DATES = ("", "soon", "2020-13-45", "NaT", "0", "2020")
# Each makes a table that nobody can trade.
DAMAGES: dict[str, Callable[[Rows, random.Random], Rows]] = {
    **{
        f"price {value!r}": cell(value, 1)
        for value in ("", "nan", "inf", "-5", "0", "abc", "1e999")
    },
    **{
        f"price {value!r}": cell(value, 1) for value in ("1_0", "5%", "--", "1.2.3", "True", "\x00")
    },
    **{
        f"date {value!r}": cell(value, 0)
        for value in ("", "soon", "2020-13-45", "NaT", "0", "2020")
    },
    "moved": moved,
    "repeated": repeated,
    "no header": lambda rows, r: rows[1:],
    "no prices": lambda rows, r: [[row[0], *row[2:]] for row in rows],
    "no dates": lambda rows, r: [row[1:] for row in rows],
    "no bars": lambda rows, r: rows[:1],
    "one bar": lambda rows, r: rows[:2],
    "two prices": lambda rows, r: [[*row, row[1]] for row in rows],
}


def data_file(folder: Path) -> Callable[[random.Random, int], Case]:
    def make(r: random.Random, n: int) -> Case:
        bars = drawn_bars(r)
        rows, delimiter = drawn_table(r, bars)
        damage = r.choice(list(DAMAGES)) if r.random() < 0.6 else None
        if damage:
            rows = DAMAGES[damage]([[*row] for row in rows], r)
        path = folder / f"case_{n}{r.choice(('.csv', '.txt', '.tsv'))}"
        path.write_bytes(
            text_of(rows, delimiter).encode(r.choice(("utf-8", "utf-8-sig", "utf-16")))
        )
        out = folder / "told.json"

        def run() -> Any:
            cli.main(["data", "check", str(path), "--json", str(out)])
            told = json.loads(out.read_text())
            return [told[name] for name in ("bars", "first", "last", "last_price", "news")]

        news = len(bars) if len(rows[0]) > 3 and damage is None else 0
        known = [len(bars), str(bars[0][0]), str(bars[-1][0]), bars[-1][1], news]
        return Case(f"{n}: {damage}, {rows[:2]}", run, None if damage else known)

    return make


def test_data_files(tmp_path, capsys):
    check(cases_of("data files", data_file(tmp_path)), capsys)


# --------------------------------------------------------------------------------------- settings

GOOD = {
    "gamma": (0, 0.5, 1),
    "gae_lambda": (0.3, 0.95),
    "learning_rate": (1e-5, 0.01),
    "ent_coef": (0, 0.2),
    "num_envs": (1, 4),
    "seed": (0, 7, 2**32 - 1),
    "clip_coef": (0.1, 0.3),
    "cost_bps": (0, 12.5),
    "prompt_style": ("markov", "compact"),
    "execution": ("next_price", "same_price"),
    "finetuning": ("full_top", "lora"),
    "trainable_layers": (1, 3),
    "date_column": ("day",),
    "timezone": ("Asia/Kolkata",),
}
BAD = {
    "gamma": (-0.1, 1.5, "nan", "much"),
    "gae_lambda": (2, "inf"),
    "learning_rate": (-1, "fast"),
    "ent_coef": (-0.5, "nan"),
    "num_envs": (0, -3, 1.5),
    "seed": (-1, 2**32, "x"),
    "clip_coef": (0, 1),
    "cost_bps": (-1, 10_000),
    "prompt_style": ("loud", ""),
    "execution": ("yesterday",),
    "finetuning": ("all",),
    "trainable_layers": (0, -1),
    "timezone": ("Mars/Base", "../etc/passwd"),
    "date_format": ("YYYY",),
    "periods_per_year": (0, -5, "many"),
    "no_such_option": (1,),
    "test_start": ("2020-13-01", "soon"),
    "init_adaptor": ("x",),
}


def setting(folder: Path) -> Callable[[random.Random, int], Case]:
    def make(r: random.Random, n: int) -> Case:
        bad = r.random() < 0.5
        names = BAD if bad else GOOD
        name = r.choice(list(names))
        value = r.choice(names[name])
        words = ["train", "--show"]
        if r.random() < 0.4:
            path = folder / f"run_{n}.yaml"
            path.write_text(yaml.safe_dump({name: value}))
            words += ["--config", str(path)]
        else:
            words += [f"--{name}", str(value)]

        def run() -> Any:
            cli.main(words)
            return True

        return Case(f"{n}: {words} {name} {value}", run, None if bad else True)

    return make


def test_settings(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check(cases_of("settings", setting(tmp_path)), capsys)


# ----------------------------------------------------------------------------------------- models


def cut(path: Path, r: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: r.randrange(len(content) * 9 // 10)])


def lose(model: Path, r: random.Random) -> None:
    tensors = load_file(model / "model.safetensors")
    del tensors[r.choice(sorted(tensors))]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})


def widen(model: Path, r: random.Random) -> None:
    config = json.loads((model / "config.json").read_text())
    name = r.choice(("hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"))
    config[name] = r.choice((config[name] + 8, "many", None, [1], -4))
    (model / "config.json").write_text(json.dumps(config))


MODEL_DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "weights cut": lambda model, r: cut(model / "model.safetensors", r),
    "tokenizer cut": lambda model, r: cut(model / "tokenizer.json", r),
    "configuration cut": lambda model, r: cut(model / "config.json", r),
    "weights gone": lambda model, r: (model / "model.safetensors").unlink(),
    "a tensor gone": lose,
    "another shape": widen,
}


def model_directory(source: Path, folder: Path) -> Callable[[random.Random, int], Case]:
    def make(r: random.Random, n: int) -> Case:
        damage = r.choice(list(MODEL_DAMAGES)) if r.random() < 0.6 else None

        def run() -> Any:
            model = shutil.copytree(source, folder / str(n))
            if damage:
                MODEL_DAMAGES[damage](model, r)
            return len(load_base(str(model))[1])

        return Case(f"{n}: {damage}", run, None if damage else 512)

    return make


def test_models(shared, tmp_path, capsys):
    check(cases_of("models", model_directory(shared / "models/stories260K", tmp_path)), capsys)


# --------------------------------------------------------------------------------------- policies


def policy_directory(source: Path, folder: Path) -> Callable[[random.Random, int], Case]:
    names = sorted(path.name for path in source.iterdir() if path.is_file())

    def make(r: random.Random, n: int) -> Case:
        damage = r.choice(("a byte", "cut", "gone", "another's")) if r.random() < 0.6 else None
        name = r.choice(names)

        def run() -> Any:
            policy = shutil.copytree(source, folder / str(n))
            path = policy / name
            if damage == "a byte":
                content = bytearray(path.read_bytes())
                content[r.randrange(len(content))] ^= r.randrange(1, 256)
                path.write_bytes(content)
            elif damage == "cut":
                cut(path, r)
            elif damage == "gone" and name != "policy_manifest.json":
                path.unlink()
            elif damage:
                path.write_bytes(
                    (source / names[(names.index(name) + 1) % len(names)]).read_bytes()
                )
            else:
                (policy / "notes.txt").write_text("mine")
            return read_settings(policy).policy.prior

        return Case(f"{n}: {damage} of {name}", run, None if damage else "raw")

    return make


def test_policies(small_model, tmp_path, capsys):
    tiny_trainer(small_model, tmp_path / "whole").save_model()
    check(cases_of("policies", policy_directory(tmp_path / "whole", tmp_path)), capsys)
