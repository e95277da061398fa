"""The README's commands, numbers and links hold."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flagtrl.demo import PPO
from flagtrl.evidence.report import markdown_table
from flagtrl.language.prompts import style_names
from flagtrl.launch import RECIPES
from flagtrl.options import parse
from flagtrl.recipe import parse_arguments

ROOT = Path(__file__).resolve().parents[1]
LENGTH = '"total_timesteps": 8_000'
README = (ROOT / "README.md").read_text()


def shell_commands(text: str = README) -> str:
    """The code blocks without a language, continued lines joined."""
    return "\n".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")


def test_every_link_and_path_exists():
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    missing = [
        target
        for target in targets
        if not target.startswith("http") and not (ROOT / target).exists()
    ]
    assert not missing
    code = re.findall(r"`((?:recipes|tests|src|accelerate_configs|benchmarks)/[\w./]+)`", README)
    assert not [path for path in code if not (ROOT / path).exists()]


def test_the_speed_table_is_what_the_benchmark_wrote():
    """And the floors that this project set itself hold in it, or it is said which do not."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from throughput import markdown  # the benchmarks are scripts, no package

    rows = json.loads((ROOT / "docs/throughput.json").read_text())["rows"]
    assert markdown(rows) in README
    step = {
        (row["prompt"], row["engine"]): row["seconds_per_step"]
        for row in rows
        if row["phase"] == "all" and row["num_envs"] == 1 and row["dtype"] == "float32"
    }
    floors = {"paper": (4.5, 12), "compact": (6.5, 17), "markov": (12, 32)}
    short = []
    for prompt, (plain, per_action) in floors.items():
        ratio = step[prompt, "plain"] / step[prompt, "split"]
        if ratio < plain:
            short.append(f"{prompt} {ratio:.1f} (goal {plain})")
        assert step[prompt, "per_action"] >= per_action * step[prompt, "split"]
    assert re.findall(r"\w+ [\d.]+ \(goal [\d.]+\)", " ".join(README.split())) == short


def test_what_is_said_of_the_speed_is_what_the_benchmark_wrote():
    rows = json.loads((ROOT / "docs/throughput.json").read_text())["rows"]
    whole = {
        (r["prompt"], r["engine"], r["dtype"], r["num_envs"]): r
        for r in rows
        if r["phase"] == "all"
    }
    seconds = {key: row["seconds_per_step"] for key, row in whole.items()}
    split = {
        prompt: seconds[prompt, "split", "float32", 1] for prompt in ("paper", "compact", "markov")
    }
    eight = {prompt: seconds[prompt, "split", "float32", 8] for prompt in split}
    share = {prompt: whole[prompt, "split", "float32", 1]["peak_share"] for prompt in split}
    gain = {prompt: split[prompt] / seconds[prompt, "split", "bfloat16", 1] for prompt in split}
    mkl = {
        prompt: seconds[prompt, "plain", "float32", 1] / seconds[prompt, "split_mkl", "float32", 1]
        for prompt in split
    }
    words = " ".join(README.split())
    for said in (
        f"`plain / split_mkl` is {mkl['paper']:.1f}, {mkl['compact']:.1f} and {mkl['markov']:.1f}",
        f"reaches {share['paper']:.0%} of the machine's best float32 rate in `paper`, "
        f"{share['compact']:.0%} in `compact`",
        f"is {gain['paper']:.1f} times as fast in `paper` and {gain['compact']:.1f} times in "
        "`compact`, not 2 times",
        f"Eight environments take {eight['paper']:.3f} s a step against {split['paper']:.3f} with "
        "one (`paper`)",
        f"{eight['compact']:.3f} against {split['compact']:.3f} (`compact`)",
        f"{eight['markov']:.3f} against {split['markov']:.3f} (`markov`)",
    ):
        assert said in words
    visits = json.loads((ROOT / "docs/throughput.json").read_text())["first_visit_seconds"]
    paper, compact, markov = (visits[f"{prompt} split float32 1"] for prompt in split)
    assert f"first visit costs more ({paper:.2f}, {compact:.2f} and {markov:.2f} s)" in words
    assert all(eight[prompt] <= split[prompt] for prompt in split), "no slower than one"


