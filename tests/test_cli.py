"""The commands as a user runs them: what they say of themselves, what they exit with, and a run's
way through them.
"""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from flagtrl import cli, launch
from flagtrl.cli import _COMMANDS
from flagtrl.errors import AdapterError, ConfigError, FlagtrlError
from flagtrl.evidence.days import DAYS_FILE
from flagtrl.evidence.page import PAGE_FILE
from flagtrl.evidence.report import POLICY_MODES
from flagtrl.launch import RECIPES, chosen_recipe
from flagtrl.market import download
from flagtrl.market.sources import investorbench_json
from flagtrl.options import MODES, parse, parser
from flagtrl.policy.manifest import POLICY_MANIFEST
from flagtrl.policy.saving import ADAPTER_FILE, HEADS_FILE, WEIGHT_DTYPES
from flagtrl.runs import data as run_data
from flagtrl.runs.directory import LOCK_FILE
from flagtrl.runs.parsing import parse_arguments
from flagtrl.train import run_recipe
from old_runs import without_manifest
from short_runs import FAST
from test_recipes import ROWS, series
from training import digests

REPO = "me/flagtrl-msft"
CONFIGS = Path(__file__).parents[1] / "accelerate_configs"


def flagtrl(*args, **more):
    """A command in a process of its own."""
    command = [sys.executable, "-m", "flagtrl.cli", *map(str, args)]
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", **more}
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)


def refused(capsys, *args) -> str:
    """The one line that a command ends in, in this process."""
    with pytest.raises(SystemExit) as stop:
        cli.main(list(map(str, args)))
    error = capsys.readouterr().err
    assert stop.value.code == 2, error
    line = error.strip().splitlines()[-1]
    assert line.startswith("flagtrl: ") and "Traceback" not in error
    return line


# ----------------------------------------------------------------------- what every command must do


@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_explains_itself_its_options_and_its_exit_codes(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"usage: flagtrl {command}" in text
    assert "exit codes: 0 done; 1 a crash" in text
    assert len(text.split()) > 50, "a usage line alone is not worth reading"


def test_python_runs_the_package_as_the_command():
    words = ["runs", "--bogus"]
    outcomes = [
        subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True)
        for module in ("flagtrl", "flagtrl.cli")
    ]
    assert len({(done.returncode, done.stdout, done.stderr) for done in outcomes}) == 1
    assert outcomes[0].returncode == 2 and "--bogus" in outcomes[0].stderr


def test_every_option_says_what_it_is():
    def walk(part):
        for action in part._actions:
            if hasattr(action, "choices") and isinstance(action.choices, dict):
                for inner in action.choices.values():
                    yield from walk(inner)
            elif action.dest != "help":
                yield part.prog, action

    options = list(walk(parser()))
    assert len(options) > 25
    assert not [
        (prog, action.dest)
        for prog, action in options
        if not action.help and action.dest != "shell"
    ]