def test_the_profile_is_what_the_benchmark_wrote():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from step_profile import KINDS, markdown

    rows = json.loads((ROOT / "docs/step_profile.json").read_text())["rows"]
    assert markdown(rows) in README
    paper = {
        row["phase"]: row for row in rows if (row["prompt"], row["dtype"]) == ("paper", "float32")
    }
    whole = sum(paper["all"][kind] for kind in KINDS)
    bound = whole / (whole - paper["rollout"]["products"])
    assert f"products took no time, a `paper` step would be {bound:.1f} times as fast" in " ".join(
        README.split()
    )


def test_the_growth_of_a_step_is_what_the_benchmark_wrote():
    rows = json.loads((ROOT / "docs/scaling.json").read_text())["rows"]
    step = {
        (row["varied"], row["value"]): row["seconds_per_step"]
        for row in rows
        if row["phase"] == "all"
    }
    words = " ".join(README.split())
    assert f"grows from {step['num_envs', 1]:.3f} s (one environment" in words
    assert (
        f"to {step['num_envs', 8]:.3f} s with eight environments, {step['news_tokens', 512]:.3f} s "
        "with 512 tokens" in words
    )
    assert f"{step['trainable_layers', 8]:.3f} s with eight trainable layers" in words
    assert f"{step['shape', '360M']:.3f} s in SmolLM2-360M's shape" in words


def qa_rows() -> dict[tuple[str, str], dict]:
    """docs/qa.json, the command's --json file, by task and metric."""
    written = json.loads((ROOT / "docs/qa.json").read_text())
    return {(row["task"].removeprefix("flagtrl_"), row["metric"]): row for row in written}


def test_the_qa_table_is_what_the_command_wrote():
    rows = qa_rows()
    section = README.split("## Reuse the adapter", 1)[1].split("\n## ", 1)[0]
    table = section.split("\n| task | metric | n |", 1)[1].split("\n\n", 1)[0]
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]
    assert [(task, metric.strip("*")) for task, metric, *_ in lines] == list(rows)
    for task, metric, n, *numbers in lines:
        row = rows[task, metric.strip("*")]
        assert int(n) == row["n"]
        shown = [
            *numbers[:3],
            *(numbers[3].split(" to ") if " to " in numbers[3] else [numbers[3]] * 2),
        ]
        for cell, name in zip(shown, ("base", "adapter", "delta", "low", "high"), strict=True):
            assert (cell == "-") == (row[name] is None)
            assert cell == "-" or float(cell) == pytest.approx(row[name], rel=6e-4, abs=1e-12)
        if numbers[4] not in ("", "-", "<0.001"):
            assert float(numbers[4]) == pytest.approx(row["p"], abs=6e-4)
        assert (row["p"] is None) == (numbers[4] in ("", "-"))


def test_what_is_said_of_the_qa_tasks_is_what_the_command_wrote():
    """Which tasks the real base does, what reads nothing, and which task is said to carry no
    information.
    """
    rows, words = qa_rows(), " ".join(README.split())
    for task in ("twitter_fin", "fiqa_sa"):
        score, most = rows[task, "bal_acc"], rows[task, "majority_acc"]
        assert score["p"] is not None and score["base"] > rows[task, "uniform_bal_acc"]["base"]
        assert (
            f"`{task}` {score['base']:.2f} (the majority's accuracy is {most['base']:.2f})" in words
        )
    changed = max(abs(rows[task, "bal_acc"]["delta"]) for task in ("twitter_fin", "fiqa_sa"))
    assert f"changed neither by more than {changed:.3f}" in words
    assert (
        f"This adapter, {rows['retention_trading', 'kl_at_answer']['adapter']:.2f} nats from the "
        "base" in words
    )
    moved = rows["tatqa_mc_nocontext", "label_bits"]
    assert (
        moved["low"] > 0
        and moved["p"] is None
        and f"`label_bits` rose by {moved['delta']:.2f}" in words
    )
    twin = rows["tatqa_mc_nocontext", "acc"]
    assert twin["p"] is None
    assert f"(`tatqa_mc_nocontext`: {twin['base']:.2f}, always the same letter: " in words
    assert (
        f"always the same letter: {rows['tatqa_mc_nocontext', 'majority_acc']['base']:.2f})"
        in words
    )


def test_the_table_of_forms_is_what_the_benchmark_wrote():
    """In the cloze form the base's scores go with the label, and balanced accuracy is above chance
    and the form before.
    """
    forms = {
        (row["task"], row["form"]): row
        for row in json.loads((ROOT / "docs/qa_prior.json").read_text())
    }
    names = ("raw_acc", "raw_bal_acc", "acc", "bal_acc", "correlation", "majority_acc")
    for (task, form), row in forms.items():
        assert (
            f"| {task} | {form} | {row['n']} | {' | '.join(f'{row[name]:.3f}' for name in names)} |"
            in README
        )
    for task in ("twitter_fin", "fiqa_sa"):
        before, now = forms[task, "before"], forms[task, "now"]
        assert now["bal_acc"] > max(before["raw_bal_acc"], before["bal_acc"], 1 / 3)
        assert now["correlation"] > before["correlation"]
    assert (
        f"called {forms['twitter_fin', 'before']['raw_shares'][0]:.0%} of tweets negative"
        in " ".join(README.split())
    )


def test_the_qa_speed_is_what_the_benchmark_wrote():
    rows = {row["engine"]: row for row in json.loads((ROOT / "docs/qa_speed.json").read_text())}
    ours, apart, theirs = (rows[engine] for engine in ("flagtrl", "apart", "lm_eval"))
    ratio, words = apart["cpu_seconds"] / ours["cpu_seconds"], " ".join(README.split())
    assert ratio >= 1.7, "the goal for base and one adapter"
    assert (
        f"took {ours['cpu_seconds']} s of processor time on one core, against "
        f"{apart['cpu_seconds']} s" in words
    )
    assert f"{ratio:.2f} times as fast" in words
    assert f"{theirs['cpu_seconds']} s in lm-eval's own model class" in words
    assert (
        f"by at most {ours['peak_above_start_mb']} MB, of which the one copy of the weights is "
        f"{ours['weights_mb']}" in words
    )
    assert all(row["items"] == 200 and row["base"] == "smollm2" for row in rows.values())
    assert ours["peak_above_start_mb"] < 2 * ours["weights_mb"], "no second copy of the base"


def test_every_benchmark_command_in_the_readme_parses(monkeypatch):
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import scaling
    import step_profile
    import throughput

    commands = re.findall(r"^python benchmarks/(\w+).py (.*)$", shell_commands(), re.MULTILINE)
    scripts = {script.__name__: script.arguments for script in (scaling, step_profile, throughput)}
    others = [
        name
        for name, _ in commands
        if name not in ("qa", "label_prior", "learning", "speech", "start")
    ]
    assert others == ["throughput", "step_profile", "throughput", "scaling"]
    for name, options in commands:
        if name in scripts:
            monkeypatch.setattr(sys, "argv", [f"{name}.py", *options.split()])
            scripts[name]()