def words_of(command):
    """A command with the arguments that it needs."""
    needed = {
        "audit run": "x",
        "audit table": "x.csv --data x",
        "backtest": "--adapter x",
        "merge": "x y",
        "push": "x a/b",
        "pull": "a/b",
        "completion": "bash",
        "qa prepare": "x y",
        "report": "x",
        "trade": "--policy text",
        "walk-forward": "--train 1y --test 1y",
        "data check": "x.csv",
        "data download": "MSFT",
    }
    return [*command.split(), *needed.get(command, "").split()]


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_crash_is_passed_on_whole(command, monkeypatch, tmp_path):
    """The command's function fails for a reason that nobody foresaw."""
    monkeypatch.chdir(tmp_path)  # where a run would write
    monkeypatch.setitem(_COMMANDS, command, lambda options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(words_of(command))


def test_a_crash_exits_with_1_and_a_traceback():
    code = (
        "import flagtrl.cli as c; c._COMMANDS['merge'] = lambda options: 1 / 0; "
        f"c.main({words_of('merge')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=400)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


@pytest.mark.parametrize(
    "args",
    [
        ["demo", "--output_dir", "{occupied}/out"],
        ["demo", "--synthetic", "--preset", "paper", "--output_dir", "{out}"],
        ["demo", "--preset", "gold", "--output_dir", "{out}"],
        ["train", "--recipe", "gold"],
        ["train", "--preset", "gold", "--show"],
        ["train", "--config", "{nothing}.yaml"],
        ["train", "--accelerate_config", "{nothing}.yaml"],
        ["train", "--num_processes", "0"],
        ["backtest", "--adapter", "{nothing}", "--output_dir", "{out}"],
        ["merge", "{nothing}", "{out}"],
        ["push", "{nothing}", REPO],
        ["pull", "a/b/c"],
        ["data", "download", "NOPE"],
        ["data", "check", "{nothing}.csv"],
        ["data", "check", "{nothing}", "--timezone", "Mars"],
    ],
    ids=lambda args: " ".join(args[:3]),
)
def test_an_error_to_act_on_is_one_line_and_2(args, capsys, tmp_path):
    (tmp_path / "occupied").write_text("a file")
    places = {name: tmp_path / name for name in ("occupied", "nothing", "out")}
    refused(capsys, *(word.format(**places) for word in args))


@pytest.mark.parametrize(
    "args", [[], ["sell"], ["push"], ["backtest"], ["pull", REPO, "--fast"], ["completion", "vim"]]
)
def test_a_mistyped_command_is_2(args, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(args)
    assert stop.value.code == 2
    usage, wrong, remedy = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: flagtrl") and ": error: " in wrong and "--help`" in remedy


@pytest.mark.parametrize(
    ("args", "meant"),
    [
        (["bactest"], "backtest"),
        (["backtest", "--adapter", "x", "--volatilty_periods", "9"], "--volatility_periods"),
        (["backtest", "--adapter", "x", "--policy_mode", "sample"], "sampled"),
        (["push", "x", "a/b", "--privat_e"], "--private"),
        (["merge", "x", "y", "--dtype", "bfloat61"], "bfloat16"),
        (["qa", "prepare", "tatqa", "x", "--skip_malfomed"], "--skip_malformed"),
        (["push", "x", "a/b", "--fast"], None),
    ],
)
def test_a_mistyped_word_is_answered_with_the_nearest_one(args, meant, capsys):
    with pytest.raises(SystemExit):
        parse(args)
    remedy = capsys.readouterr().err.splitlines()[-1]
    assert remedy.startswith("`flagtrl push" if meant is None else f"did you mean {meant}? `")


def test_the_choices_are_those_of_the_code():
    """options/commands.py repeats two lists, so that --help need not wait for torch."""
    assert MODES == POLICY_MODES
    option = next(a for a in _subparser("merge")._actions if a.dest == "dtype")
    assert tuple(option.choices) == tuple(WEIGHT_DTYPES)


def _subparser(name):
    return next(
        action.choices[name] for action in parser()._actions if isinstance(action.choices, dict)
    )


def test_bash_completes_commands_and_options(tmp_path, capsys):
    cli.main(["completion", "bash"])
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = (
        'source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
        '_shtab_flagtrl; echo "${COMPREPLY[@]}"'
    )

    def completed(*words):
        command = ["bash", "-c", ask, "bash", tmp_path / "script", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr
        return set(done.stdout.split())

    assert completed("flagtrl", "") >= {command.split()[0] for command in _COMMANDS}
    assert completed("flagtrl", "me") == {"merge"}
    assert completed("flagtrl", "backtest", "--ad") == {"--adapter"}
    assert completed("flagtrl", "merge", "--dtype", "b") == {"bfloat16"}


def test_zsh_and_tcsh_get_a_script(capsys):
    for shell in ("zsh", "tcsh"):
        cli.main(["completion", shell])
        assert "backtest" in capsys.readouterr().out


def test_data_download_says_what_it_holds(data, monkeypatch, capsys):
    monkeypatch.setattr(download, "fetch_investorbench", lambda symbol, **_: data)
    cli.main(["data", "download", "MSFT"])
    assert capsys.readouterr().out == f"MSFT: 291 bars, 2020-03-12 to 2021-05-06: {data}\n"


# -------------------------------------------------------------------------------------------- train


def test_the_recipe_is_the_options_or_the_files_or_msfts(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("recipe: btc\nseed: 5\n")
    script = tmp_path / "mine.py"
    script.write_text("")
    assert chosen_recipe([]) == chosen_recipe(["--seed", "1"]) == "msft"
    assert chosen_recipe(["--config", str(config)]) == "btc"
    assert chosen_recipe(["--config", str(config), "--recipe", "jnj"]) == "jnj"
    assert chosen_recipe(["--recipe", str(script)]) == str(script)
    with pytest.raises(ConfigError, match=r"'gold' is unknown; use one of btc, .*msft"):
        chosen_recipe(["--recipe", "gold"])
    with pytest.raises(ConfigError, match=r"gone\.py"):
        chosen_recipe(["--recipe", str(tmp_path / "gone.py")])


def test_the_files_recipe_key_is_no_unknown_setting_and_a_recipe_keeps_to_itself(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"recipe: btc\nseed: 5\noutput_dir: {tmp_path}\n")
    arguments = parse_arguments(RECIPES["btc"], ["--config", str(config), "--gamma", "0.5"], "btc")
    assert (arguments.data.symbol, arguments.ppo.seed, arguments.ppo.gamma) == ("BTC", 5, 0.5)
    with pytest.raises(ConfigError, match="flagtrl train --recipe btc"):
        parse_arguments(RECIPES["msft"], ["--config", str(config)], "msft")
    for recipe in ("mine.py", "dir/mine.py"):
        assert (
            parse_arguments({}, ["--recipe", recipe, "--output_dir", str(tmp_path)]).data.symbol
            == "MSFT"
        )


def test_accelerate_gets_its_file_and_the_run_everything_else(monkeypatch, tmp_path):
    seen = []
    monkeypatch.chdir(tmp_path)  # where a run would write
    monkeypatch.setattr(launch, "launch_command", seen.append)
    ours = Path(__file__).parents[1] / "accelerate_configs/cpu.yaml"
    words = [
        "--seed",
        "6",
        "--risk_free_rate",
        "-0.1",
        "--num_envs",
        "2",
        "--norm_adv",
        "--run_nam",  # argparse takes a name's beginning: here of run_name
        "x",
    ]
    cli.main(
        [
            "train",
            "--recipe",
            "hon",
            *words,
            "--accelerate_config",
            str(ours),
            "--num_processes",
            "1",
        ]
    )
    assert (seen[0].config_file, seen[0].num_processes, seen[0].module) == (str(ours), 1, True)
    assert (seen[0].training_script, seen[0].training_script_args) == (
        "flagtrl.train",
        ["--recipe", "hon", *words],
    )

    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "none"))
    script = tmp_path / "mine.py"
    script.write_text("")
    # a script may have options of its own, also such as begin like ours
    cli.main(["train", "--recipe", str(script), "--num_processes", "2", "--conf", "y"])
    assert seen[1].training_script_args == ["--recipe", str(script), "--conf", "y"]
    assert (seen[1].training_script, seen[1].num_processes, seen[1].multi_gpu) == (
        str(script),
        2,
        True,
    )
    assert not seen[1].module
    cli.main(["train"])
    assert (
        seen[2].num_processes == 1 and not seen[2].multi_gpu and seen[2].training_script_args == []
    )


@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(0)", 0), ("sys.exit(2)", 2), ("sys.exit(7)", 7), ("1 / 0", 1)]
)
def test_a_runs_exit_code_is_passed_on(monkeypatch, tmp_path, ending, code):
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "none"))
    script = tmp_path / "mine.py"
    script.write_text(f"import sys\n{ending}\n")
    assert launch.launch(["--recipe", str(script)]) == code


def test_a_killed_run_is_128_and_the_signal(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "default_config_file", str(tmp_path / "none"))
    script = tmp_path / "mine.py"
    script.write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    assert launch.launch(["--recipe", str(script)]) == 137


@pytest.mark.slow
@pytest.mark.parametrize("config", [None, "cpu", "single_gpu"])
def test_many_processes_pass_their_exit_code_on_too(tmp_path, config):
    """Also with a file for one process, with which accelerate would start one and say nothing."""
    script = tmp_path / "mine.py"
    script.write_text(
        """import os, sys, time
from pathlib import Path

# Each to a file of its own, as lines that two processes print at once can mix; and the first to end
# stops the other.
here = Path(__file__).parent
(here / os.environ["RANK"]).write_text(repr(sys.argv[1:]))
while not all((here / rank).exists() for rank in "01"):
    time.sleep(0.05)
sys.exit(2)
"""
    )
    named = [] if config is None else ["--accelerate_config", CONFIGS / f"{config}.yaml"]
    done = flagtrl(
        "train",
        "--recipe",
        script,
        *named,
        "--num_processes",
        2,
        "--seed",
        3,
        HF_HOME=str(tmp_path),
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert [(tmp_path / rank).read_text() for rank in "01"] == [
        repr(["--recipe", str(script), "--seed", "3"])
    ] * 2


def test_a_file_for_one_process_on_the_cpu_keeps_many_there(monkeypatch, tmp_path):
    seen = []
    monkeypatch.chdir(tmp_path)  # where a run would write
    monkeypatch.setattr(launch, "launch_command", seen.append)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    default = tmp_path / "default_config.yaml"
    shutil.copy(CONFIGS / "cpu.yaml", default)
    monkeypatch.setattr(launch, "default_config_file", str(default))
    cli.main(["train", "--num_processes", "2"])
    assert seen[0].multi_gpu and os.environ["ACCELERATE_USE_CPU"] == "true"
    default.write_text(default.read_text().replace("num_processes: 1", "num_processes: 2"))
    cli.main(["train"])
    assert seen[1].multi_gpu, "the file's own number counts too"
    cli.main(["train", "--num_processes", "1"])
    cli.main(["train", "--accelerate_config", str(CONFIGS / "multi_gpu.yaml")])
    assert not seen[2].multi_gpu and not seen[3].multi_gpu, "accelerate sees to it itself"


def test_a_bad_accelerate_file_is_one_line(tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text("num_processes: 1\nnonsense: 3\n")
    assert "accelerate refuses" in refused(capsys, "train", "--accelerate_config", bad)


def test_a_metric_that_is_not_measured_is_refused_before_training(small_model, data, tmp_path):
    window = ["--eval_strategy", "steps", "--train_end", "2020-08-31"]
    window += ["--valid_start", "2020-09-01", "--valid_end", "2020-09-10"]
    words = [
        "--data",
        str(data),
        "--model_name_or_path",
        str(small_model),
        "--output_dir",
        str(tmp_path),
        *FAST,
        *window,
    ]
    for wrong in ("sharpe", "loss"):
        with pytest.raises(
            ConfigError, match=f"metric_for_best_model is '{wrong}'.* one of .*standard_SR"
        ):
            run_recipe("msft", [*words, "--metric_for_best_model", wrong])
    with pytest.raises(
        ConfigError, match=r"load_best_model_at_end is set, which needs a metric_for_best_model"
    ):
        run_recipe("msft", [*words, "--load_best_model_at_end", "true"])
    assert not list(tmp_path.glob("eval"))


@pytest.mark.slow
def test_a_run_that_is_to_be_overwritten_stays_where_the_new_one_is_refused(
    small_model, data, tmp_path
):
    (tmp_path / "results.json").write_text("{}")
    words = [
        "--model_name_or_path",
        str(small_model),
        "--output_dir",
        str(tmp_path),
        "--overwrite_output_dir",
        "true",
        *FAST,
    ]
    for wrong in (
        ["--data", str(tmp_path / "none.csv")],
        ["--data", str(data), "--test_start", "2020-09-01"],
    ):
        with pytest.raises(FlagtrlError):
            run_recipe("msft", [*words, *wrong])
        assert (tmp_path / "results.json").is_file()
    run_recipe("msft", [*words, "--data", str(data)])
    assert "test" in json.loads((tmp_path / "results.json").read_text())


@pytest.mark.slow
def test_a_run_is_resumed_from_its_last_checkpoint_or_refused_but_never_begun_anew(
    small_model, data, tmp_path
):
    words = [
        "--data",
        str(data),
        "--model_name_or_path",
        str(small_model),
        "--use_cpu",
        "true",
        *FAST,
        "--save_steps",
        "1",
        "--symbol",
        "MSFT",
    ]
    words += ["--save_strategy", "steps", "--resume_from_checkpoint", "true"]
    calm, out = tmp_path / "calm", tmp_path / "out"
    run_recipe("msft", [*words, "--output_dir", str(calm)])  # there is nothing to resume from yet
    newest, oldest = sorted(
        calm.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True
    )
    shutil.copytree(oldest, out / oldest.name)
    stamp = (out / oldest.name / "optimizer.pt").stat().st_mtime_ns
    elsewhere = shutil.copy(data, tmp_path / "same.json")
    run_recipe("msft", [*words, "--data", str(elsewhere), "--output_dir", str(out)])
    for name in (ADAPTER_FILE, HEADS_FILE):
        assert (out / name).read_bytes() == (calm / name).read_bytes()
    assert (out / oldest.name / "optimizer.pt").stat().st_mtime_ns == stamp, (
        "it was not written anew"
    )
    for path in out.glob("checkpoint-*"):
        (path / "optimizer.pt").unlink()
    before = digests(out)
    with pytest.raises(
        AdapterError,
        match=rf"none of the 2 checkpoints in .*{newest.name} has no optimizer.pt.*output_dir",
    ):
        run_recipe("msft", [*words, "--output_dir", str(out)])
    assert digests(out) == before


def test_a_bad_setting_of_a_run_is_one_line_and_2():
    done = flagtrl("train", "--gamma", "1.5")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "flagtrl: ConfigError: gamma is 1.5; it must be in [0, 1]"
    ]


# ------------------------------------------------------------------------------ a run's way through


@pytest.fixture(scope="module")
def data(shared):
    return shared / "data/investorbench/msft.json"


@pytest.fixture(scope="module")
def finished(small_model, data, tmp_path_factory):
    """A run of `flagtrl train`: two months of Microsoft, settings in a file and on the command
    line.
    """
    out = tmp_path_factory.mktemp("trained")
    config = out / "run.yaml"
    config.write_text(
        f"recipe: msft\nmodel_name_or_path: {small_model}\ntrain_start: '2020-09-01'\n"
        "test_end: '2020-10-30'\nvolatility_periods: 365\n"
    )
    done = flagtrl(
        "train",
        "--config",
        config,
        "--data",
        data,
        "--output_dir",
        out / "run",
        "--cost_bps",
        5,
        *FAST,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "agent_greedy" in done.stdout
    return out / "run"


@pytest.fixture
def run_(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def edit(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    without_manifest(path.parent)


def backtest(capsys, *args):
    cli.main(["backtest", *map(str, args)])
    return capsys.readouterr().out


def test_a_backtest_gives_the_very_numbers_that_training_ended_with(
    finished, data, tmp_path, capsys, caplog
):
    """The training was another process's: adapter, heads, prompts, costs, seed and convention come
    from its files.
    """
    shown = backtest(capsys, "--adapter", finished, "--data", data, "--output_dir", tmp_path)
    ours, theirs = (
        json.loads((place / "results.json").read_text()) for place in (tmp_path, finished)
    )
    assert ours["test"] == theirs["test"] and set(ours["test"]) == ROWS
    for name in ("data", "windows", "seed", "model", "versions"):
        assert ours[name] == theirs[name]
    assert ours["settings"] == theirs["settings"]
    assert (tmp_path / "trades.csv").read_bytes() == (finished / "trades.csv").read_bytes()
    assert (tmp_path / "equity_curve.png").read_bytes().startswith(b"\x89PNG")
    assert all(row in shown for row in ROWS) and "2020-10-01 to 2020-10-30" in shown
    assert not caplog.records, "nothing to warn of"


@pytest.mark.slow
def test_another_window_and_one_way_to_act(finished, data, tmp_path, capsys, caplog):
    window = ("--start", "2021-01-04", "--end", "2021-01-20")
    backtest(
        capsys,
        "--adapter",
        finished,
        "--data",
        data,
        "--output_dir",
        tmp_path,
        "--policy-mode",
        "sampled",
        *window,
    )
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["test"]) == ROWS - {"agent_greedy", "agent_without_news"}
    assert results["windows"]["test"] == ["2021-01-04", "2021-01-20", 12]
    with open(tmp_path / "trades.csv") as file:
        assert next(csv.DictReader(file))["date"] == "2021-01-04"
    assert not caplog.records
    window = ("--start", "2020-09-25", "--end", "2020-10-05")
    backtest(capsys, "--adapter", finished, "--data", data, "--output_dir", tmp_path, *window)
    assert "overlaps that of training" in caplog.text
    caplog.clear()
    window = ("--start", "2020-05-04", "--end", "2020-05-20")
    backtest(capsys, "--adapter", finished, "--data", data, "--output_dir", tmp_path, *window)
    assert "the window lies before that of training, 2020-" in caplog.text


def test_a_backtest_leaves_a_run_alone(finished, data, capsys):
    line = refused(
        capsys, "backtest", "--adapter", finished, "--data", data, "--output_dir", finished
    )
    assert "is a run's own (run.json, results.json)" in line


def test_other_data_than_those_of_training_are_pointed_out(
    finished, data, tmp_path, capsys, caplog
):
    days = json.loads(data.read_text())
    days["2021-01-05"]["prices"] += 0.01
    (tmp_path / "msft.json").write_text(json.dumps(days))
    window = ("--start", "2021-01-04", "--end", "2021-01-08")
    backtest(
        capsys,
        "--adapter",
        finished,
        "--data",
        tmp_path / "msft.json",
        "--output_dir",
        tmp_path,
        *window,
    )
    assert (
        "not those of training" in caplog.text
        and investorbench_json(data, "MSFT").fingerprint()[:12] in caplog.text
    )


@pytest.mark.slow
def test_the_data_of_training_are_found_again_only_as_they_were(
    run_, data, tmp_path, capsys, monkeypatch
):
    fetched = []
    monkeypatch.setattr(
        run_data, "fetch_investorbench", lambda symbol: fetched.append(symbol) or data
    )
    told = json.loads((run_ / "run.json").read_text())["data"]
    assert told["source"] == str(data)
    options = ("backtest", "--adapter", run_, "--output_dir", tmp_path / "out")
    days = ("--start", "2021-01-04", "--end", "2021-01-08")
    backtest(capsys, *options[1:], *days)  # the file is as it was
    for source, why in ((data, "no longer holds what"), (tmp_path / "gone.csv", "is not here")):
        edit(run_ / "run.json", data={**told, "source": str(source), "sha256": "0" * 64})
        line = refused(capsys, *options, *days)
        assert why in line and "give --data FILE" in line and not fetched
    edit(run_ / "run.json", data={**told, "source": "InvestorBench"})
    backtest(capsys, *options[1:], *days)
    assert fetched == ["MSFT"]


def test_code_that_a_file_names_is_run_only_if_the_user_names_it(run_, data, tmp_path, capsys):
    reward = tmp_path / "mine.py"
    ran = tmp_path / "ran"
    reward.write_text(
        f"from pathlib import Path\nPath({str(ran)!r}).touch()\ndef mine(history):\n    return "
        "0.5\n"
    )
    market = json.loads((run_ / "run.json").read_text())["market"]
    edit(run_ / "run.json", market={**market, "reward": f"{reward}:mine"})
    options = ["--adapter", run_, "--data", data, "--output_dir", tmp_path / "out"]
    options += ["--start", "2021-01-04", "--end", "2021-01-08"]
    assert "--reward" in refused(capsys, "backtest", *options)
    assert not ran.exists()
    backtest(capsys, *options, "--reward", f"{reward}:mine")
    assert ran.exists()


@pytest.mark.parametrize("gone", ["windows", "market", "data", "seed"])
def test_a_run_that_does_not_say_how_it_was_traded_is_refused(run_, data, tmp_path, capsys, gone):
    content = json.loads((without_manifest(run_) / "run.json").read_text())
    del content[gone]
    (run_ / "run.json").write_text(json.dumps(content))
    line = refused(
        capsys, "backtest", "--adapter", run_, "--data", data, "--output_dir", tmp_path / "out"
    )
    assert gone in line


def test_bad_data_and_an_empty_window_are_refused(finished, tmp_path, capsys):
    (tmp_path / "short.json").write_text(json.dumps(series()))
    options = (
        "--adapter",
        finished,
        "--data",
        tmp_path / "short.json",
        "--output_dir",
        tmp_path / "out",
    )
    assert "2020-10-01" in refused(capsys, "backtest", *options)
    assert "none.json" in refused(
        capsys, "backtest", *options[:2], "--data", tmp_path / "none.json", *options[4:]
    )


def test_merge_writes_a_plain_model(finished, tmp_path, capsys):
    cli.main(["merge", str(finished), str(tmp_path / "merged"), "--dtype", "float16"])
    assert str(tmp_path / "merged") in capsys.readouterr().out
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float16


# ------------------------------------------------------------------------------------------ the Hub


def test_what_is_pushed_names_no_path_of_this_machine(run_, small_model, data, hub, caplog):
    before = {path.name: path.read_bytes() for path in run_.iterdir() if path.name != "README.md"}
    named = [
        name
        for name, content in before.items()
        if str(small_model).encode() in content or str(data).encode() in content
    ]
    assert {"adapter_config.json", "run.json", "results.json"} <= set(named), (
        "a run on disk says where its base lies"
    )
    cli.main(["push", str(run_), REPO])
    pushed = hub.repos[REPO]
    for name, content in pushed.items():
        for path in (small_model, data, run_, run_.parent, Path.home()):
            assert str(path).encode() not in content, (name, path)
    assert json.loads(pushed["adapter_config.json"])["base_model_name_or_path"] == small_model.name
    told = json.loads(pushed["run.json"])
    weights = {"source": "directory", "weights": "as saved there, in float32"}
    assert (told["base"] | {"id": small_model.name, **weights}) == told["base"]
    assert told["data"]["source"] == "msft.json"
    assert repr(small_model.name) in caplog.text and "without its path" in caplog.text
    assert {
        path.name: path.read_bytes() for path in run_.iterdir() if path.name != "README.md"
    } == before
    rewritten, kept_here = (
        {"adapter_config.json", "run.json", "results.json", POLICY_MANIFEST},
        {"trainer_state.json", "learning_curves.png", LOCK_FILE, DAYS_FILE, PAGE_FILE},
    )
    same = set(before) - rewritten - kept_here
    assert all(pushed[name] == before[name] for name in same), "all else is as it was"


@pytest.mark.slow
def test_a_run_on_the_hub_is_backtested_and_merged_on_the_base_that_the_user_names(
    run_, small_model, data, hub, tmp_path, capsys
):
    cli.main(["push", str(run_), REPO])
    window = ("--start", "2021-01-04", "--end", "2021-01-08")
    options = ("--data", data, "--output_dir", tmp_path / "out", *window)
    # The repository's owner names a directory of this machine, which is there.
    del hub.repos[REPO][POLICY_MANIFEST]
    for path in (str(small_model), small_model.name, "../../" + small_model.name):
        config = json.loads(hub.repos[REPO]["adapter_config.json"])
        hub.repos[REPO]["adapter_config.json"] = json.dumps(
            {**config, "base_model_name_or_path": path}
        ).encode()
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        line = refused(capsys, "backtest", "--adapter", REPO, *options)
        assert "never opened" in line and "--base" in line and path in line
    backtest(capsys, "--adapter", REPO, "--base", small_model, *options)
    near = tmp_path / "near"
    backtest(capsys, "--adapter", run_, "--data", data, "--output_dir", near, *window)
    here, there = (
        json.loads((place / "results.json").read_text()) for place in (near, tmp_path / "out")
    )
    assert here["test"] == there["test"]
    cli.main(["merge", REPO, str(tmp_path / "far"), "--base", str(small_model)])
    cli.main(["merge", str(run_), str(tmp_path / "by")])
    far_weights, near_weights = (
        load_file(tmp_path / name / "model.safetensors") for name in ("far", "by")
    )
    assert all(torch.equal(far_weights[name], near_weights[name]) for name in near_weights)


def test_a_pulled_directory_is_of_the_hub_too(run_, small_model, hub, tmp_path, capsys):
    cli.main(["push", str(run_), REPO])
    config = json.loads(hub.repos[REPO]["adapter_config.json"])
    hub.repos[REPO]["adapter_config.json"] = json.dumps(
        {**config, "base_model_name_or_path": str(small_model)}
    ).encode()
    del hub.repos[REPO][POLICY_MANIFEST]
    cli.main(["pull", REPO, "--output_dir", str(tmp_path / "back")])
    line = refused(capsys, "merge", tmp_path / "back", tmp_path / "merged")
    assert re.search("came from the Hub.*never opened.*--base", line)


@pytest.mark.slow
def test_a_run_and_its_base_come_from_the_hub_by_name_alone(run_, small_model, data, hub, tmp_path):
    """With no option but the data: the base is a repository of the Hub, at the commit of
    training.
    """
    cli.main(["push", str(run_), REPO])
    del hub.repos[REPO][POLICY_MANIFEST]
    hub.repos["me/base"] = {path.name: path.read_bytes() for path in small_model.iterdir()}
    config = json.loads(hub.repos[REPO]["adapter_config.json"])
    hub.repos[REPO]["adapter_config.json"] = json.dumps(
        {**config, "base_model_name_or_path": "me/base"}
    ).encode()
    told = json.loads(hub.repos[REPO]["run.json"])
    hub.repos[REPO]["run.json"] = json.dumps(
        {**told, "base": {**told["base"], "revision": "b" * 40}}
    ).encode()
    window = ("--start", "2021-01-04", "--end", "2021-01-08")
    done = flagtrl(
        "backtest",
        "--adapter",
        REPO,
        "--data",
        data,
        "--output_dir",
        tmp_path / "out",
        *window,
        **hub.environment(tmp_path / "home"),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    asked = [path for path in hub.requests if "/me/base/resolve/" in path]
    assert asked and all(
        "b" * 40 in path for path in asked if "safetensors" in path or "config.json" in path
    ), asked