def test_the_test_command_is_what_ci_runs():
    assert "make test" in README
    assert "make VENV" in (ROOT / ".ci/run").read_text()
    dry = subprocess.run(
        ["make", "--dry-run", "demo", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "flagtrl demo --output_dir runs/demo" in dry
    assert "-m pytest" in dry


def test_every_recipe_option_in_the_readme_is_accepted(tmp_path):
    commands = re.findall(
        r"^.*accelerate launch.* recipes/train_\w+\.py(.*)$", shell_commands(), re.MULTILINE
    )
    assert any(options.strip() for options in commands)
    for options in commands:
        words = options.replace("DIR", str(tmp_path)).split()
        parse_arguments({}, [*words, "--output_dir", str(tmp_path)])


def test_every_flagtrl_command_in_the_readme_parses():
    commands = re.findall(r"^flagtrl (.*)$", shell_commands(), re.MULTILINE)
    assert commands
    for command in commands:
        parse(command.split("#")[0].split())


def test_every_option_of_a_training_run_in_the_readme_is_accepted(tmp_path):
    commands = re.findall(r"^flagtrl (train .*)$", shell_commands(), re.MULTILINE)
    assert commands
    for command in commands:
        options = parse(command.split())
        assert options.accelerate_config is None or (ROOT / options.accelerate_config).is_file()
        recipe = options.recipe or "msft"
        parse_arguments(
            RECIPES[recipe],
            [*options.others, "--recipe", recipe, "--output_dir", str(tmp_path)],
            recipe,
        )


def test_the_loop_in_the_readme_runs(tmp_path):
    """The ten lines are run as they stand, shortened by its number of steps alone."""
    code = next(
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "PPOTrainer(" in block
    )
    assert LENGTH in code
    script = tmp_path / "loop.py"
    script.write_text(code.replace(LENGTH, LENGTH.replace("8_000", "320")))
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, cwd=tmp_path, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "agent_greedy" in done.stdout


def written(name: str):
    return json.loads((ROOT / "docs" / name).read_text())


@pytest.mark.parametrize("name", ["demo.json", "demo_synthetic.json"])
def test_the_demos_tables_are_what_the_demos_wrote(name):
    results = written(name)
    assert markdown_table(results["test"]) in README
    for sentence in results.get("verdict", []) if name == "demo.json" else []:
        assert sentence in README


def test_what_is_said_of_learning_is_what_the_benchmark_wrote():
    """And what this project asks of its preset: alive throughout, and above the untrained model in
    sample, with each seed.
    """
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from learning import markdown

    rows = written("learning.json")
    assert markdown(rows) in README
    for run in ("flagtrl", "flagtrl_head", "paper_markov"):
        assert sum(row["run"] == run for row in rows) == 3
    for row in rows:
        if not row["run"].startswith("paper"):
            assert min(row["curves"]["entropy"]) > 0.05 and row["collapsed_at"] is None
            assert row["train"]["agent_greedy"]["CR"] > row["train"]["untrained_calibrated"]["CR"]
        if row["run"].startswith("flagtrl"):
            assert (
                row["train"]["agent_greedy"]["CR"] > row["train"]["random_p95"]["CR"]
                and row["behaviour"]["depends_on_day"]
            )
            assert row["deviation"] >= 0.02 and row["curves"]["explained_variance"][-1] > 0.1, (
                "said of heads too"
            )
    papers = [row for row in rows if row["run"].startswith("paper")]
    assert [row["collapsed_at"] for row in papers] == [120, 480, None, 320], (
        "said to be dead within 480 steps, and after 320"
    )
    assert not any(row["behaviour"]["depends_on_day"] for row in papers)
    for run in {row["run"] for row in rows}:
        assert (ROOT / f"docs/learning_{run}.png").is_file()


def test_where_training_starts_is_what_the_benchmark_wrote():
    """And hesitant on every asset, in every style, which this project asks of its calibration."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from start import ASSETS, markdown

    rows = written("start.json")
    assert markdown(rows) in README
    assert {(row["asset"], row["style"]) for row in rows} == {
        (asset, style) for asset in ASSETS for style in style_names()
    }
    assert min(min(row["calibrated"].values()) for row in rows) >= 0.6
    assert min(row["on_action_words"] for row in rows) >= 0.9


def test_the_page_of_what_the_model_says_is_what_the_benchmark_wrote():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from speech import PROMPTS, markdown

    measured = written("speech.json")
    assert (ROOT / "docs/speech.md").read_text() == markdown(measured)
    assert [answers["prompt"] for answers in measured["answers"]] == list(PROMPTS)
    text, trading = measured["rows"]
    assert f"is {trading['adapter']:.2f} nats of KL from its base" in README
    assert f"takes {text['adapter']:.3f} bits a byte, the base {text['base']:.3f}" in README


def near(results: dict, recorded: dict) -> None:
    """Baselines to the last digit; the agent within what another processor's rounding may
    change.
    """
    assert set(results) == set(recorded)
    for row, by in recorded.items():
        for convention, metrics in by.items():
            for name, told in metrics.items():
                got = results[row][convention][name]
                if not row.startswith(("agent", "untrained")):
                    assert got == (None if told is None else pytest.approx(told, abs=1e-9)), (
                        row,
                        convention,
                        name,
                    )
                elif row.startswith("agent_sampled") and name == "CR":
                    assert got == pytest.approx(told, rel=0.25), (row, convention, name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_synthetic_demo_prints_what_is_recorded(tmp_path):
    command = [
        sys.executable,
        "-m",
        "flagtrl.cli",
        "demo",
        "--synthetic",
        "--output_dir",
        str(tmp_path),
    ]
    # As a user runs it: how many threads OpenMP starts with changes the order of sums, and so the
    # course of a training run.
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((tmp_path / "results.json").read_text())["test"]
    near(results, written("demo_synthetic.json")["test"])
    agent, rule = results["agent_greedy"]["paper"]["CR"], results["follow_news"]["paper"]["CR"]
    assert agent >= 0.8 * rule
    assert agent > max(results["buy_and_hold"]["paper"]["CR"], results["random_p95"]["paper"]["CR"])
    assert f"{PPO['total_timesteps']}/{PPO['total_timesteps']} steps" in done.stdout
